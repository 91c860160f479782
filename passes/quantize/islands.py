"""Islands: operators that int8 tensors connect, timed in int8 and in float, and taken back where float is faster.

The cost table places the operators. It is made for one kind of CPU, and knows nothing of how shapes fall into vector
lanes; so what it proposes is measured where the model is meant to run on this machine, each island alone and then the
whole model. Measured times are read from the latency table: the same table gives the same result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from graphopt.analysis.cost import with_batch
from graphopt.errors import ModelError
from graphopt.ir import Model
from graphopt.passes.quantize.excerpt import excerpt, in_int8, mark
from graphopt.passes.quantize.operators import data_inputs
from graphopt.passes.quantize.placement import Plan, decide
from graphopt.pipeline import Context, Skipped
from graphopt.runtime.ratio import Ratio, time_ratio
from graphopt.runtime.session import ModelSource, runnable
from graphopt.runtime.target import Target

_PRICES = (1.0, 0.4, 2.5)  # of a conversion, against the table's; the table's own first
_CLEARLY = 0.02
_SLOWER = "measured here, its island takes longer in int8 than in float; place=estimated leaves it in int8"
_UNSURE = "measured here, the whole model was slower than in float until its island was taken back"


@dataclass
class Island:
    """Positions of operators that int8 tensors connect; microseconds in float and in int8, None if not measured."""

    members: frozenset[int]
    nodes: tuple[str, ...]
    float_us: float | None = None
    int8_us: float | None = None
    decision: str = "int8"

    @property
    def gain(self) -> float:
        return 0.0 if self.float_us is None or self.int8_us is None else self.float_us - self.int8_us

    def report(self) -> dict[str, Any]:
        """An entry of the report."""
        return {
            "operators": len(self.nodes),
            "first": self.nodes[0],
            "last": self.nodes[-1],
            "float_us": self.float_us,
            "int8_us": self.int8_us,
            "decision": self.decision,
        }


def islands(model: Model, target: Target, plan: Plan) -> list[Island]:
    """The connected parts of a plan, in the order of the graph."""
    nodes = list(model.graph.nodes)
    position = {id(n): i for i, n in enumerate(nodes)}
    graph = nx.Graph()
    graph.add_nodes_from(sorted(plan.int8))
    for i in sorted(plan.int8):
        for tensor in data_inputs(nodes[i], target):
            for producer in tensor.inputs:
                root = position.get(id(producer), -1)
                root = plan.absorbed.get(root, root)
                if root in plan.int8:
                    graph.add_edge(root, i)
    parts = sorted(sorted(part) for part in nx.connected_components(graph))
    return [Island(frozenset(part), tuple(nodes[i].name for i in part)) for part in parts]


def place(
    before: Model, model: Model, ctx: Context, how: str, keep_float: tuple[str, ...], per_channel: bool = True
) -> tuple[Plan, dict[str, Any]]:
    """What of ``model`` (``before`` as it was lowered) runs in int8, and what the report says of the times.

    ``how``: ``faster`` measures where the target is this machine, ``estimated`` asks the cost table alone, ``smaller``
    takes all that has weights.
    """
    sized, target = one_image(model, ctx), ctx.target
    if how != "faster" or not target.measurable:
        return decide(sized, target, keep_float, all_weights=how == "smaller"), {}
    survey = Survey(sized, ctx, propose(sized, ctx, keep_float, per_channel), per_channel)
    survey.measure()
    survey.settle(before)
    ctx.latencies.save()
    return survey.plan, survey.metrics()


def one_image(model: Model, ctx: Context) -> Model:
    """A copy that takes one image, of the size of the calibration images where the model leaves it open."""
    first = next(iter(ctx.calibration.batches(1, limit=1)), None) if len(model.inputs) == 1 else None
    twin = with_batch(model, 1, None if first is None else tuple(int(d) for d in first.shape[1:]))
    twin.touch()  # or the file that it came from, with its open sizes, would be timed
    return twin


def propose(model: Model, ctx: Context, keep_float: tuple[str, ...], per_channel: bool = True) -> Plan:
    """The cut that is fastest as measured, of those at some prices of a conversion.

    What the table does not know of this machine (how its caches take the change between the two worlds) shifts how
    dear a conversion is. ``model`` takes one image. The table's own cut stays where no other is clearly
    faster.
    """
    target, costs = ctx.target, ctx.target.costs
    plans: list[Plan] = []
    for factor in _PRICES:
        dearer = dataclasses.replace(target, costs=dataclasses.replace(costs, convert_ns=costs.convert_ns * factor))
        plan = decide(model, dearer, keep_float)
        if plan.int8 and all(plan.int8 != p.int8 for p in plans):
            plans.append(plan)
    if not plans:
        return plan
    if len(plans) == 1:
        return plans[0]
    forms = [in_int8(model, target, plan, per_channel) for plan in plans]
    marks = [mark(form) for form in forms]
    best, least = plans[0], 1 - _CLEARLY
    with runnable(forms[0]) as one:
        for k in ctx.progress.track(range(1, len(plans)), "timing placements", len(plans) - 1):
            with runnable(forms[k]) as two:
                ask = functools.partial(_at_most, one, two, ctx)
                ratio = ctx.latencies.lookup(f"int8 placement {marks[k]} against {marks[0]}", ask)
            if ratio < least:
                best, least = plans[k], ratio
    ctx.latencies.save()
    return best


def _at_most(one: ModelSource, two: ModelSource, ctx: Context) -> float:
    """The time of the second as a fraction of the first's, with twice its standard error."""
    found = time_ratio(one, two, threads=ctx.threads, most=6, sure=None)
    return found.ratio + 2 * found.error


