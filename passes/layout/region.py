"""The surroundings of a Transpose: the tensors that could be kept in its other order, and the nodes in between.

From the tensor that a Transpose reads, or the one that it writes, the form spreads over every node that can work with
it, up and down, as far as nodes go that cannot, or the ends of the graph.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from graphopt.passes.layout.forms import Axes, Form, rank_of
from graphopt.passes.layout.plan import Anchor, Plan
from graphopt.passes.layout.rules import plan_of
from graphopt.rewrite import Workbench
from graphopt.rewrite.operands import permutation

# A copy of weights that only some readers need in another order costs nothing up to so many bytes.
_SMALL = 4096


@dataclass
class Kept:
    """A tensor of a region, and the form in which it could be kept."""

    tensor: gs.Tensor
    form: Form


@dataclass
class Region:
    """Tensors by name, nodes by id with their plans, and the nodes at the edge with the reason why they stay."""

    tensors: dict[str, Kept] = field(default_factory=dict)
    nodes: dict[int, gs.Node] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)
    blocked: dict[int, tuple[gs.Node, str]] = field(default_factory=dict)
    near: set[int] = field(default_factory=set)  # ids of all nodes that write or read its tensors
    end: str = ""  # the first end of the graph that it reaches, in words

    def why(self) -> str:
        """What is nearest to where it began that cannot change, in words."""
        for node, reason in self.blocked.values():
            return f"{node.name!r} ({node.op}): {reason}"
        return self.end or "nothing would be gained"


def transposition(bench: Workbench, node: gs.Node | None) -> Axes | None:
    """The form that a Transpose gives; None for other nodes, and where it depends on an unknown rank."""
    if node is None or node.op != "Transpose" or not bench.is_standard(node):
        return None
    perm = permutation(node)
    return None if perm is None else Axes(tuple(perm))


def explore(bench: Workbench, tensor: gs.Tensor, form: Axes) -> Region:
    """The region around ``tensor`` if that is kept in ``form``."""
    region = Region()
    queue: deque[gs.Tensor] = deque()

    def reach(tensor: gs.Tensor, form: Form) -> None:
        if tensor.name not in region.tensors and not isinstance(tensor, gs.Constant):
            region.tensors[tensor.name] = Kept(tensor, form)
            queue.append(tensor)

    if rank_of(tensor) == form.rank:
        reach(tensor, form)
    while queue:
        tensor = queue.popleft()
        form_here = region.tensors[tensor.name].form
        producer = bench.producer(tensor)
        around: list[tuple[gs.Node, bool]] = [(n, True) for n in bench.readers(tensor)]
        if producer is not None:
            around.append((producer, False))
        else:
            where = "is an input of the graph" if bench.is_graph_input(tensor) else "comes from outside of the graph"
            region.end = region.end or f"{tensor.name!r} {where}"
        if bench.is_output(tensor):
            region.end = region.end or f"{tensor.name!r} is an output of the graph"
        for node, reads in around:
            key = id(node)
            region.near.add(key)
            if key in region.plans or key in region.blocked or transposition(bench, node) is not None:
                continue
            index = [t.name for t in (node.inputs if reads else node.outputs)].index(tensor.name)
            plan = plan_of(bench, node, Anchor(reads, index, form_here))
            if isinstance(plan, str):
                region.blocked[key] = (node, plan)
                continue
            region.nodes[key], region.plans[key] = node, plan
            for t, f in zip([*node.inputs, *node.outputs], [*plan.ins, *plan.outs], strict=True):
                if f is not None and t.name:
                    reach(t, f)
    _drop_conflicts(bench, region)
    return region


def _drop_conflicts(bench: Workbench, region: Region) -> None:
    """Block nodes that would need a tensor in another form than the region gives it, or copies of large weights."""
    for key, plan in list(region.plans.items()):
        node = region.nodes[key]
        reason = _conflict(bench, region, node, plan)
        if reason:
            region.blocked[key] = (node, reason)
            del region.nodes[key], region.plans[key]


def _conflict(bench: Workbench, region: Region, node: gs.Node, plan: Plan) -> str:
    for tensor, form in zip([*node.inputs, *node.outputs], [*plan.ins, *plan.outs], strict=True):
        if form is None or not tensor.name:
            continue
        if isinstance(tensor, gs.Constant):
            if _is_large(tensor) and (len(bench.readers(tensor)) > 1 or bench.why_bound(tensor)):
                return f"other nodes read its weights {tensor.name!r} as well"
        elif region.tensors[tensor.name].form != form:
            return f"it would need {tensor.name!r} in two orders"
    return ""


def _is_large(tensor: gs.Constant) -> bool:
    return 4 * math.prod(tensor.shape) > _SMALL
