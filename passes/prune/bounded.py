"""The target ``max_drop``: the smallest model whose drop of top-1, measured on images apart, stays within a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.analysis.judge import Drop, Judge
from graphopt.errors import PassError
from graphopt.ir import Model
from graphopt.passes.prune.allocate import Plan
from graphopt.passes.prune.goals import Goal, Result, Task
from graphopt.passes.prune.proof import Verdict
from graphopt.passes.prune.recover import Recovery

_TRIES = 8
_FIRST = 0.7  # of the MACs
_APART = 0.02  # fractions of the MACs: no search between two that are closer
_INSIDE = 0.25  # a try is at least this part of the bracket away from its ends


@dataclass(frozen=True)
class _Try:
    """One fraction of the MACs: what was planned, built, and how it was judged."""

    plan: Plan
    verdict: Verdict
    model: Model
    recovery: Recovery | None
    drop: Drop


@dataclass(frozen=True)
class DropGoal(Goal):
    """The fewest multiply-accumulates at which the upper bound of the drop is at most ``points``."""

    points: float
    judge: Judge

    def reach(self, task: Task) -> Result:
        """Search by narrowing a bracket of MACs fractions: its upper end holds the bound, its lower end does not."""
        best: _Try | None = None
        mildest: tuple[float, Drop] | None = None
        floor = _floor(task)
        high, low = (1.0, 0.0), (floor, np.inf)  # fraction, and the drop's upper bound there
        aim = max(_FIRST, floor)
        drops: dict[tuple[int, ...], Drop] = {}
        while len(drops) < _TRIES and high[0] - low[0] > _APART:
            plan, verdict = task.planner.plan(task.macs, aim)
            if plan.keep.all():
                break
            known = drops.get(plan.kept)
            if known is None:
                model, recovery = task.build(plan)
                drop = drops[plan.kept] = self.judge.drop(model, self.points)
                task.ctx.progress.log(
                    f"prune: {plan.fraction:.3f} of the MACs lose {drop.points:.2f} points "
                    f"({drop.low:.2f} to {drop.high:.2f} on {drop.n} images)"
                )
                if drop.high > self.points:
                    mildest = (plan.fraction, drop)
                elif best is None or plan.fraction < best.plan.fraction:
                    best = _Try(plan, verdict, model, recovery, drop)
            else:
                drop = known  # where counts are coarse, what was aimed at stands for what came out
            fraction = plan.fraction if known is None else aim
            if drop.high <= self.points:
                high = (min(fraction, high[0]), drop.high)
            else:
                low = (max(fraction, low[0]), drop.high)
            aim = self._between(high, low)
        if best is None:
            return self._none(task, mildest)
        return Result(best.plan, best.verdict, best.model, best.recovery, self._metrics(best.drop, len(drops)))

    def _between(self, high: tuple[float, float], low: tuple[float, float]) -> float:
        """Where the bound is reached if the drop grows with the square of what is removed, as it does at first; but not
        near the ends of the bracket."""
        part = 0.5
        if np.isfinite(low[1]):
            target, here, there = np.sqrt(np.maximum([self.points, high[1], low[1]], 0.0))
            part = (target - here) / (there - here)
        return high[0] - float(np.clip(part, _INSIDE, 1 - _INSIDE)) * (high[0] - low[0])

    def _none(self, task: Task, mildest: tuple[float, Drop] | None) -> Result:
        if mildest is None:
            return Result.unchanged(task, {}, met=False)
        fraction, drop = mildest
        what = "top-1" if self.judge.labels else "changed predictions"
        raise PassError(
            f"no pruned model stays within {self.points:g} points of {what}: with {fraction:.1%} of the "
            f"multiply-accumulates left it loses {drop.points:.2f} on {drop.n} held-out images, and up to "
            f"{drop.high:.2f} by chance",
            "allow a larger drop, or give more calibration images: with few, only large drops can be ruled out",
        )

    def _metrics(self, drop: Drop, tries: int) -> dict[str, Any]:
        return {
            "drop_points": round(drop.points, 4),
            "drop_points_upper95": round(drop.high, 4),
            "held_out_images": drop.n,
            "held_out_labels": self.judge.labels,
            "drop_tries": tries,
        }


def _floor(task: Task) -> float:
    """The fraction of the MACs that is left where every family keeps as few channels as it may."""
    costs = task.macs(task.planner.families)
    least = np.array([[c.kept[-1] for c in task.planner.curves]], dtype=np.int64)
    return float(costs(least)[0]) / max(costs.total, 1e-30)
