"""Multiply-accumulates that channels take part in: what removing them could save, so what locking them holds back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from graphopt.analysis.cost import Cost
    from graphopt.analysis.labels.result import Contraction, Labels, Locked


class Holding:
    """MACs at batch 1 that sets of groups take part in. Building it is linear in the sizes of the contractions' axes;
    a question is linear in the places where its groups occur."""

    def __init__(self, contractions: Sequence[Contraction], count: int) -> None:
        self._contractions = contractions
        axes = [(c, groups) for c, found in enumerate(contractions) for groups in found.axes]
        self._owner = np.array([c for c, _ in axes], dtype=np.int64)
        self._sizes = [groups.size for _, groups in axes]
        groups = np.concatenate([np.zeros(0, np.int64), *[g for _, g in axes]])
        number = np.repeat(np.arange(len(axes)), self._sizes)
        order = np.argsort(groups, kind="stable")
        self._axis = number[order]
        self._start = np.searchsorted(groups[order], np.arange(count + 1))
        self._of: list[list[int]] = [[] for _ in contractions]
        for k, owner in enumerate(self._owner):
            self._of[owner].append(k)
        self._known: dict[bytes, int] = {}

    def __call__(self, groups: np.ndarray) -> int:
        """MACs that would go if just these groups went: those of every product that one of them is a factor of."""
        groups = np.unique(groups)
        key = groups.tobytes()  # the channels of a residual stream are made at many nodes
        if key not in self._known:
            spans = [self._axis[self._start[g] : self._start[g + 1]] for g in groups]
            hit, times = np.unique(np.concatenate([np.zeros(0, np.int64), *spans]), return_counts=True)
            gone = dict(zip(hit.tolist(), times.tolist(), strict=True))
            total = 0
            for c in np.unique(self._owner[hit]):
                axes = self._of[c]
                whole = prod(self._sizes[k] for k in axes)
                left = prod(self._sizes[k] - gone.get(k, 0) for k in axes)
                total += self._contractions[c].scale * (whole - left)
            self._known[key] = total
        return self._known[key]


def why_not(labels: Labels, cost: Cost) -> list[Locked]:
    """What must stay and why, what holds back most first.

    ``macs`` of a node that no rule follows includes those of its own that the labels do not know.
    """
    followed = {labels.names[c.node] for c in labels.contractions}
    found = []
    for entry in labels.locked:
        node = cost.by_node.get(entry.node)
        own = (node.macs or 0) if entry.unfollowed and node is not None and entry.node not in followed else 0
        found.append(replace(entry, macs=entry.macs + own))
    return sorted(found, key=lambda entry: -entry.macs)


def held_back(labels: Labels, cost: Cost, also: Sequence[np.ndarray] = ()) -> int:
    """MACs that all that must stay takes part in, each counted once. ``also``: further groups that stay."""
    fixed = np.concatenate([np.flatnonzero(labels.fixed), *also])
    unfollowed = cost.macs - labels.macs(labels.everything())
    return labels.holding(fixed) + max(0, unfollowed)
