"""Channel pruning: labels say what can go, importance says what should, execution proves that it went cleanly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from threadpoolctl import threadpool_limits

from graphopt.analysis.cost import Cost, CostAnalysis
from graphopt.analysis.judge import Judge
from graphopt.analysis.labels import ChannelLabels, Family, Labels, held_back, why_not
from graphopt.analysis.layers.running import Images, load_images
from graphopt.analysis.layers.suited import suited
from graphopt.errors import PassError, UsageError
from graphopt.ir import Model
from graphopt.passes.prune import criteria, rewrites, taylor  # noqa: F401  (registers criteria, and what surgery rewrites)
from graphopt.passes.prune.bounded import DropGoal
from graphopt.passes.prune.costs import weight_bytes
from graphopt.passes.prune.curves import Curve, by_reconstruction, by_scores
from graphopt.passes.prune.faster import LatencyGoal
from graphopt.passes.prune.goals import CostGoal, Goal, RatioGoal, Result, Task
from graphopt.passes.prune.importance import NAMES, RECONSTRUCTION, Channels, importance, needs_images
from graphopt.passes.prune.planning import Planner, candidates, pinned
from graphopt.passes.prune.proof import proof_feeds
from graphopt.pipeline import Context, Kind, Pass, PassResult, Skipped, option
from graphopt.spec import Table, format_value

_MACS = 0.7  # what is kept when no target is given
_FRACTION = {"min": 0.05, "max": 1.0}
_TARGETS = ("macs", "params", "bytes", "latency", "max_drop", "ratio")
_NONE: Table[float] = Table()


@dataclass(frozen=True)
class Prune(Pass):
    """Remove the channels that matter least, with everything that depends on them.

    Works on any topology: channels that must go together are found by following labels through the graph, operator
    by operator. The result is proved by execution: it must equal the original with those channels masked to zero.
    One target says how much goes; without any it is macs=0.7.
    """

    name = "prune"
    kind = Kind.LOSSY
    requires = ("simplify",)

    macs: float | None = option(
        None, f"Target: fraction of the multiply-accumulates to keep; {_MACS} where no target is given", **_FRACTION
    )
    params: float | None = option(None, "Target: fraction of the parameters to keep", **_FRACTION)
    bytes: float | None = option(None, "Target: fraction of the bytes of all weights to keep", **_FRACTION)
    latency: float | None = option(
        None, "Target: fraction of the loaded model's latency to keep, measured on this machine", **_FRACTION
    )
    max_drop: float | None = option(
        None,
        "Target: as small as it gets while top-1 falls by at most so many points, on held-out images",
        min=0.0,
        max=100.0,
    )
    ratio: float | None = option(None, "Target: fraction of the channels that every layer loses", min=0.0, max=0.95)
    ratios: Table[float] = option(  # noqa: RUF009 (a dataclass field)
        _NONE,
        "Fractions to lose by producing node, whatever the target, e.g. {/layer1/*=0.5}; the first match counts",
        min=0.0,
        max=0.95,
    )
    importance: str = option(RECONSTRUCTION, "How channels are ranked", choices=NAMES)
    multiple: int = option(
        0, "Kept channel counts are multiples of this; 0: the target's, in int8 where quantize follows", min=0
    )
    min_keep: float = option(0.25, "Fraction of channels that every layer keeps at least", min=0.0, max=1.0)
    blocks: bool = option(True, "Residual branches may go as a whole, whatever min_keep says")
    recover: bool = option(True, "Refit the remaining weights on the calibration images; needs no labels")
    norms: bool = option(False, "Also channels that a LayerNormalization runs over; it goes on counting them, as zeros")
    heads: bool = option(False, "Whole attention heads, instead of the same positions in each of them")
    keep: tuple[str, ...] = option((), "Nodes to leave alone, by name or pattern, e.g. [*/head/*]")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"{name}={format_value(getattr(self, name))}" for name in _TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(
                f"prune has {len(given)} targets, {' and '.join(given)}: they could contradict each other",
                "give one of " + ", ".join(_TARGETS),
            )
        if self.macs == _MACS:  # the same as saying nothing, and written the same
            object.__setattr__(self, "macs", None)

    @property
    def needs_held_out(self) -> bool:
        return self.max_drop is not None

    def run(self, model: Model, ctx: Context) -> PassResult:
        # Small matrices: threads of linear algebra that wait for each other take longer than one. And their number,
        # which may change the last digit of a sum, must not depend on the machine.
        with threadpool_limits(ctx.threads, user_api="blas"):
            return self._run(model, ctx)

    def _run(self, model: Model, ctx: Context) -> PassResult:
        cost = ctx.analysis(CostAnalysis(), model)
        goal, ctx = self._goal(ctx, cost)
        labels = ctx.analysis(ChannelLabels(self.norms, self.heads), model)
        if not self.blocks:
            labels = replace(labels, families=tuple(replace(f, branch=None) for f in labels.families))
        images = None
        for finer, multiple in enumerate(multiples := self._multiples(ctx), start=1):
            space = candidates(labels, self.keep, self.ratios, multiple)
            skipped = [*(Skipped(x.node, x.op, x.reason, x.macs) for x in why_not(labels, cost)), *space.left]
            if goal.trivial and not any(space.ratios.values()):
                return _unchanged(model, cost, labels, space.families, skipped, {})
            images = images or self._images(model, ctx)
            curves = [
                pinned(curve, space.ratios[family.name]) if family.name in space.ratios else curve
                for family, curve in zip(
                    space.families,
                    self._curves(model, ctx, cost, labels, space.families, images, multiple),
                    strict=True,
                )
            ]
            planner = Planner(model, labels, space.families, curves, proof_feeds(model, ctx), skipped, ctx)
            task = Task(model, labels, cost, planner, images if self.recover else None, ctx, finer < len(multiples))
            result = goal.reach(task)
            if result.met or not result.plan.keep.all():
                break
        if result.met:
            return _unchanged(model, cost, labels, planner.families, skipped, result.metrics)
        if result.plan.keep.all():
            raise PassError("nothing could be pruned: " + _summary(_ordered(skipped)), _hint(planner.families))
        if result.recovery is not None:
            nodes = result.model.graph.nodes
            skipped += [Skipped(nodes[i].name, nodes[i].op, f"not refitted: {w}") for i, w in result.recovery.left]
        sizes = (weight_bytes(model), weight_bytes(result.model))
        model.replace_with(result.model)
        after = ctx.analysis(CostAnalysis(), model)
        metrics = _metrics(cost, after, sizes, labels, result, planner.touched(result.plan)) | result.metrics
        metrics |= _held_back(labels, cost, planner.families)
        if images is not None:
            metrics["synthetic_calibration"] = bool(ctx.calibration.synthetic)
        return PassResult(True, metrics, _ordered(skipped))

    def _goal(self, ctx: Context, cost: Cost) -> tuple[Goal, Context]:
        """The target, and the context in which to reach it: its calibration images are not among those it judges on."""
        if self.max_drop is not None:
            judge, rest = Judge.of(ctx, cost.macs)
            return DropGoal(self.max_drop, judge), rest
        if self.ratio is not None:
            return RatioGoal(self.ratio), ctx
        if self.latency is not None:
            return LatencyGoal(self.latency), ctx
        for name, fraction in (("params", self.params), ("bytes", self.bytes)):
            if fraction is not None:
                return CostGoal(name, fraction), ctx
        return CostGoal("macs", _MACS if self.macs is None else self.macs), ctx

    def _multiples(self, ctx: Context) -> list[int]:
        """Of channel counts: the next where one cannot reach the target, as what was asked for counts more."""
        if self.multiple:
            return [self.multiple]
        target = ctx.target
        return [*([target.int8_channel_multiple] if ctx.int8_follows else []), target.channel_multiple]

    def _images(self, model: Model, ctx: Context) -> Images | None:
        """Calibration images, decoded once for all that needs them; None where nothing does, or there are none."""
        wanted = self.recover or needs_images(self.importance)
        if not wanted or len(model.inputs) != 1 or not len(ctx.calibration):
            return None
        if ctx.calibration.synthetic:
            ctx.progress.warn(
                "prune: no images were given; channels are chosen and weights refitted on synthetic ones, which costs "
                "accuracy that was not measured"
            )
        return load_images(model, replace(ctx, calibration=suited(ctx)))

    def _curves(
        self,
        model: Model,
        ctx: Context,
        cost: Cost,
        labels: Labels,
        families: tuple[Family, ...],
        images: Images | None,
        multiple: int,
    ) -> list[Curve]:
        """What each family loses, by the chosen criterion; by the energy of weights where there are no images."""
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


def _unchanged(
    model: Model,
    cost: Cost,
    labels: Labels,
    families: tuple[Family, ...],
    skipped: list[Skipped],
    found: Mapping[str, object],
) -> PassResult:
    size = weight_bytes(model)
    metrics = {**_metrics(cost, cost, (size, size), labels, None, ()), **found, **_held_back(labels, cost, families)}
    return PassResult(False, metrics, _ordered(skipped))


def _held_back(labels: Labels, cost: Cost, families: tuple[Family, ...]) -> dict[str, object]:
    """MACs that all that was left alone takes part in: all but ``families``."""
    free = {id(f) for f in families}
    return {"macs_held_back": held_back(labels, cost, [f.groups for f in labels.families if id(f) not in free])}


def _metrics(
    before: Cost,
    after: Cost,
    weights: tuple[int, int],
    labels: Labels,
    result: Result | None,
    touched: Sequence[Family],
) -> dict[str, object]:
    plan = result.plan if result else None
    planned = 1.0
    if plan is not None:
        planned = (before.macs - labels.macs(labels.everything()) + labels.macs(plan.keep)) / max(1, before.macs)
    found: dict[str, object] = {
        "macs_planned": round(planned, 6),
        "macs_realised": round(after.macs / max(1, before.macs), 6),
        "macs_before": before.macs,
        "macs_after": after.macs,
        "params_before": before.params,
        "params_after": after.params,
        "weight_bytes_before": weights[0],
        "weight_bytes_after": weights[1],
        "families": len(labels.families),
        "families_pruned": len(touched),
        "channels_removed": 0 if plan is None else int((~plan.keep).sum()),
        "proof_max_rel_error": result.verdict.error if result else 0.0,
    }
    if result is not None and result.recovery is not None:
        found |= {
            "refitted": result.recovery.refitted,
            "refitted_pairs": result.recovery.pairs,
            "refit_images": result.recovery.images,
            "refit_error_before": round(result.recovery.error_before, 6),
            "refit_error_after": round(result.recovery.error_after, 6),
        }
    return found


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
        return "lower min_keep or multiple, or ask for a smaller model"
    return "a rule for an unknown operator can be added with graphopt.analysis.labels.rule"
