"""Ridge regression from second moments."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.linalg import cho_factor, cho_solve


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
        a = np.ascontiguousarray(x.transpose(1, 0, 2), dtype=np.float32)
        b = np.ascontiguousarray(y.reshape(len(y), groups, outputs).transpose(1, 0, 2), dtype=np.float32)
        self.add_by_group(a, b)

    def add_by_group(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows x [groups, rows, inputs] and y [groups, rows, outputs], both in single precision."""
        self.rows += x.shape[1]
        self.x += x.sum(axis=1, dtype=np.float64)
        self.y += y.sum(axis=1, dtype=np.float64)
        self.xx += x.transpose(0, 2, 1) @ x
        self.xy += x.transpose(0, 2, 1) @ y
        self.yy += np.einsum("grk,grk->gk", y, y)

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
