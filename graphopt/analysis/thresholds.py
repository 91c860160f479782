"""Which range a tensor gets when rare values may be cut off: least squared error, least divergence."""

from __future__ import annotations

import numpy as np

from graphopt.analysis.histogram import Histogram

_GRID = 100  # shares of an extreme that are tried
_BINS = 2048  # of equal width, for the divergence
_LEAST = 128  # bins that a range keeps at least
_SMALL = 1e-4  # probability in place of none


def mse_range(histogram: Histogram, low: float, high: float, levels: int = 256) -> tuple[float, float]:
    """The range within [low, high] whose rounding and clipping have the least mean squared error together.

    Values inside are off by a twelfth of a squared step on average, those smaller than half a step by themselves, those
    outside by their distance. Both ends are searched at once on a grid of shares (as in Nagel et al. 2021, A White
    Paper on Neural Network Quantization, section 3.1); sums over the bins from the left make each try cheap.
    """
    edges_low, edges_high, counts = histogram.bins()
    if not counts.size or not high > low:
        return low, high
    x = np.clip((edges_low + edges_high) / 2, low, high)
    weight = counts.astype(np.float64)
    sums = [np.concatenate([[0.0], np.cumsum(weight * x**k)]) for k in range(3)]

    def above(at: int, bound: float) -> float:
        n, first, second = (s[-1] - s[at] for s in sums)
        return float(second - 2 * bound * first + bound * bound * n)

    def below(at: int, bound: float) -> float:
        n, first, second = (s[at] for s in sums)
        return float(second - 2 * bound * first + bound * bound * n)

    shares = np.linspace(1.0, 1.0 / _GRID, _GRID)
    best, found = np.inf, (low, high)
    for a in shares if low < 0 else shares[:1]:
        for b in shares if high > 0 else shares[:1]:
            lower, upper = min(low * a, 0.0), max(high * b, 0.0)
            step = (upper - lower) / (levels - 1)
            left, inner_low, inner_high, right = np.searchsorted(x, [lower, -step / 2, step / 2, upper])
            n = sums[0]
            rounded = (n[right] - n[left]) - (n[inner_high] - n[inner_low])
            error = rounded * step * step / 12 + sums[2][inner_high] - sums[2][inner_low]
            error += below(int(left), lower) + above(int(right), upper)
            if error < best:
                best, found = error, (low * a, high * b)
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
