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


def _steps_down(
    curves: Sequence[Curve], level: np.ndarray, reach: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Moves of one family by up to ``reach`` steps: the family, the steps, its change of kept count, and what it
    loses."""
    moves = [(f, by) for f, c in enumerate(curves) for by in range(1, min(reach, c.kept.size - 1 - level[f]) + 1)]
    change = [int(curves[f].kept[level[f] + by] - curves[f].kept[level[f]]) for f, by in moves]
    lost = [float(curves[f].lost[level[f] + by] - curves[f].lost[level[f]]) for f, by in moves]
    at = np.array(moves, dtype=np.int64).reshape(-1, 2)
    return at[:, 0], at[:, 1], np.array(change, dtype=np.int64), np.array(lost)


def _descend(model: CostModel, curves: Sequence[Curve], level: np.ndarray, target: float) -> None:
    # Where a single step may save nothing, only a longer one shows what a family is worth.
    reach = max(c.kept.size for c in curves) if model.stepwise else 1
    while True:
        counts = _counts(curves, level)
        cost = float(model(counts[None])[0])
        at, by, change, lost = _steps_down(curves, level, reach)
        if cost <= target or not at.size:
            return
        trial = np.repeat(counts[None], at.size, axis=0)
        trial[np.arange(at.size), at] += change
        saved = cost - model(trial)
        if model.stepwise and saved.max() <= 0:
            return
        price = lost / np.maximum(saved, 1e-9)
        if model.stepwise:
            price[saved <= 0] = np.inf
        best = int(np.argmin(price))
        level[at[best]] += by[best]


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

    count = len(curves)
    sizes = np.array([c.kept.size for c in curves])
    kept, lost = (np.zeros((count, int(sizes.max())), dtype) for dtype in (np.int64, np.float64))
    for f, curve in enumerate(curves):
        kept[f, : curve.kept.size], lost[f, : curve.kept.size] = curve.kept, curve.lost
    family = np.arange(count)
    # The other family of a move, and how many steps it goes; the last entry stands for none.
    others = np.append(np.repeat(family, _REACH), 0)
    steps = np.append(np.tile(np.arange(1, _REACH + 1), count), 0)
    here = (float(excess(model(_counts(curves, level)[None]))[0]), -_LEAST)
    for _ in range(min(_EXCHANGES, max(8, 4 * _EXCHANGES**2 // max(1, count) ** 2))):
        best, change = here, np.zeros_like(level)
        now, have = kept[family, level], lost[family, level]
        for f, by in itertools.product(range(count), (1, -1)):
            if not 0 <= level[f] + by < sizes[f]:
                continue
            to = level[others] - by * steps
            at = np.flatnonzero((to >= 0) & (to < sizes[others]) & ((others != f) | (steps == 0)))
            other, to = others[at], to[at]
            counts = np.repeat(now[None], at.size, axis=0)
            counts[np.arange(at.size), other] = kept[other, to]
            counts[:, f] = kept[f, level[f] + by]
            adds = lost[other, to] - have[other] + lost[f, level[f] + by] - have[f]
            far = excess(model(counts))
            j = int(np.lexsort((adds, far))[0])
            if (float(far[j]), float(adds[j])) < best:
                best, change = (float(far[j]), float(adds[j])), np.where(family == f, by, 0)
                change[other[j]] -= by * steps[at[j]]
        if not change.any():
            return
        level += change
        here = (best[0], -_LEAST)
