"""The target ``latency``: plan with a table of layer times, build, measure, correct, and plan again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt.analysis.cost import with_batch
from graphopt.analysis.labels import Family
from graphopt.ir import Model
from graphopt.passes.prune.allocate import Plan
from graphopt.passes.prune.costs import CostModel
from graphopt.passes.prune.goals import Goal, Result, Task
from graphopt.passes.prune.latency import LatencyModel, timed_counts, timing
from graphopt.passes.prune.layers import stretches
from graphopt.passes.prune.proof import Verdict
from graphopt.pipeline import Context
from graphopt.runtime.feeds import random_feed
from graphopt.runtime.latency import measure
from graphopt.runtime.layer_latency import kernel_microseconds
from graphopt.runtime.session import ModelSource, open_session, runnable, session_io

_TRIES, _AIMS = 6, 10  # what is built and measured, and what is planned
_CLOSE = 0.01  # to the target: measuring is no better than that
_FAR = 0.05
_SECONDS = 1.5  # of timing for each of two models, as often as it takes until their ratio is known well enough
_MOST, _PRECISE = 12, 0.005


@dataclass(frozen=True)
class LatencyGoal(Goal):
    """A fraction of the latency of the model as it was loaded, on this machine, through ONNX Runtime."""

    fraction: float

    @property
    def trivial(self) -> bool:  # type: ignore[override]
        return self.fraction >= 1.0

    def reach(self, task: Task) -> Result:
        ctx, planner = task.ctx, task.planner
        clock = Clock(ctx)
        start = clock.fraction(task.model)  # simplifying alone may have made it faster
        if start <= self.fraction:
            return Result.unchanged(task, {"latency_realised": start, **clock.metrics()})
        costs = _Costs(task, clock)
        points = [(1.0, start)]
        tried: dict[tuple[int, ...], tuple[float, Plan, Verdict]] = {}
        for _ in range(_AIMS):
            aim = _aim(points, self.fraction)
            plan, verdict = planner.plan(costs, aim)
            if plan.keep.all() or len(tried) == _TRIES:
                break
            if plan.kept in tried:  # counts are coarse: what was aimed at stands for what came out
                points.append((aim, tried[plan.kept][0]))
                continue
            real = clock.fraction(task.build(plan, refit=False)[0])
            ctx.progress.log(f"prune: {plan.fraction * start:.3f} of the latency planned, {real:.3f} measured")
            points.append((plan.fraction, real))
            tried[plan.kept] = (real, plan, verdict)
            if abs(real - self.fraction) <= _CLOSE:
                break
        if not tried:
            return Result.unchanged(task, {}, met=False)
        real, plan, verdict = min(tried.values(), key=lambda t: abs(t[0] - self.fraction))
        if real > self.fraction + _FAR:
            ctx.progress.warn(
                f"prune: {real:.0%} of the latency remains where {self.fraction:.0%} was asked for; what else there is "
                "must stay (see the skipped nodes), is held by min_keep, multiple or ratios, or saves no time"
            )
        metrics = {
            "latency_planned": round(plan.fraction * start, 4),
            "latency_realised": real,
            "latency_before_pruning": start,
            "latency_tries": len(tried),
            **clock.metrics(),
        }
        return Result(plan, verdict, *task.build(plan), metrics)


def _aim(points: Sequence[tuple[float, float]], target: float) -> float:
    """What to plan for so that ``target`` is measured, from (planned, measured) fractions; the first is (1, start).

    Linear between the least that was planned for too much and the most for too little; if all was too much, on the line
    from the first through the last.
    """
    start = points[0]
    if len(points) == 1:
        return target / start[1]
    x1, y1 = min(p for p in points if p[1] >= target)
    too_little = [p for p in points if p[1] < target]
    if too_little:
        x0, y0 = max(too_little)
        aim = x0 + (target - y0) * (x1 - x0) / (y1 - y0)
    elif y1 < start[1]:
        aim = x1 - (y1 - target) * (start[0] - x1) / (start[1] - y1)
    else:
        aim = x1 * target / y1
    return float(np.clip(aim, 0.02, 1.0))


class Clock:
    """Whole models against the one that was loaded, out of the latency table or measured."""

    def __init__(self, ctx: Context) -> None:
        self.ctx, self.table = ctx, ctx.latencies
        first = next(iter(ctx.calibration.batches(1, limit=1)), None) if len(ctx.reference.inputs) == 1 else None
        self.shape = None if first is None else tuple(int(d) for d in first.shape[1:])
        self.reference = self._sized(ctx.reference)

    def fraction(self, model: Model) -> float:
        """Latency as a fraction of the loaded model's: the median of ratios of runs that took turns."""
        twin = self._sized(model)
        with runnable(self.reference) as first, runnable(twin) as second:
            key = f"ratio {_digest(second)} {_digest(first)}"
            return self.table.lookup(key, lambda: self._ratio(first, second))

    def microseconds(self, model: Model) -> float:
        """Latency of a model's kernels, timed as those of single layers are."""
        with runnable(self._sized(model)) as form:
            return self.table.lookup(f"kernels {_digest(form)}", lambda: self._kernels(form))

    def metrics(self) -> dict[str, object]:
        """Names the table, after saving it."""
        self.table.save()
        return {"latency_table": self.table.sha256}

    def _ratio(self, first: ModelSource, second: ModelSource) -> float:
        """The median over rounds of the second's time over the first's, until its standard error is small."""
        found = np.zeros(0)
        for _ in range(_MOST):
            one, two = self._measure([first, second])
            found = np.concatenate([found, two.samples_ms / one.samples_ms])
            q1, q3 = np.percentile(found, [25, 75])
            if 1.2533 * (q3 - q1) / 1.349 / np.sqrt(found.size) < _PRECISE:  # of a median, for a normal distribution
                break
        return float(np.median(found))

    def _kernels(self, form: ModelSource) -> float:
        feed = random_feed(session_io(open_session(form, threads=self.ctx.threads)), seed=self.ctx.seed)
        return sum(kernel_microseconds(form, feed, self.ctx.threads, _SECONDS).values())

    def _measure(self, forms: list[ModelSource]):  # type: ignore[no-untyped-def]
        return measure(
            forms, threads=self.ctx.threads, seconds=_SECONDS, seed=self.ctx.seed, progress=self.ctx.progress
        )

    def _sized(self, model: Model) -> Model:
        """A copy with the size of the images, where the model leaves it open."""
        shape = model.inputs[0].shape if len(model.inputs) == 1 else None
        if self.shape is None or shape is None or all(isinstance(d, int) for d in shape[1:]):
            return model
        twin = model.copy()
        with twin.edit():
            twin.inputs[0].shape = [shape[0], *self.shape]
        return twin


def _digest(form: ModelSource) -> str:
    return hashlib.sha256(form if isinstance(form, bytes) else Path(form).read_bytes()).hexdigest()


class _Costs:
    """Latency models for whatever families are left."""

    def __init__(self, task: Task, clock: Clock) -> None:
        self.task = task
        self.twin = with_batch(task.model, 1, clock.shape)
        self.whole = clock.microseconds(task.model)
        self.time = timing(clock.table, task.ctx.threads)
        self.counts = {
            int(family.groups[0]): timed_counts(curve.kept, family.groups.size)
            for family, curve in zip(task.planner.families, task.planner.curves, strict=True)
        }
        self.known: dict[tuple[int, ...], LatencyModel] = {}

    def __call__(self, families: tuple[Family, ...]) -> CostModel:
        which = tuple(int(f.groups[0]) for f in families)
        if which not in self.known:
            sizes = np.array([f.groups.size for f in families], dtype=np.int64)
            layers = stretches(self.twin, self.task.labels, families)
            shown = self.task.ctx.progress.track(layers, "timing layers", len(layers))
            counts = [self.counts[first] for first in which]
            self.known[which] = LatencyModel(shown, counts, sizes, self.whole, self.time)
        return self.known[which]