def time_against(before: Model, after: Model, ctx: Context) -> float:
    """Time of ``after`` over that of ``before``, for one image."""
    one_model, two_model = one_image(before, ctx), one_image(after, ctx)
    with runnable(one_model) as one, runnable(two_model) as two:
        key = f"int8 whole {mark(two_model)} against {mark(one_model)}"
        ratio = ctx.latencies.lookup(key, lambda: time_ratio(one, two, threads=ctx.threads).ratio)
    ctx.latencies.save()
    return ratio


@dataclass
class Survey:
    """The islands of one plan and their times. ``model`` takes one image (``one_image``)."""

    model: Model
    ctx: Context
    plan: Plan
    per_channel: bool = True
    found: list[Island] = field(default_factory=list)
    whole: float | None = None

    def measure(self) -> None:
        """Time each island, and take those out of the plan that are faster in float."""
        self.found = islands(self.model, self.ctx.target, self.plan)
        for island in self.ctx.progress.track(self.found, "timing islands", len(self.found)):
            part = excerpt(self.model, self.ctx.target, self.plan, island.members, self.per_channel)
            if part is not None:
                self._time(island, part.floats, part.int8, part.key)
        self.take_back([i for i in self.found if i.gain < 0], _SLOWER)
        self.ctx.latencies.save()

    def settle(self, before: Model) -> None:
        """Take islands back until the whole is no slower than ``before``.

        While it is slower, the islands that gain least go back to float, half of those that are left at a time.
        """
        while left := sorted((i for i in self.found if i.decision == "int8"), key=lambda i: i.gain):
            after = in_int8(self.model, self.ctx.target, self.plan, self.per_channel)
            self.whole = time_against(before, after, self.ctx)
            if self.whole <= 1.0:
                return
            self.ctx.progress.log(f"quantize: int8 takes {self.whole:.3f} of the time in float; taking islands back")
            self.take_back(left[: max(1, len(left) // 2)], _UNSURE)

    def take_back(self, lost: Iterable[Island], reason: str) -> None:
        """Put islands back to float, saying why."""
        nodes = self.model.graph.nodes
        for island in lost:
            island.decision = "float"
            self.plan.int8 -= island.members
            for i, root in list(self.plan.absorbed.items()):
                if root in island.members:
                    del self.plan.absorbed[i]
            self.plan.skipped += [Skipped(nodes[i].name, nodes[i].op, reason) for i in sorted(island.members)]

    def metrics(self) -> dict[str, Any]:
        """What the report says."""
        found: dict[str, Any] = {"islands": [i.report() for i in self.found]}
        if self.whole is not None:
            found["time_against_float"] = self.whole
        if any(i.float_us is not None for i in self.found):
            found["latency_table"] = self.ctx.latencies.sha256
        return found

    def _time(self, island: Island, floats: Model, int8: Model, key: str) -> None:
        measured: list[Ratio] = []

        def ask() -> Ratio:
            if not measured:
                with runnable(floats) as one, runnable(int8) as two:
                    measured.append(time_ratio(one, two, threads=self.ctx.threads, most=3))
            return measured[0]

        table = self.ctx.latencies
        try:
            island.float_us = table.lookup(f"{key} float", lambda: ask().first_us)
            ratio = table.lookup(f"{key} ratio", lambda: ask().ratio)
        except ModelError:
            island.float_us = None  # the runtime does not run it alone: the whole model decides
            return
        island.int8_us = float(f"{island.float_us * ratio:.5g}")
