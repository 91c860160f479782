"""Latency as a function of how many channels each family keeps, from times of single layers at some counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from graphopt.errors import ModelError
from graphopt.passes.prune.layers import Stretch
from graphopt.runtime.latency_table import LatencyTable
from graphopt.runtime.layer_latency import Layer, layer_microseconds

_POINTS = 10  # counts of a family at which a layer is timed, at most
Time = Callable[[Layer], float]  # in microseconds


class LatencyModel:
    """Microseconds by kept counts.

    The time of a layer is the product of what each family it reads or makes does to it alone, corrected so that it is
    right where all keep least: exact for times that are a constant plus a multiple of each channel count and of their
    product. All that labels do not touch, and the calls between layers, is the difference to ``whole``, the measured
    time of the model. ``stepwise``: kernels compute blocks of channels, so that some steps save nothing.
    """

    stepwise = True

    def __init__(
        self,
        layers: Iterable[Stretch],
        counts: Sequence[np.ndarray],
        sizes: np.ndarray,
        whole: float,
        time: Time,
    ) -> None:
        rows, index, correction, base = [], [], [], []
        longest = int(sizes.max(initial=0)) + 1
        for layer in layers:
            try:
                full = time(layer.at(sizes))
            except ModelError:
                continue  # the runtime does not run it alone: its time is part of the rest
            least = sizes.copy()
            at = []
            for f in layer.families:
                least[f] = min(c for c in counts[f] if c)
                at.append(len(rows))
                rows.append((f, _factors(layer, f, counts[f], sizes, full, time, longest)))
            bent = 0.0
            if len(at) > 1:
                lowest = [rows[k][1][least[f]] for k, f in zip(at, layer.families, strict=True)]
                room = float(np.prod([1.0 - u for u in lowest]))
                if room > 0.05:
                    bent = float((time(layer.at(least)) / full - np.prod(lowest)) / room)
            index.append(at)
            correction.append(bent)
            base.append(full)
        self.family = np.array([f for f, _ in rows] + [0], dtype=np.int64)
        self.table = np.stack([u for _, u in rows] + [np.ones(longest)])
        width = max(map(len, index), default=0)
        padded = [at + [-1] * (width - len(at)) for at in index]
        self.index = np.array(padded, dtype=np.int64).reshape(len(base), width)
        self.used = self.index >= 0
        self.base = np.array(base)
        self.correction = np.array(correction)
        self.rest = max(whole - float(self.base.sum()), 0.0)
        self.total = self.rest + float(self.base.sum())

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        rows = np.arange(len(self.table))
        factors = self.table[rows, kept[:, self.family]] if kept.shape[1] else np.ones((len(kept), len(rows)))
        product = np.prod(factors[:, self.index], axis=2)
        missing = np.prod(np.where(self.used, 1.0 - factors[:, self.index], 1.0), axis=2)
        missing[product == 0.0] = 0.0  # layers that have gone with their branch
        result: np.ndarray = self.rest + np.maximum(product + self.correction * missing, 0.0) @ self.base
        return result


def _factors(
    layer: Stretch,
    family: int,
    counts: np.ndarray,
    sizes: np.ndarray,
    full: float,
    time: Time,
    longest: int,
) -> np.ndarray:
    """The layer's time relative to ``full``, by the count that one family keeps: timed at ``counts``, and linear in
    between."""
    found = []
    for count in counts:
        kept = sizes.copy()
        kept[family] = count
        found.append(time(layer.at(kept)) / full if count else 0.0)
    rising = np.argsort(counts)
    result: np.ndarray = np.interp(np.arange(longest), counts[rising], np.array(found)[rising])
    return result


def timed_counts(kept: np.ndarray, size: int) -> np.ndarray:
    """Counts at which layers are timed, from the whole family downwards: all that it may keep, or some of them; and
    none, where it may go as a whole."""
    every = np.unique(np.concatenate([[size], kept[kept > 0]]))[::-1]
    at = np.linspace(0, every.size - 1, min(_POINTS, every.size)).round().astype(int)
    return np.concatenate([every[at], [0] * int((kept == 0).any())])


def timing(table: LatencyTable, threads: int) -> Time:
    """The time of a layer in microseconds, out of the table or measured."""
    return lambda layer: table.lookup(layer.key, lambda: layer_microseconds(layer, threads))
