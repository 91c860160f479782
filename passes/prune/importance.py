"""How much a group of channels matters. A criterion is one function; everything else is shared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphopt.analysis.labels import Labels
from graphopt.ir import Model

Criterion = Callable[[np.ndarray], np.ndarray]


def l2(slices: np.ndarray) -> np.ndarray:
    """Energy of each row of ``slices`` [channels, weights of that channel]."""
    return np.einsum("ij,ij->i", slices, slices)


def l1(slices: np.ndarray) -> np.ndarray:
    """Sum of magnitudes of each row."""
    return np.abs(slices).sum(axis=1)


CRITERIA: dict[str, Criterion] = {"l2": l2, "l1": l1}


def importance(model: Model, labels: Labels, criterion: Criterion) -> np.ndarray:
    """Score [groups] of each group: its share of every weight that it indexes, summed over those weights.

    Each weight's scores are divided by their total, so that layers of different scale are comparable, and a channel
    that many layers read counts in each of them (group norm, as in DepGraph, Fang et al. 2023). Vectors such as
    biases count only for groups that index nothing else.
    """
    strong, weak = np.zeros(labels.count), np.zeros(labels.count)
    for slot, groups in labels.slots.items():
        tensor = model.graph.nodes[slot.node].inputs[slot.slot]
        values = np.asarray(tensor.values, dtype=np.float64)
        rows = np.moveaxis(values, slot.axis, 0).reshape(values.shape[slot.axis], -1)
        scores = criterion(rows)
        total = float(scores.sum())
        if total > 0:
            into = strong if sum(d > 1 for d in values.shape) > 1 or rows.shape[1] > 1 else weak
            into += np.bincount(groups, scores / total, minlength=labels.count)
    return np.where(strong > 0, strong, weak)
