"""Ridge regression from second moments, with the strength of the ridge chosen on data that it was not fitted to."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)


class Moments:
    """Sums over rows of x [rows, groups, inputs] and y [rows, groups * outputs]; weight: [groups, inputs, outputs]."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        groups, inputs, outputs = shape
        self.shape = shape
        self.rows = 0
        self.x = np.zeros((groups, inputs))
        self.y = np.zeros((groups, outputs))
        self.xx = np.zeros((groups, inputs, inputs))
        self.xy = np.zeros((groups, inputs, outputs))
        self.yy = np.zeros((groups, outputs))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        groups, _, outputs = self.shape
        a = np.ascontiguousarray(x.transpose(1, 2, 0), dtype=np.float32)
        b = np.ascontiguousarray(y.reshape(len(y), groups, outputs).transpose(1, 0, 2), dtype=np.float32)
        self.rows += len(x)
        self.x += a.sum(axis=2, dtype=np.float64)
        self.y += b.sum(axis=1, dtype=np.float64)
        self.xx += a @ a.transpose(0, 2, 1)
        self.xy += a @ b
        self.yy += np.einsum("grk,grk->gk", b, b)

    def __add__(self, other: Moments) -> Moments:
        total = Moments(self.shape)
        total.rows = self.rows + other.rows
        for name in ("x", "y", "xx", "xy", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Squared error of y ~ x @ weight + bias, relative to the variance of y."""
        n = max(1, self.rows)
        square = (
            self.yy
            + np.einsum("gio,gio->go", weight, self.xx @ weight)
            + n * bias**2
            - 2 * np.einsum("gio,gio->go", weight, self.xy)
            - 2 * bias * self.y
            + 2 * bias * np.einsum("gi,gio->go", self.x, weight)
        )
        variance = (self.yy - self.y**2 / n).sum()
        return float(square.sum() / max(variance, 1e-12))

    def solve(
        self, weight: np.ndarray, bias: np.ndarray, strength: float, intercept: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Minimise the squared error plus a ridge that pulls towards ``weight``."""
        n = max(1, self.rows)
        xx, xy = self.xx, self.xy - np.einsum("gi,go->gio", self.x, np.zeros_like(bias) if intercept else bias)
        if intercept:
            xx = xx - np.einsum("gi,gj->gij", self.x, self.x) / n
            xy = xy - np.einsum("gi,go->gio", self.x, self.y) / n
        inputs = self.shape[1]
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


def fit(
    one: Moments, two: Moments, weight: np.ndarray, bias: np.ndarray, intercept: bool
) -> tuple[float, float, tuple[np.ndarray, np.ndarray] | None]:
    """Relative errors on unseen rows before and after, and the new weight and bias, fitted to all rows.

    Strengths are compared by fitting to the first half and measuring on the second. None when none lowers the error.
    """
    if not (one.rows and two.rows):
        return 0.0, 0.0, None
    before = two.error(weight, bias)
    best: tuple[float, float] | None = None
    for strength in _STRENGTHS:
        try:
            error = two.error(*one.solve(weight, bias, strength, intercept))
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(error) and (best is None or error < best[0]):
            best = (error, strength)
    if best is None or not best[0] < before:
        return before, before, None
    return before, best[0], (one + two).solve(weight, bias, best[1], intercept)
