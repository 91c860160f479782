"""Ridge regression from second moments, with the strength of the ridge chosen on data that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.analysis.layers.moments import Moments

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
_MAJORISATIONS = 6


@dataclass(frozen=True)
class Rows:
    """What a layer reads, x [groups, rows, inputs], and should compute, y [groups, rows, outputs]; single precision.

    ``floor`` (like y): an activation follows that makes no difference between values below it. None if none does.
    """

    x: np.ndarray
    y: np.ndarray
    floor: np.ndarray | None

    def moments(self) -> Moments:
        found = Moments.empty((len(self.x), self.x.shape[2], self.y.shape[2]))
        found.add_by_group(self.x, self.y)
        return found

    def output(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.x @ weight.astype(np.float32)
        found += bias[:, None].astype(np.float32)
        return found

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Squared error behind the activation, relative to the variance there."""
        want, have = self.y, self.output(weight, bias)
        if self.floor is not None:
            want, have = np.maximum(want, self.floor), np.maximum(have, self.floor, out=have)
        variance = float(want.var(axis=1, dtype=np.float64).sum()) * want.shape[1]
        have -= want
        return float(np.vdot(have, have).real) / max(variance, 1e-12)

    def apparent(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Targets that follow the output where it and what is wanted are both below the floor."""
        found = self.output(weight, bias)
        np.minimum(found, self.floor, out=found)
        return np.where(self.y <= self.floor, found, self.y)


def rectified(
    parts: Sequence[Rows], moments: Moments, weight: np.ndarray, bias: np.ndarray, strength: float, intercept: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression in which only what rises above the floor counts against targets below it.

    ``moments`` are those of all parts. The loss is convex, and majorised by least squares towards targets that follow
    the output below the floor (after Zhang et al. 2015, "Accelerating very deep convolutional networks").
    """
    found = moments.solve(weight, bias, strength, intercept)
    if any(part.floor is None for part in parts):
        return found
    for _ in range(_MAJORISATIONS):
        y, xy = np.zeros_like(moments.y), np.zeros_like(moments.xy)
        for part in parts:
            target = part.apparent(*found)
            y += target.sum(axis=1, dtype=np.float64)
            xy += part.x.transpose(0, 2, 1) @ target
        found = replace(moments, y=y, xy=xy).solve(weight, bias, strength, intercept)
    return found


def best_strength(first: Moments, two: Rows, weight: np.ndarray, bias: np.ndarray, intercept: bool) -> float | None:
    """The strength of the ridge with which a fit to ``first`` has the smallest error on ``two``; None if none fits."""
    errors = {}
    for strength in _STRENGTHS:
        try:
            error = two.error(*first.solve(weight, bias, strength, intercept))
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(error):
            errors[strength] = error
    return min(errors, key=lambda s: errors[s]) if errors else None


def fit(
    one: Rows | None, two: Rows | None, weight: np.ndarray, bias: np.ndarray, intercept: bool
) -> tuple[float, float, tuple[np.ndarray, np.ndarray] | None]:
    """Relative errors on unseen rows before and after, and the new weight and bias, fitted to all rows.

    Strengths are compared by fitting to the first half and measuring on the second. None when none lowers the error.
    """
    if one is None or two is None:
        return 0.0, 0.0, None
    before = two.error(weight, bias)
    first, second = one.moments(), two.moments()
    strength = best_strength(first, two, weight, bias, intercept)
    if strength is None:
        return before, before, None
    after = two.error(*rectified([one], first, weight, bias, strength, intercept))
    if not after < before:
        return before, before, None
    return before, after, rectified([one, two], first + second, weight, bias, strength, intercept)
