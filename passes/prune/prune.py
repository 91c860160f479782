"""Channel pruning: labels say what can go, importance says what should, execution proves that it went cleanly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.analysis.cost import Cost, CostAnalysis
from graphopt.analysis.labels import ChannelLabels, Family, Labels, held_back, why_not
from graphopt.errors import PassError, UsageError
from graphopt.ir import Model
from graphopt.passes.prune import criteria, rewrites, taylor  # noqa: F401  (registers criteria, and what surgery rewrites)
from graphopt.passes.prune.allocate import Plan, allocate
from graphopt.passes.prune.curves import Curve, by_reconstruction, by_scores
from graphopt.passes.prune.importance import NAMES, RECONSTRUCTION, Channels, importance, needs_images
from graphopt.passes.prune.proof import Verdict, check, guilty, proof_feeds
from graphopt.passes.prune.recover import recover
from graphopt.passes.prune.running import Images, load_images
from graphopt.passes.prune.surgery import remove
from graphopt.pipeline import Context, Kind, Pass, PassResult, Skipped, option
from graphopt.pipeline.patterns import matching, unmatched

_TOLERANCE = 0.03


@dataclass(frozen=True)
class Prune(Pass):
    """Remove the channels that matter least, with everything that depends on them.

    Works on any topology: channels that must go together are found by following labels through the graph, operator
    by operator. The result is proved by execution: it must equal the original with those channels masked to zero.
    """

    name = "prune"
    kind = Kind.LOSSY
    requires = ("simplify",)

    macs: float = option(0.7, "Multiply-accumulates to keep, as a fraction of the input model's", min=0.05, max=1.0)
    importance: str = option(RECONSTRUCTION, "How channels are ranked", choices=NAMES)
    multiple: int = option(0, "Kept channel counts are multiples of this; 0: the target's", min=0)
    min_keep: float = option(0.25, "Fraction of channels that every layer keeps at least", min=0.0, max=1.0)
    recover: bool = option(True, "Refit the remaining weights on the calibration images; needs no labels")
    keep: tuple[str, ...] = option((), "Nodes to leave alone, by name or pattern, e.g. [*/head/*]")

    def run(self, model: Model, ctx: Context) -> PassResult:
        cost = ctx.analysis(CostAnalysis(), model)
        labels = ctx.analysis(ChannelLabels(), model)
        skipped = [Skipped(x.node, x.op, x.reason, x.macs) for x in why_not(labels, cost)]
        families, left = self._candidates(labels, ctx.target.channel_multiple)
        skipped += left
        if self.macs >= 1.0:
            metrics = _metrics(cost, cost, labels, None, 0.0) | _held_back(labels, cost, families)
            return PassResult(False, metrics, _ordered(skipped))
        feeds = proof_feeds(model, ctx)
        images = self._images(model, ctx)
        plan, verdict, families = self._plan(model, ctx, cost, labels, families, images, feeds, skipped)
        if plan.keep.all():
            raise PassError("nothing could be pruned: " + _summary(_ordered(skipped)), _hint(families))
        original = model.copy()
        remove(model, labels, plan.keep)
        recovery = None
        if self.recover and images is not None:
            recovery = recover(original, model, labels, plan.keep, images, ctx)
        after = ctx.analysis(CostAnalysis(), model)
        planned = _fraction(cost, labels, plan)
        if planned > self.macs + _TOLERANCE:
            ctx.progress.warn(
                f"prune: {planned:.0%} of the multiply-accumulates remain where {self.macs:.0%} were asked for; "
                "what else there is must stay (see the skipped nodes) or is held by min_keep and multiple"
            )
        metrics = _metrics(cost, after, labels, plan, verdict.error, families) | _held_back(labels, cost, families)
        if recovery is not None:
            metrics |= {
                "refitted": recovery.refitted,
                "refit_images": recovery.images,
                "refit_error_before": round(recovery.error_before, 6),
                "refit_error_after": round(recovery.error_after, 6),
            }
        return PassResult(True, metrics, _ordered(skipped))

    def _images(self, model: Model, ctx: Context) -> Images | None:
        """Calibration images, decoded once for all that needs them; None where nothing does, or there are none."""
        wanted = self.recover or needs_images(self.importance)
        return load_images(model, ctx) if wanted and len(model.inputs) == 1 and len(ctx.calibration) > 0 else None

    def _candidates(self, labels: Labels, multiple: int) -> tuple[tuple[Family, ...], list[Skipped]]:
        """Families that may lose channels, and those that the options leave alone."""
        stray = unmatched(self.keep, labels.names)
        if stray is not None:
            raise UsageError(f"no node is named {stray!r}", "see graphopt inspect for the names of nodes")
        multiple = self.multiple or multiple
        free, left = [], []
        for family in labels.families:
            nodes = [*family.producers, *(labels.names[s.node] for s in family.slots)]
            named = [n for n in nodes if matching(n, self.keep) is not None]
            reason = ""
            if named:
                reason = f"its channels reach {named[0]!r}, which the option keep leaves alone"
            elif family.groups.size <= multiple:
                reason = f"its {family.groups.size} channels are not more than the channel multiple {multiple}"
            if reason:
                left.append(_skipped(labels, family, reason))
            else:
                free.append(family)
        return tuple(free), left

    def _plan(
        self,
        model: Model,
        ctx: Context,
        cost: Cost,
        labels: Labels,
        families: tuple[Family, ...],
        images: Images | None,
        feeds: list[dict[str, np.ndarray]],
        skipped: list[Skipped],
    ) -> tuple[Plan, Verdict, tuple[Family, ...]]:
        """Allocate and prove; a family that breaks the proof is locked, reported, and planned without."""
        curves = self._curves(model, ctx, cost, labels, families, images)
        # What labels do not follow (contractions inside unknown operators) stays as it is.
        target = self.macs * cost.macs - (cost.macs - labels.macs(labels.everything()))
        while True:
            plan = allocate(labels, families, curves, target)
            if plan.keep.all():
                return plan, Verdict(True, 0.0), families
            verdict = check(model, labels, plan.keep, feeds)
            if verdict.holds:
                return plan, verdict, families
            ctx.progress.warn(f"prune: the proof failed ({verdict.reason}); looking for the channels at fault")
            culprit = self._culprit(model, labels, plan, families, feeds)
            why = check(model, labels, _only(labels, plan, [culprit]), feeds).reason or verdict.reason
            skipped.append(_skipped(labels, culprit, f"removing its channels is not exact: {why}"))
            kept = [k for k, f in enumerate(families) if f is not culprit]
            families, curves = tuple(families[k] for k in kept), [curves[k] for k in kept]

    def _curves(
        self,
        model: Model,
        ctx: Context,
        cost: Cost,
        labels: Labels,
        families: tuple[Family, ...],
        images: Images | None,
    ) -> list[Curve]:
        """What each family loses, by the chosen criterion; by the energy of weights where there are no images."""
        multiple = self.multiple or ctx.target.channel_multiple
        if self.importance != RECONSTRUCTION:
            scores = importance(self.importance, Channels(model, labels, families, images, ctx))
            return by_scores(families, scores, multiple, self.min_keep)
        scores = importance("l2", Channels(model, labels, families, None, ctx))
        if images is None or not images.count:
            ctx.progress.warn(
                "prune: no images to reconstruct outputs on; channels are ranked by the energy of weights"
            )
            return by_scores(families, scores, multiple, self.min_keep)
        return by_reconstruction(model, labels, families, scores, multiple, self.min_keep, images, cost.macs, ctx)

    def _culprit(
        self, model: Model, labels: Labels, plan: Plan, families: tuple[Family, ...], feeds: list[dict[str, np.ndarray]]
    ) -> Family:
        touched = [f for f in families if not plan.keep[f.groups].all()]
        at = guilty(len(touched), lambda k: check(model, labels, _only(labels, plan, touched[:k]), feeds).holds)
        return touched[at]


def _only(labels: Labels, plan: Plan, families: list[Family]) -> np.ndarray:
    """The plan's keep mask, restricted to some families: all else stays."""
    keep = labels.everything()
    for family in families:
        keep[family.groups] = plan.keep[family.groups]
    return keep


