"""Integers for weights that give a layer's outputs back best, not those nearest to the weights.

The error of a layer's outputs is quadratic in the error of its weights, with the inputs' second moments as the
matrix. Columns are rounded one after the other, each time the columns that are left make up for what rounding did
(Frantar et al. 2023, "GPTQ"); then single integers are changed while that lowers the error (coordinate descent,
Behdin et al. 2023, "QuantEase").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_DAMPING = 1e-2  # of the mean of the diagonal
_SWEEPS = 4  # of coordinate descent, at most
_BLOCK = 64  # columns whose updates are gathered before the others see them


@dataclass(frozen=True)
class Grid:
    """What a layer's weights may be: ``scale`` [groups, 1, outputs] times integers of magnitude up to ``most``, like
    the weights [groups, inputs, outputs]."""

    scale: np.ndarray
    most: np.ndarray

    def nearest(self, weight: np.ndarray) -> np.ndarray:
        """Integers, as floats, nearest to a weight."""
        return np.clip(np.rint(weight / self.scale), -self.most, self.most)

    def column(self, values: np.ndarray, j: int) -> np.ndarray:
        """The same for input ``j`` alone [groups, outputs]."""
        return np.clip(np.rint(values / self.scale[:, 0]), -self.most[:, j], self.most[:, j])


def damped(moments: np.ndarray) -> np.ndarray:
    """Second moments [groups, inputs, inputs] that can be inverted."""
    inputs = moments.shape[1]
    mean = np.trace(moments, axis1=1, axis2=2)[:, None, None] / inputs
    return np.asarray(moments + (_DAMPING * mean + 1e-12) * np.eye(inputs))


def round_to(weight: np.ndarray, moments: np.ndarray, grid: Grid) -> np.ndarray:
    """Integers [groups, inputs, outputs], as floats, for a weight of that shape.

    ``moments`` [groups, inputs, inputs] must be positive definite, see ``damped``.
    """
    # The inputs that matter most come first, while all others can still make up for them.
    order = np.argsort(-np.einsum("gii->gi", moments), axis=1, kind="stable")
    at = np.arange(len(weight))[:, None]
    back = np.argsort(order, axis=1)
    ranked = Grid(grid.scale, grid.most[at, order])
    moments = moments[at[..., None], order[:, :, None], order[:, None, :]]
    weight = weight[at, order]
    found = _compensated(weight, moments, ranked)
    return np.asarray(_descended(found, weight, moments, ranked)[at, back])


def _compensated(weight: np.ndarray, moments: np.ndarray, grid: Grid) -> np.ndarray:
    """Column by column, the rest made up for each; both by way of the Cholesky factor of the inverse."""
    factor = np.linalg.cholesky(np.linalg.inv(moments)).transpose(0, 2, 1)
    left = weight.copy()
    inputs = weight.shape[1]
    found = np.empty_like(weight)
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = np.empty_like(left[:, start:stop])
        for j in range(start, stop):
            found[:, j] = grid.column(left[:, j], j)
            error = (left[:, j] - found[:, j] * grid.scale[:, 0]) / factor[:, j, j, None]
            left[:, j:stop] -= factor[:, j, j:stop, None] * error[:, None]
            errors[:, j - start] = error
        left[:, stop:] -= factor[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    return found


def _descended(found: np.ndarray, weight: np.ndarray, moments: np.ndarray, grid: Grid) -> np.ndarray:
    """Sweeps over the columns: each integer to where the error is least, given the others."""
    diagonal = np.einsum("gii->gi", moments)
    slope = moments @ (found * grid.scale - weight)
    for _ in range(_SWEEPS):
        moved = 0
        for j in range(weight.shape[1]):
            ideal = found[:, j] * grid.scale[:, 0] - slope[:, j] / diagonal[:, j, None]
            new = grid.column(ideal, j)
            change = (new - found[:, j]) * grid.scale[:, 0]
            columns = np.flatnonzero(change.any(axis=0))
            if columns.size:
                slope[:, :, columns] += moments[:, :, j, None] * change[:, None, columns]
                found[:, j] = new
                moved += columns.size
        if not moved:
            break
    return found


def best_scales(
    weight: np.ndarray, moments: np.ndarray, grid: Grid, least: np.ndarray, ratios: np.ndarray
) -> np.ndarray:
    """Scales [groups, 1, outputs] whose rounding to nearest gives the least error, out of ``ratios`` of those of the
    grid; none below ``least``."""
    best = np.full(grid.scale[:, 0].shape, np.inf)
    single = moments.astype(np.float32)  # which scale is best shows in single precision
    chosen = grid.scale.copy()
    for ratio in ratios:
        scale = np.maximum(grid.scale * ratio, least)
        error = (Grid(scale, grid.most).nearest(weight) * scale - weight).astype(np.float32)
        cost = np.einsum("gio,gio->go", error, single @ error)
        better = cost < best
        best = np.where(better, cost, best)
        chosen = np.where(better[:, None], scale, chosen)
    return chosen
