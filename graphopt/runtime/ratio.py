"""How many times as long one model takes as another, measured until that is known well enough to decide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.progress import Progress
from graphopt.runtime.latency import measure
from graphopt.runtime.session import ModelSource

_MEDIAN = 1.2533 / 1.349  # the standard error of a median is this times the quartiles' distance, over sqrt(rounds)


@dataclass(frozen=True)
class Ratio:
    """Median time of the first in microseconds, and the median over rounds of the second's time over the first's."""

    first_us: float
    ratio: float
    error: float


def time_ratio(
    first: ModelSource,
    second: ModelSource,
    *,
    threads: int = 1,
    seconds: float = 0.2,
    most: int = 8,
    precise: float = 0.005,
    sure: float | None = 3.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ratio:
    """Time both in turns, ``seconds`` each, up to ``most`` times.

    It ends as soon as the standard error of the ratio is below ``precise``, or the ratio lies more than ``sure``
    standard errors (None: never) from 1: then it is known which of the two is faster.
    """
    found, times = np.zeros(0), np.zeros(0)
    value, error = 1.0, float("inf")
    for _ in range(most):
        one, two = measure([first, second], threads=threads, seconds=seconds, seed=seed, progress=progress)
        found = np.concatenate([found, two.samples_ms / one.samples_ms])
        times = np.concatenate([times, one.samples_ms])
        q1, value, q3 = (float(q) for q in np.percentile(found, [25, 50, 75]))
        error = _MEDIAN * (q3 - q1) / np.sqrt(found.size)
        if error < precise or (sure is not None and abs(value - 1) > sure * error):
            break
    return Ratio(1000 * float(np.median(times)), value, error)
