"""Which range a tensor gets when rare values may be cut off: least squared error, least divergence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphopt.analysis.histogram import Histogram

Function = Callable[[np.ndarray], np.ndarray]  # of each element

_GRID = 100  # shares of an extreme that are tried
_NUDGE = 1e-6  # of the extent, to both sides, for a slope
_BINS = 2048  # of equal width, for the divergence
_LEAST = 128  # bins that a range keeps at least
_SMALL = 1e-4  # probability in place of none


def mse_range(
    histogram: Histogram, low: float, high: float, levels: int = 256, seen: Function | None = None
) -> tuple[float, float]:
    """The range within [low, high] whose rounding and clipping have the least mean squared error together.

    Values inside are off by a twelfth of a squared step on average, those smaller than half a step by themselves, those
    outside by their distance. Both ends are searched at once on a grid of shares (as in Nagel et al. 2021, A White
    Paper on Neural Network Quantization, section 3.1); sums over the bins from the left make each try cheap.

    ``seen`` is what is computed from each value, if nothing reads the values themselves: errors are those of its
    results, for small steps by its slope. What it maps to the same number may then be cut off for nothing.
    """
    edges_low, edges_high, counts = histogram.bins()
    if not counts.size or not high > low:
        return low, high
    x = np.clip((edges_low + edges_high) / 2, low, high)
    look: Function = (lambda v: v) if seen is None else seen
    y, zero = look(x), float(look(np.zeros(1))[0])
    nudge = _NUDGE * (high - low)
    slope = np.ones(len(x)) if seen is None else (look(x + nudge) - look(x - nudge)) / (2 * nudge)
    weight = counts.astype(np.float64)
    sums = [np.concatenate([[0.0], np.cumsum(weight * y**k)]) for k in range(3)]
    steps = np.concatenate([[0.0], np.cumsum(weight * slope**2)])

    def apart(first: int, last: int, from_: float) -> float:
        """Sum of squared distances of the results in a run of bins from one number."""
        n, one, two = (s[last] - s[first] for s in sums)
        return float(two - 2 * from_ * one + from_ * from_ * n)

    shares = np.linspace(1.0, 1.0 / _GRID, _GRID)
    lows = np.minimum(low * (shares if low < 0 else shares[:1]), 0.0)
    highs = np.maximum(high * (shares if high > 0 else shares[:1]), 0.0)
    best, found = np.inf, (low, high)
    for lower, seen_lower in zip(lows, look(lows), strict=True):
        for upper, seen_upper in zip(highs, look(highs), strict=True):
            step = (upper - lower) / (levels - 1)
            left, inner_low, inner_high, right = np.searchsorted(x, [lower, -step / 2, step / 2, upper])
            rounded = (steps[right] - steps[left]) - (steps[inner_high] - steps[inner_low])
            error = rounded * step * step / 12 + apart(inner_low, inner_high, zero)
            error += apart(0, left, seen_lower) + apart(right, len(x), seen_upper)
            if error < best:
                best, found = error, (float(lower), float(upper))
    return found


def entropy_range(histogram: Histogram, low: float, high: float, levels: int = 256) -> tuple[float, float]:
    """The range within [low, high] whose quantized distribution diverges least from the true one (Kullback-Leibler).

    Migacz 2017, 8-bit Inference with TensorRT: for each threshold, what lies outside counts as the outermost bins; the
    quantized distribution spreads each level's values over the bins of it that are not empty.
    """
    edges_low, edges_high, counts = histogram.bins()
    if not counts.size or not high > low:
        return low, high
    bound = max(-low, high)
    spread = _uniform(np.clip(edges_low, low, high), np.clip(edges_high, low, high), counts, bound)
    two_sided = low < 0
    best, threshold = np.inf, bound
    for half in np.unique(np.linspace(_LEAST, _BINS // 2, _GRID).round().astype(int)):
        divergence = _divergence(spread, half, levels, two_sided)
        if divergence < best:
            best, threshold = divergence, bound * half / (_BINS // 2)
    return max(low, -threshold), min(high, threshold)


def _uniform(edges_low: np.ndarray, edges_high: np.ndarray, counts: np.ndarray, bound: float) -> np.ndarray:
    """Counts over equal bins of [-bound, bound], each value anywhere within its bin: float64 [_BINS]."""
    order = np.linspace(-bound, bound, _BINS + 1)
    below = np.concatenate([[0.0], np.cumsum(counts)])
    points = np.concatenate([edges_low[:1], edges_high])
    return np.diff(np.interp(order, points, below, left=0.0, right=float(below[-1])))


def _divergence(counts: np.ndarray, half: int, levels: int, two_sided: bool) -> float:
    middle = _BINS // 2
    first = middle - half if two_sided else middle
    kept = counts[first : middle + half].copy()
    reference = kept.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[middle + half :].sum()
    group = np.minimum(np.arange(kept.size) * levels // kept.size, levels - 1)
    full = kept > 0
    total = np.bincount(group, kept, levels)
    number = np.bincount(group, full, levels)
    quantized = np.where(full, (total / np.maximum(number, 1))[group], 0.0)
    p, q = (_smooth(d) for d in (reference, quantized))
    return float((p * np.log(p / q)).sum())


def _smooth(counts: np.ndarray) -> np.ndarray:
    share = counts / max(counts.sum(), 1e-300)
    share = np.maximum(share, _SMALL / counts.size)
    result: np.ndarray = share / share.sum()
    return result
