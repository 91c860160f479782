"""Histograms of float32 values that need no range beforehand and merge exactly."""

from __future__ import annotations

import sys

import numpy as np

_HIGH_HALF = 1 if sys.byteorder == "little" else 0


class Histogram:
    """Counts of float32 values in bins of constant relative width, 1/128 of the value.

    A bin is the upper half of the float's bits (sign, exponent, 7 bits of mantissa; as in bfloat16). So bins need no
    range chosen beforehand, and histograms merge exactly, in any order.
    """

    def __init__(self) -> None:
        self._positive = np.zeros(0, np.int64)  # [bins] by upper half of the bits
        self._negative = np.zeros(0, np.int64)  # the same of the magnitude

    def add(self, values: np.ndarray) -> None:
        """Count finite values of any shape."""
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        if not flat.size:
            return
        counts = np.bincount(flat.view(np.uint16)[_HIGH_HALF::2])
        self._positive = _sum(self._positive, counts[:0x8000])
        self._negative = _sum(self._negative, counts[0x8000:])

    def merge(self, other: Histogram) -> None:
        """Count what ``other`` counted."""
        self._positive = _sum(self._positive, other._positive)
        self._negative = _sum(self._negative, other._negative)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return int(self._positive.sum() + self._negative.sum())

    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower edges, upper edges (float64) and counts (int64) of the bins in use, ascending, each [bins]."""
        parts = []
        for counts, sign in ((self._negative, -1.0), (self._positive, 1.0)):
            used = np.flatnonzero(counts)
            inner, outer = (_edge(used + k).astype(np.float64) * sign for k in (0, 1))
            part = (inner, outer, counts[used]) if sign > 0 else (outer[::-1], inner[::-1], counts[used][::-1])
            parts.append(part)
        low, high, counts = (np.concatenate(p) for p in zip(*parts, strict=True))
        return low, high, counts

    def quantile(self, q: float) -> float:
        """The value that a fraction ``q`` of the counted values lie below, linear within a bin. NaN if empty."""
        low, high, counts = self.bins()
        if not counts.size:
            return float("nan")
        below = np.cumsum(counts)
        rank = q * below[-1]
        i = min(int(np.searchsorted(below, rank)), len(counts) - 1)
        inside = (rank - (below[i] - counts[i])) / counts[i]
        return float(low[i] + (high[i] - low[i]) * min(max(inside, 0.0), 1.0))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        pairs = zip(self.bins(), other.bins(), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


def _sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    short, long = (a, b) if len(a) < len(b) else (b, a)
    total = long.astype(np.int64)
    total[: len(short)] += short
    return total


def _edge(upper: np.ndarray) -> np.ndarray:
    return (upper.astype(np.uint32) << 16).view(np.float32)