def _skipped(labels: Labels, family: Family, reason: str) -> Skipped:
    op = _op(labels, family.name)
    return Skipped(family.name, op, reason, labels.holding(family.groups))


def _held_back(labels: Labels, cost: Cost, families: tuple[Family, ...]) -> dict[str, object]:
    """MACs that all that was left alone takes part in: all but ``families``."""
    free = {id(f) for f in families}
    return {"macs_held_back": held_back(labels, cost, [f.groups for f in labels.families if id(f) not in free])}


def _op(labels: Labels, name: str) -> str:
    return labels.ops[labels.names.index(name)] if name in labels.names else ""


def _fraction(cost: Cost, labels: Labels, plan: Plan) -> float:
    return (cost.macs - labels.macs(labels.everything()) + plan.macs) / max(1, cost.macs)


def _metrics(
    before: Cost,
    after: Cost,
    labels: Labels,
    plan: Plan | None,
    error: float,
    families: tuple[Family, ...] = (),
) -> dict[str, object]:
    touched = [f for f in families if plan is not None and not plan.keep[f.groups].all()]
    return {
        "macs_planned": 1.0 if plan is None else round(_fraction(before, labels, plan), 6),
        "macs_realised": round(after.macs / max(1, before.macs), 6),
        "macs_before": before.macs,
        "macs_after": after.macs,
        "params_before": before.params,
        "params_after": after.params,
        "families": len(labels.families),
        "families_pruned": len(touched),
        "channels_removed": 0 if plan is None else int((~plan.keep).sum()),
        "proof_max_rel_error": error,
    }


def _ordered(skipped: list[Skipped]) -> list[Skipped]:
    """Each once, what holds back most first."""
    return sorted(dict.fromkeys(skipped), key=lambda s: -(s.macs_held_back or 0))


def _summary(skipped: list[Skipped], most: int = 4) -> str:
    """The reasons why nothing can go, in words, the first few."""
    if not skipped:
        return "it has no channels that graphopt can follow (no convolution or product with constant weights)"
    said = [f"{s.node!r} ({s.op}): {s.reason}" for s in skipped[:most]]
    more = f"; and {len(skipped) - most} more" if len(skipped) > most else ""
    return "; ".join(said) + more


def _hint(families: tuple[Family, ...]) -> str:
    if families:
        return "lower min_keep or multiple, or ask for fewer MACs"
    return "a rule for an unknown operator can be added with graphopt.analysis.labels.rule"
