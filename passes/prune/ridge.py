"""Ridge regression from second moments, with the strength of the ridge chosen on data that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
_MAJORISATIONS = 6


@dataclass
class Moments:
    """Sums over rows of x [rows, groups, inputs] and y [rows, groups * outputs]; weight: [groups, inputs, outputs]."""

    rows: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Moments:
        """Of no rows yet, for a weight of this shape."""
        groups, inputs, outputs = shape
        return cls(
            0,
            np.zeros((groups, inputs)),
            np.zeros((groups, outputs)),
            np.zeros((groups, inputs, inputs)),
            np.zeros((groups, inputs, outputs)),
            np.zeros((groups, outputs)),
        )

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        groups, outputs = self.y.shape
        a = np.ascontiguousarray(x.transpose(1, 2, 0), dtype=np.float32)
        b = np.ascontiguousarray(y.reshape(len(y), groups, outputs).transpose(1, 0, 2), dtype=np.float32)
        self.rows += len(x)
        self.x += a.sum(axis=2, dtype=np.float64)
        self.y += b.sum(axis=1, dtype=np.float64)
        self.xx += a @ a.transpose(0, 2, 1)
        self.xy += a @ b
        self.yy += np.einsum("grk,grk->gk", b, b)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def solve(
        self, weight: np.ndarray, bias: np.ndarray, strength: float, intercept: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Minimise the squared error plus a ridge that pulls towards ``weight``."""
        n = max(1, self.rows)
        xx, xy = self.xx, self.xy - np.einsum("gi,go->gio", self.x, np.zeros_like(bias) if intercept else bias)
        if intercept:
            xx = xx - np.einsum("gi,gj->gij", self.x, self.x) / n
            xy = xy - np.einsum("gi,go->gio", self.x, self.y) / n
        inputs = self.x.shape[1]
        scale = np.trace(xx, axis1=1, axis2=2)[:, None, None] / inputs
        ridge = (strength * scale + 1e-9) * np.eye(inputs)
        left, right = xx + ridge, xy - xx @ weight
        if len(left) == 1:  # positive definite: Cholesky takes half of what elimination takes
            factor = cho_factor(left[0], lower=True, overwrite_a=True, check_finite=False)
            change = cho_solve(factor, right[0], check_finite=False)[None]
        else:
            change = np.linalg.solve(left, right)
        fitted = weight + change
        if intercept:
            bias = (self.y - np.einsum("gi,gio->go", self.x, fitted)) / n
        return fitted, bias


@dataclass(frozen=True)
class Rows:
    """What a layer reads, x [rows, groups, inputs], and should compute, y [rows, groups, outputs].

    ``floor`` (like y): an activation follows that makes no difference between values below it. None if none does.
    """

    x: np.ndarray
    y: np.ndarray
    floor: np.ndarray | None

    @staticmethod
    def join(parts: Sequence[Rows]) -> Rows | None:
        """All rows of some parts that are alike; None where there are none."""
        if not parts:
            return None
        floors = [part.floor for part in parts if part.floor is not None]
        return Rows(
            np.concatenate([part.x for part in parts]),
            np.concatenate([part.y for part in parts]),
            np.concatenate(floors) if floors else None,
        )

    def moments(self) -> Moments:
        found = Moments.empty((*self.x.shape[1:], self.y.shape[2]))
        found.add(self.x, self.y.reshape(len(self.y), -1))
        return found

    def output(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(self.x.transpose(1, 0, 2))
        found: np.ndarray = (x @ weight.astype(np.float32)).transpose(1, 0, 2) + bias.astype(np.float32)
        return found

    def _behind(self, values: np.ndarray) -> np.ndarray:
        return values if self.floor is None else np.maximum(values, self.floor)

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Squared error behind the activation, relative to the variance there."""
        want, have = self._behind(self.y), self._behind(self.output(weight, bias))
        variance = float(want.var(axis=0, dtype=np.float64).sum()) * len(want)
        return float(np.square(want - have, dtype=np.float64).sum() / max(variance, 1e-12))

    def rectified(
        self, moments: Moments, weight: np.ndarray, bias: np.ndarray, strength: float, intercept: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ridge regression in which only what rises above the floor counts against targets below it.

        The loss is convex, and majorised by least squares towards targets that follow the output below the floor
        (after Zhang et al. 2015, "Accelerating very deep convolutional networks").
        """
        found = moments.solve(weight, bias, strength, intercept)
        if self.floor is None:
            return found
        low = self.y <= self.floor
        x = np.ascontiguousarray(self.x.transpose(1, 2, 0))
        for _ in range(_MAJORISATIONS):
            target = np.where(low, np.minimum(self.output(*found), self.floor), self.y)
            moments = replace(moments, y=target.sum(axis=0, dtype=np.float64), xy=x @ target.transpose(1, 0, 2))
            found = moments.solve(weight, bias, strength, intercept)
        return found


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
    best: tuple[float, float] | None = None
    for strength in _STRENGTHS:
        try:
            error = two.error(*first.solve(weight, bias, strength, intercept))
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(error) and (best is None or error < best[0]):
            best = (error, strength)
    if best is None:
        return before, before, None
    after = two.error(*one.rectified(first, weight, bias, best[1], intercept))
    if not after < before:
        return before, before, None
    both = Rows.join([one, two])
    assert both is not None
    return before, after, both.rectified(first + second, weight, bias, best[1], intercept)
