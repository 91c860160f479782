"""What can be asked of a pruning: each kind of target is one small class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from graphopt.analysis.cost import Cost
from graphopt.analysis.labels import Family, Labels
from graphopt.analysis.layers.running import Images
from graphopt.ir import Model
from graphopt.passes.eliminate import Eliminate
from graphopt.passes.prune.allocate import Plan
from graphopt.passes.prune.costs import CostModel, bytes_model, macs_model, params_model
from graphopt.passes.prune.planning import Costs, Planner, pinned
from graphopt.passes.prune.proof import Verdict
from graphopt.passes.prune.recover import Recovery, recover
from graphopt.passes.prune.surgery import remove
from graphopt.pipeline import Context

_TOLERANCE = 0.03


@dataclass(frozen=True)
class Task:
    """A model to prune, and what every try at it needs. ``images`` are for the refit, None where there is none.

    ``finer``: counts between those of the planner could be tried: it need not settle for what is far from the target.
    """

    model: Model
    labels: Labels
    cost: Cost
    planner: Planner
    images: Images | None
    ctx: Context
    finer: bool = False

    def macs(self, families: tuple[Family, ...]) -> CostModel:
        """Multiply-accumulates by what families keep."""
        return macs_model(self.labels, families, self.cost)

    def build(self, plan: Plan, refit: bool = True) -> tuple[Model, Recovery | None]:
        """A pruned copy of the model."""
        twin = self.model.copy()
        remove(twin, self.labels, plan.keep)
        if self.labels.cut(plan.keep):  # what a branch was added to may be rectified twice now
            Eliminate().run(twin, self.ctx)
        recovery = None
        if refit and self.images is not None and not plan.keep.all():
            recovery = recover(self.model, twin, self.labels, plan.keep, self.images, self.ctx)
        return twin, recovery


@dataclass(frozen=True)
class Result:
    """What came out. A plan that keeps everything stands for a model in which nothing could be pruned, unless
    ``met``: then nothing need be."""

    plan: Plan
    verdict: Verdict
    model: Model
    recovery: Recovery | None
    metrics: dict[str, Any] = field(default_factory=dict)
    met: bool = False

    @classmethod
    def unchanged(cls, task: Task, metrics: dict[str, Any], met: bool = True) -> Result:
        keep = task.labels.everything()
        return cls(Plan(keep, (), 1.0), Verdict(True, 0.0), task.model, None, metrics, met)


class Goal(ABC):
    """A target. ``trivial`` says that the input model meets it as it is."""

    trivial: bool = False

    @abstractmethod
    def reach(self, task: Task) -> Result:
        """Prune a copy of the task's model. Raises PassError where the target cannot be judged."""


# What the numbers count, by the name of the target.
_COUNTED = {"macs": "multiply-accumulates", "params": "parameters", "bytes": "bytes of weights"}


@dataclass(frozen=True)
class CostGoal(Goal):
    """A fraction of what can be counted: ``macs``, ``params`` or ``bytes``."""

    name: str
    fraction: float

    @property
    def trivial(self) -> bool:  # type: ignore[override]
        return self.fraction >= 1.0

    def reach(self, task: Task) -> Result:
        plan, verdict = task.planner.plan(self._costs(task), self.fraction)
        if task.finer and abs(plan.fraction - self.fraction) > _TOLERANCE:
            return Result.unchanged(task, {}, met=False)
        if plan.fraction > self.fraction + _TOLERANCE and not plan.keep.all():
            task.ctx.progress.warn(
                f"prune: {plan.fraction:.0%} of the {_COUNTED[self.name]} remain where {self.fraction:.0%} were asked "
                "for; what else there is must stay (see the skipped nodes) or is held by min_keep, multiple or ratios"
            )
        metrics = {} if self.name == "macs" else {f"{self.name}_planned": round(plan.fraction, 6)}
        return Result(plan, verdict, *task.build(plan), metrics)

    def _costs(self, task: Task) -> Costs:
        if self.name == "params":
            return lambda families: params_model(task.model, task.labels, families, task.cost)
        if self.name == "bytes":
            return lambda families: bytes_model(task.model, task.labels, families)
        return task.macs


@dataclass(frozen=True)
class RatioGoal(Goal):
    """The same fraction of the channels of every family, to lose."""

    ratio: float

    @property
    def trivial(self) -> bool:  # type: ignore[override]
        return self.ratio <= 0.0

    def reach(self, task: Task) -> Result:
        planner = task.planner
        # What ``ratios`` has pinned has one choice left, which this does not change.
        planner.curves = [pinned(curve, self.ratio) for curve in planner.curves]
        plan, verdict = planner.plan(task.macs, 1.0)
        return Result(plan, verdict, *task.build(plan))
