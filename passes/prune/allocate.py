"""Which channels go: blocks of the least important ones of each family, until the MACs reach their target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.labels import Family, Labels
from graphopt.passes.prune.curves import Curve

# The search ends once the plan is this close to the target, as a fraction of the model's MACs.
_CLOSE = 0.004


@dataclass(frozen=True)
class Plan:
    """What stays: ``keep`` [groups], the kept count of each family, and MACs at batch 1."""

    keep: np.ndarray
    kept: tuple[int, ...]
    macs: int


class MacsModel:
    """Exact MACs as a function of how many groups each family keeps."""

    def __init__(self, labels: Labels, families: tuple[Family, ...]) -> None:
        member = np.full(labels.count, -1)
        for f, family in enumerate(families):
            member[family.groups] = f
        sizes = np.array([f.groups.size for f in families], dtype=np.int64)
        rows: list[np.ndarray] = []
        fixed: list[int] = []
        width = max([len(c.axes) for c in labels.contractions], default=0)
        index = []
        for contraction in labels.contractions:
            at = []
            for groups in contraction.axes:
                of = member[groups]
                counts = np.bincount(of[of >= 0], minlength=len(families))
                # Every group of a family occurs equally often on an axis: that is what makes it a family.
                rows.append(counts // np.maximum(sizes, 1))
                fixed.append(int((of < 0).sum()))
                at.append(len(rows) - 1)
            index.append(at + [-1] * (width - len(at)))
        rows.append(np.zeros(len(families), dtype=np.int64))
        fixed.append(1)  # the factor 1 that pads contractions with fewer axes; index -1 finds it
        self.per_family = np.stack(rows)
        self.fixed = np.array(fixed, dtype=np.int64)
        self.index = np.array(index, dtype=np.int64).reshape(len(labels.contractions), width)
        self.scale = np.array([c.scale for c in labels.contractions], dtype=np.float64)

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """MACs [m] for kept counts [m, families]."""
        sizes = self.fixed + kept @ self.per_family.T
        # Doubles hold integers up to 2**53 exactly: nine petaMACs.
        result: np.ndarray = np.prod(sizes[:, self.index].astype(np.float64), axis=2) @ self.scale
        return result


def allocate(
    labels: Labels,
    families: tuple[Family, ...],
    curves: Sequence[Curve],
    target: float,
) -> Plan:
    """Choose what to keep so that the contractions' MACs come close to ``target`` (MACs at batch 1).

    Greedy: the next block is always the one that loses the least importance per MAC saved. The last block
    overshoots, so single steps and exchanges of two steps then move towards the target. ``curves``: what each family
    may keep, and what it loses. Ties go to the family that comes first in the graph.
    """
    model = MacsModel(labels, families)
    level = np.zeros(len(families), dtype=np.int64)
    if families:
        _descend(model, curves, level, target)
        _approach(model, curves, level, target)
    keep = labels.everything()
    for step, at in zip(curves, level, strict=True):
        keep[step.order[: step.order.size - step.kept[at]]] = False
    kept = tuple(int(s.kept[at]) for s, at in zip(curves, level, strict=True))
    return Plan(keep, kept, labels.macs(keep))


def _counts(curves: Sequence[Curve], level: np.ndarray) -> np.ndarray:
    return np.array([s.kept[at] for s, at in zip(curves, level, strict=True)], dtype=np.int64)


def _moves(curves: Sequence[Curve], level: np.ndarray, by: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Families that can move one step down (by=1) or up (-1), their change of kept count, and importance lost."""
    at = [f for f, s in enumerate(curves) if 0 <= level[f] + by < s.kept.size]
    change = [int(curves[f].kept[level[f] + by] - curves[f].kept[level[f]]) for f in at]
    lost = [float(curves[f].lost[level[f] + by] - curves[f].lost[level[f]]) for f in at]
    return np.array(at, dtype=np.int64), np.array(change, dtype=np.int64), np.array(lost)


def _descend(model: MacsModel, curves: Sequence[Curve], level: np.ndarray, target: float) -> None:
    while True:
        counts = _counts(curves, level)
        macs = float(model(counts[None])[0])
        at, change, lost = _moves(curves, level, 1)
        if macs <= target or not at.size:
            return
        trial = np.repeat(counts[None], at.size, axis=0)
        trial[np.arange(at.size), at] += change
        saved = np.maximum(macs - model(trial), 1e-9)
        level[at[int(np.argmin(lost / saved))]] += 1


def _approach(model: MacsModel, curves: Sequence[Curve], level: np.ndarray, target: float) -> None:
    """Single steps and pairs (one family down, another up), whichever comes closest, until close enough."""
    total = float(model(np.array([[s.kept[0] for s in curves]]))[0])
    for _ in range(64):
        counts = _counts(curves, level)
        gap = abs(float(model(counts[None])[0]) - target)
        if gap <= _CLOSE * total:
            return
        down, down_change, _ = _moves(curves, level, 1)
        up, up_change, _ = _moves(curves, level, -1)
        best: tuple[float, list[tuple[int, int]]] = (gap, [])
        moves = [(f, c, 1) for f, c in zip(down, down_change, strict=True)]
        moves += [(f, c, -1) for f, c in zip(up, up_change, strict=True)]
        for first, change, by in [(-1, 0, 0), *moves]:
            if by == 1:
                second, second_change, second_by = up, up_change, -1
            elif by == -1:
                continue  # pairs are tried from the family that goes down
            else:
                second = np.array([m[0] for m in moves], dtype=np.int64)
                second_change = np.array([m[1] for m in moves], dtype=np.int64)
                second_by = 0
            if not second.size:
                continue
            trial = np.repeat(counts[None], second.size, axis=0)
            if by:
                trial[:, first] += change
            trial[np.arange(second.size), second] += second_change
            gaps = np.abs(model(trial) - target)
            if by:
                gaps[second == first] = np.inf
            j = int(np.argmin(gaps))
            if gaps[j] < best[0] - 1e-9:
                one = [(int(first), by)] if by else []
                best = (float(gaps[j]), [*one, (int(second[j]), second_by or moves[j][2])])
        if not best[1]:
            return
        for f, by in best[1]:
            level[f] += by
