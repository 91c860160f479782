"""The networkx view: order and what subgraphs read; and the cache of analyses, which follows the revision."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import pytest

from graphopt import Model
from graphopt.analysis.base import Analysis, Cache
from graphopt.ir import verify
from graphopt.ir.view import node_view, reads, sort

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[2] x) => (float[2] z) {
        a = Relu(x)
        b = Neg(x)
        d = Add(a, b)
        e = Abs(x)
        z = If (c) < then_branch = p () => (float[2] t) { t = Mul(d, e) },
                     else_branch = q () => (float[2] u) { u = Identity(a) } >
    }"""


def names(model: Model) -> list[str]:
    return [n.op for n in model.graph.nodes]


def test_edges_include_what_subgraphs_read():
    graph = Model.from_text(TEXT).graph
    assert set(node_view(graph).edges) == {(0, 2), (1, 2), (2, 4), (3, 4), (0, 4)}
    assert set(reads(graph.nodes[4])) >= {"c", "d", "e", "a"}


def test_sorting_keeps_the_order_where_it_is_free():
    model = Model.from_text(TEXT)
    sort(model.graph)
    assert names(model) == ["Relu", "Neg", "Add", "Abs", "If"]
    with model.edit() as graph:
        graph.nodes.insert(0, graph.nodes.pop())
        graph.nodes.insert(1, graph.nodes.pop(3))
        sort(graph)
    assert names(model) == ["Relu", "Neg", "Add", "Abs", "If"]
    verify(model)


def test_sorting_a_cycle():
    graph = Model.from_text(TEXT).graph
    graph.nodes[0].inputs[0] = graph.nodes[2].outputs[0]
    with pytest.raises(nx.NetworkXUnfeasible):
        sort(graph)


calls: list[int] = []


@dataclass(frozen=True)
class CountNodes(Analysis[int]):
    op: str

    def compute(self, model: Model, ctx: object) -> int:
        calls.append(1)
        return sum(n.op == self.op for n in model.graph.nodes)


def test_answers_are_kept_until_the_model_changes():
    calls.clear()
    model, cache = Model.from_text(TEXT), Cache()
    assert cache.get(CountNodes("Relu"), model, None) == cache.get(CountNodes("Relu"), model, None) == 1
    assert len(calls) == 1
    assert cache.get(CountNodes("Neg"), model, None) == 1
    assert len(calls) == 2
    with model.edit() as graph:
        graph.nodes[1].op = "Relu"
    assert cache.get(CountNodes("Relu"), model, None) == 2
    assert cache.get(CountNodes("Relu"), model.copy(), None) == 2
    assert len(calls) == 4
    cache.drop_stale(model)
    assert cache.get(CountNodes("Relu"), model, None) == 2
    assert len(calls) == 4
    assert cache.get(CountNodes("Neg"), model, None) == 0
    with model.edit():
        pass
    cache.drop_stale(model)
    assert cache.get(CountNodes("Neg"), model, None) == 0
    assert len(calls) == 6
