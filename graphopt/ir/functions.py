"""Which local functions a model calls, and how many nodes they stand for: counted, not expanded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import onnx

from graphopt.errors import ModelError
from graphopt.ir.contents import Body, walk_graphs

Key = tuple[str, str, str]  # domain, name, overload
MAIN: Key = ("", "", "")


@dataclass(frozen=True)
class Calls:
    """For the main graph and each function: nodes written in it, and the functions that these call."""

    written: dict[Key, int]
    calls: dict[Key, list[Key]]
    order: list[Key]  # callers before what they call

    def total(self, own: Callable[[Key], int]) -> dict[Key, int]:
        """``own`` of a function and of all that it calls, as often as it does."""
        found: dict[Key, int] = {}
        for key in reversed(self.order):
            found[key] = own(key) + sum(found[called] for called in self.calls[key])
        return found


def read_calls(proto: onnx.ModelProto) -> Calls:
    """Raises ModelError for functions that call each other in a ring."""
    bodies: dict[Key, Body] = {MAIN: proto.graph, **{(f.domain, f.name, f.overload): f for f in proto.functions}}
    written: dict[Key, int] = {}
    calls: dict[Key, list[Key]] = {}
    for key, top in bodies.items():
        nodes = [n for body in walk_graphs(top) for n in body.node]
        written[key] = len(nodes)
        calls[key] = [k for n in nodes if (k := (n.domain, n.op_type, n.overload)) in bodies and k != MAIN]
    graph = nx.DiGraph([(a, b) for a, called in calls.items() for b in called])
    graph.add_nodes_from(calls)
    try:
        order = list(nx.topological_sort(graph))
    except nx.NetworkXUnfeasible:
        ring = [edge[0][1] for edge in nx.find_cycle(graph)]
        raise ModelError(
            f"the model's functions call each other in a ring: {' -> '.join([*ring, ring[0]])}",
            "export the model without functions",
        ) from None
    return Calls(written, calls, order)
