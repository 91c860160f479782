"""Confidence intervals and tests for accuracies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class PairedDelta:
    """Two models on the same ``n`` images: the second one's accuracy minus the first one's.

    ``delta`` and ``ci95`` are in points (percent of the images). ``gained`` images only the second has right,
    ``lost`` only the first. ``mcnemar_p`` is the exact probability of so uneven a split by chance.
    """

    n: int
    delta: float
    ci95: tuple[float, float]
    mcnemar_p: float
    gained: int
    lost: int


def wilson(k: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a proportion, ``k`` of ``n``, as fractions (Wilson, 1927). With n = 0, (0, 1)."""
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no proportion")
    if n == 0:
        return (0.0, 1.0)
    p, zz = k / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    # Exact at the ends, where rounding would leave 1e-17 or 1 - 1e-16.
    return (0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947), given both counts of images that one model has right
    alone.

    It is that of ``b`` successes in ``b + c`` throws of a fair coin.
    """
    if b < 0 or c < 0:
        raise ValueError("counts cannot be negative")
    if b + c == 0:
        return 1.0
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def paired_delta(correct_a: np.ndarray, correct_b: np.ndarray) -> PairedDelta:
    """Compare two models, before (a) and after (b), by bool arrays [n] of what each got right.

    The interval is Newcombe's for paired differences ("Improved confidence intervals for the difference
    between binomial proportions based on paired data", 1998, method 10). Unlike Wald's it keeps its coverage
    when only a few images differ, which is the usual case here, and has a width even when none does.
    """
    a, b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"need two non-empty arrays of one length, not {a.shape} and {b.shape}")
    both, lost, gained = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    low, high = newcombe_paired(both, gained, lost, len(a) - both - lost - gained)
    return PairedDelta(
        n=len(a),
        delta=100 * (gained - lost) / len(a),
        ci95=(100 * low, 100 * high),
        mcnemar_p=mcnemar(gained, lost),
        gained=gained,
        lost=lost,
    )


def newcombe_paired(e: int, f: int, g: int, h: int, z: float = Z95) -> tuple[float, float]:
    """Interval (fractions) of the difference (f - g) / n of two paired proportions (Newcombe, 1998, method
    10).

    ``e`` pairs are right in both, ``f`` in the first only, ``g`` in the second only, ``h`` in neither.
    """
    n = e + f + g + h
    p1, p2 = (e + f) / n, (e + g) / n
    (l1, u1), (l2, u2) = wilson(e + f, n, z), wilson(e + g, n, z)
    margins = (e + f) * (g + h) * (e + g) * (f + h)
    product = e * h - f * g
    if margins == 0:
        phi = 0.0
    elif product > 0:
        phi = max(product - n / 2, 0) / math.sqrt(margins)  # the paper's continuity correction
    else:
        phi = product / math.sqrt(margins)
    low = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    high = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    delta = p1 - p2
    return (delta - math.sqrt(max(low, 0.0)), delta + math.sqrt(max(high, 0.0)))
