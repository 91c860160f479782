"""What all plans for one model share: the families that may lose channels, what each loses, and the proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.labels import Family, Labels
from graphopt.errors import UsageError
from graphopt.ir import Model
from graphopt.passes.prune.allocate import Plan, allocate
from graphopt.passes.prune.costs import CostModel
from graphopt.passes.prune.curves import Curve
from graphopt.passes.prune.proof import Feeds, Verdict, check, guilty
from graphopt.pipeline import Context, Skipped
from graphopt.pipeline.patterns import matching, require_matches
from graphopt.spec import Table

Costs = Callable[[tuple[Family, ...]], CostModel]


@dataclass(frozen=True)
class Space:
    """Families that may lose channels, those whose part to lose was given (by family name), and why others may not."""

    families: tuple[Family, ...]
    ratios: dict[str, float]
    left: list[Skipped]


def candidates(labels: Labels, keep: tuple[str, ...], ratios: Table[float], multiple: int) -> Space:
    """What the options ``keep`` and ``ratios`` and the channel multiple leave to choose from.

    Raises UsageError for a pattern that matches no node, or, in ``ratios``, none whose channels can be removed.
    """
    require_matches([*keep, *(pattern for pattern, _ in ratios)], labels.names)
    part = dict(ratios)
    free, given, left, used = [], {}, [], set()
    for family in labels.families:
        nodes = [*family.producers, *(labels.names[s.node] for s in family.slots)]
        named = [n for n in nodes if matching(n, keep) is not None]
        pattern = next((p for p in part if any(matching(n, [p]) for n in family.producers)), None)
        reason = ""
        if named:
            reason = f"its channels reach {named[0]!r}, which the option keep leaves alone"
        elif family.groups.size <= multiple and family.branch is None:
            reason = f"its {family.groups.size} channels are not more than the channel multiple {multiple}"
        if reason:
            left.append(_skipped(labels, family, reason))
            continue
        free.append(family)
        if pattern is not None:
            given[family.name] = part[pattern]
        used |= {p for p in part if any(matching(n, [p]) for n in family.producers)}
    idle = next((p for p in part if p not in used), None)
    if idle is not None:
        why = next((s.reason for s in (*labels.locked, *left) if matching(s.node, [idle])), "they make no channels")
        raise UsageError(f"the option ratios names {idle!r}, but no channels of these nodes can be removed", why)
    return Space(tuple(free), given, left)


def _skipped(labels: Labels, family: Family, reason: str) -> Skipped:
    name = family.name
    op = labels.ops[labels.names.index(name)] if name in labels.names else ""
    return Skipped(name, op, reason, labels.holding(family.groups))


def pinned(curve: Curve, ratio: float) -> Curve:
    """The curve with one choice left: the count nearest to losing ``ratio`` of all, rounded up to a whole channel; of
    two, the one that keeps more."""
    at = int(np.argmin(np.abs(curve.kept - np.floor((1.0 - ratio) * curve.order.size + 1e-9))))
    return Curve(curve.order, curve.kept[at : at + 1], curve.lost[at : at + 1])


class Planner:
    """Plans for one model. A family that breaks the proof is reported in ``skipped`` and planned without from then
    on."""

    def __init__(
        self,
        model: Model,
        labels: Labels,
        families: tuple[Family, ...],
        curves: Sequence[Curve],
        feeds: Feeds,
        skipped: list[Skipped],
        ctx: Context,
    ) -> None:
        self.model, self.labels, self.feeds, self.skipped, self.ctx = model, labels, feeds, skipped, ctx
        self.families, self.curves = families, list(curves)

    def plan(self, costs: Costs, target: float) -> tuple[Plan, Verdict]:
        """Allocate so that the cost comes close to the fraction ``target`` of the model's, and prove it."""
        while True:
            model = costs(self.families)
            plan = allocate(self.labels, self.families, self.curves, model, target * model.total)
            if plan.keep.all():
                return plan, Verdict(True, 0.0)
            verdict = check(self.model, self.labels, plan.keep, self.feeds)
            if verdict.holds:
                return plan, verdict
            self.ctx.progress.warn(f"prune: the proof failed ({verdict.reason}); looking for the channels at fault")
            self._lock(self._culprit(plan), plan, verdict)

    def touched(self, plan: Plan) -> list[Family]:
        """The families that lose channels."""
        return [f for f in self.families if not plan.keep[f.groups].all()]

    def _culprit(self, plan: Plan) -> Family:
        touched = self.touched(plan)
        at = guilty(len(touched), lambda k: self._check(plan, touched[:k]).holds)
        return touched[at]

    def _lock(self, culprit: Family, plan: Plan, verdict: Verdict) -> None:
        why = self._check(plan, [culprit]).reason or verdict.reason
        self.skipped.append(_skipped(self.labels, culprit, f"removing its channels is not exact: {why}"))
        kept = [k for k, f in enumerate(self.families) if f is not culprit]
        self.families = tuple(self.families[k] for k in kept)
        self.curves = [self.curves[k] for k in kept]

    def _check(self, plan: Plan, families: list[Family]) -> Verdict:
        """Prove the plan for some families alone."""
        keep = self.labels.everything()
        for family in families:
            keep[family.groups] = plan.keep[family.groups]
        return check(self.model, self.labels, keep, self.feeds)
