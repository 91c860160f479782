"""Which channels go: blocks of the least important ones of each family, until the cost reaches its target."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.labels import Family, Labels
from graphopt.passes.prune.costs import CostModel
from graphopt.passes.prune.curves import Curve

# The cost may end this far above and below the target, as fractions of the model's: in between, losing less is worth
# more.
_CLOSE = 0.004
_BELOW = 0.012
_EXCHANGES = 64  # at most; fewer where there are many families, as each looks at all pairs
_REACH = 6  # steps of a family in one exchange
_LEAST = 1e-12  # that an exchange must gain


@dataclass(frozen=True)
class Plan:
    """What stays: ``keep`` [groups], the kept count of each family, and the fraction of the cost that is left."""

    keep: np.ndarray
    kept: tuple[int, ...]
    fraction: float


def allocate(
    labels: Labels,
    families: tuple[Family, ...],
    curves: Sequence[Curve],
    model: CostModel,
    target: float,
) -> Plan:
    """Choose what to keep so that the cost that ``model`` gives comes close to ``target``.

    Greedy: the next block is always the one that loses the least importance per cost saved. The last block
    overshoots, and greed is short-sighted: exchanges of steps then come close to the target and lose less there.
    ``curves``: what each family may keep, and what it loses. Ties go to the family that comes first in the graph.
    """
    level = np.zeros(len(families), dtype=np.int64)
    if families:
        _descend(model, curves, level, target)
        _improve(model, curves, level, target)
    keep = labels.everything()
    kept = _counts(curves, level)
    for curve, count in zip(curves, kept, strict=True):
        keep[curve.order[: curve.order.size - count]] = False
    return Plan(keep, tuple(kept.tolist()), float(model(kept[None])[0]) / max(model.total, 1e-30))


def _counts(curves: Sequence[Curve], level: np.ndarray) -> np.ndarray:
    return np.array([c.kept[at] for c, at in zip(curves, level, strict=True)], dtype=np.int64)


def _steps_down(curves: Sequence[Curve], level: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Families that can move one step down, their change of kept count, and importance lost."""
    at = [f for f, c in enumerate(curves) if level[f] + 1 < c.kept.size]
    change = [int(curves[f].kept[level[f] + 1] - curves[f].kept[level[f]]) for f in at]
    lost = [float(curves[f].lost[level[f] + 1] - curves[f].lost[level[f]]) for f in at]
    return np.array(at, dtype=np.int64), np.array(change, dtype=np.int64), np.array(lost)


def _descend(model: CostModel, curves: Sequence[Curve], level: np.ndarray, target: float) -> None:
    while True:
        counts = _counts(curves, level)
        cost = float(model(counts[None])[0])
        at, change, lost = _steps_down(curves, level)
        if cost <= target or not at.size:
            return
        trial = np.repeat(counts[None], at.size, axis=0)
        trial[np.arange(at.size), at] += change
        saved = np.maximum(cost - model(trial), 1e-9)
        level[at[int(np.argmin(lost / saved))]] += 1


def _improve(model: CostModel, curves: Sequence[Curve], level: np.ndarray, target: float) -> None:
    """Exchange steps until none helps: first to come close to the target, then to lose less there.

    A move is one step of one family, alone or against some steps of another in the other direction.
    """

    whole = max(model.total, 1e-30)

    def excess(cost: np.ndarray) -> np.ndarray:
        """How far costs are outside the band around the target, in millionths of the model's."""
        far = np.maximum(cost - target - _CLOSE * whole, target - _BELOW * whole - cost)
        result: np.ndarray = np.maximum(far / whole * 1e6, 0.0).round()
        return result

    here = (float(excess(model(_counts(curves, level)[None]))[0]), -_LEAST)
    for _ in range(min(_EXCHANGES, max(8, 4 * _EXCHANGES**2 // max(1, len(curves)) ** 2))):
        best, change = here, np.zeros_like(level)
        for f, by in itertools.product(range(len(curves)), (1, -1)):
            if not 0 <= level[f] + by < curves[f].kept.size:
                continue
            moves = [np.where(np.arange(len(curves)) == f, by, 0)]
            for g, steps in itertools.product(range(len(curves)), range(1, _REACH + 1)):
                if g != f and 0 <= level[g] - by * steps < curves[g].kept.size:
                    move = moves[0].copy()
                    move[g] = -by * steps
                    moves.append(move)
            trial = level + np.array(moves)
            counts = np.stack([c.kept[trial[:, k]] for k, c in enumerate(curves)], axis=1)
            lost = sum(c.lost[trial[:, k]] - c.lost[level[k]] for k, c in enumerate(curves))
            far = excess(model(counts))
            j = int(np.lexsort((lost, far))[0])
            if (float(far[j]), float(lost[j])) < best:
                best, change = (float(far[j]), float(lost[j])), moves[j]
        if not change.any():
            return
        level += change
        here = (best[0], -_LEAST)
