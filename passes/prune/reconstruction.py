"""Importance by reconstruction: how badly the layers that read a channel can do without it.

A layer that loses inputs may make up for them with those that stay. The least squared error that then remains is the
Schur complement of its inputs' second moments (optimal brain surgeon, Hassibi and Stork 1993; for channels, Kuznedelev
et al. 2023 and others); channels go one after the other, each time the one that adds least to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.labels import Family
from graphopt.passes.prune.statistics import Reader

# The ridge, as a fraction of the mean variance of the inputs: at least, and for as many rows as inputs. With few rows
# anything can be predicted, which does not hold for the next image.
_RIDGE, _SCARCE = 1e-3, 0.1
_ROUNDS = 96  # at most; larger families lose several channels at a time


@dataclass(frozen=True)
class Elimination:
    """Groups of one family in the order in which they can go, and the error once the first k of them are gone [k+1].

    The error is the sum over readers of the squared error relative to the variance of what they compute.
    ``weights``: what the readers, in their order, are best given at some of the counts (gone: weights).
    """

    order: np.ndarray
    error: np.ndarray
    weights: dict[int, tuple[np.ndarray, ...]]


class _Layer:
    """One reader while its inputs go: the inverse of its second moments, and its weight, made up to what has gone."""

    def __init__(self, reader: Reader, groups: np.ndarray) -> None:
        inputs = reader.gram.shape[1]
        scale = np.trace(reader.gram, axis1=1, axis2=2)[:, None, None] / inputs
        ridge = max(_RIDGE, _SCARCE * inputs / reader.rows)
        self.inverse = np.linalg.inv(reader.gram + (ridge * scale + 1e-12) * np.eye(inputs))
        self.weight = reader.weight.copy()
        self.factor = 1.0 / reader.variance
        by_group = np.argsort(reader.columns, kind="stable")
        start = np.searchsorted(reader.columns[by_group], groups)
        times = int((reader.columns == groups[0]).sum())  # alike for all groups of a family
        self.at = by_group[start[:, None] + np.arange(times)]

    def costs(self, rows: np.ndarray) -> np.ndarray:
        """Error that each of the groups in these rows adds when it alone goes."""
        at = self.at[rows]
        block = self.inverse[:, at[:, :, None], at[:, None, :]]
        weight = self.weight[:, at]
        return self.factor * np.einsum("gmbo,gmbo->m", weight, np.linalg.solve(block, weight))

    def remove(self, rows: np.ndarray) -> float:
        """Let groups go; the error that this adds."""
        at = self.at[rows].reshape(-1)
        block, weight, side = self.inverse[:, at[:, None], at], self.weight[:, at], self.inverse[:, :, at]
        made_up = np.linalg.solve(block, weight)
        error = self.factor * float(np.einsum("gbo,gbo->", weight, made_up))
        self.weight -= side @ made_up
        self.inverse -= side @ np.linalg.solve(block, side.transpose(0, 2, 1))
        # Gone for good: out of the way of rounding.
        self.weight[:, at] = 0.0
        self.inverse[:, at, :] = 0.0
        self.inverse[:, :, at] = 0.0
        return error


def eliminate(family: Family, readers: Sequence[Reader], least: int, stops: Sequence[int]) -> Elimination:
    """Let the groups of a family go, the cheapest first, until ``least`` are left. ``stops``: see ``weights``."""
    groups = family.groups
    layers = [_Layer(r, groups) for r in readers]
    left = np.arange(groups.size)
    order: list[int] = []
    error = [0.0]
    kept: dict[int, tuple[np.ndarray, ...]] = {}
    marks = sorted({s for s in stops if 0 < s <= groups.size - least})
    size = max(1, groups.size // _ROUNDS)
    while left.size > least:
        until = next((m for m in marks if m > len(order)), groups.size - least)
        count = min(size, until - len(order))
        costs = sum(layer.costs(left) for layer in layers)
        first = np.argsort(costs, kind="stable")[:count]
        gone = left[first]
        added = sum(layer.remove(gone) for layer in layers)
        error.extend(error[-1] + added * np.arange(1, count + 1) / count)
        order.extend(int(k) for k in gone)
        left = np.delete(left, first)
        if len(order) in marks:
            kept[len(order)] = tuple(layer.weight.astype(np.float32) for layer in layers)
    return Elimination(groups[np.array([*order, *left], dtype=np.int64)], np.array(error), kept)
