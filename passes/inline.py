"""Local functions, replaced by their bodies."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import onnx
import onnx.inliner

from graphopt import Context, Kind, Model, ModelError, Pass, PassResult, option
from graphopt.ir import infer_shapes
from graphopt.ir.rebuild import rebuild

_Name = tuple[str, str]


@dataclass(frozen=True)
class Inline(Pass):
    """Replace calls of the model's own functions by what the functions do, so that other passes can see into them."""

    name = "inline"
    kind = Kind.EXACT
    limit: int = option(
        1_000_000, "Nodes that the model may have afterwards: functions that call others can grow without bound", min=1
    )

    def run(self, model: Model, ctx: Context) -> PassResult:
        if not model.graph.functions:
            return PassResult(False)
        before = sum(len(g.nodes) for g in model.graphs())
        after = expanded_size(model.to_proto(0))
        if after > self.limit:
            raise ModelError(
                f"inlining the model's functions would make {after:,} nodes of {before:,}",
                f"raise the limit: inline{{limit={after}}}; it is {self.limit}",
            )
        functions = len(model.graph.functions)
        rebuild(model, onnx.inliner.inline_local_functions)
        infer_shapes(model)
        return PassResult(True, {"functions": functions, "nodes_before": before, "nodes_after": after})


def expanded_size(proto: onnx.ModelProto) -> int:
    """Nodes of a model once its functions are inlined. Raises ModelError for a ring of functions."""
    bodies = {(f.domain, f.name): list(f.node) for f in proto.functions}
    calls: dict[_Name, list[_Name]] = {}
    plain: dict[_Name, int] = {}
    for name, nodes in bodies.items():
        everything = _nodes(nodes)
        calls[name] = [(n.domain, n.op_type) for n in everything if (n.domain, n.op_type) in bodies]
        plain[name] = len(everything) - len(calls[name])
    graph = nx.DiGraph((a, b) for a, called in calls.items() for b in called)
    graph.add_nodes_from(bodies)
    try:
        order = list(nx.topological_sort(graph))
    except nx.NetworkXUnfeasible:
        ring = " -> ".join(edge[0][1] for edge in nx.find_cycle(graph))
        raise ModelError(f"the model's functions call each other in a ring: {ring}") from None
    size: dict[_Name, int] = {}
    for name in reversed(order):
        size[name] = plain[name] + sum(size[called] for called in calls[name])
    return sum(size.get((n.domain, n.op_type), 1) for n in _nodes(list(proto.graph.node)))


def _nodes(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Nodes and those in their subgraphs."""
    found, stack = [], list(nodes)
    while stack:
        node = stack.pop()
        found.append(node)
        for attribute in node.attribute:
            stack.extend(attribute.g.node)
            for graph in attribute.graphs:
                stack.extend(graph.node)
    return found
