"""Who reads and writes a tensor is listed once somebody asks, and then as graphsurgeon itself lists it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs
import pytest

from graphopt import Context, Kind, Model, load, save
from graphopt.pipeline import Registry
from graphopt.rewrite import RewritePass, Rule
from graphopt.rewrite.bypass import bypass
from graphopt.runtime.target import get_target

NET = """<ir_version: 8, opset_import: ["" : 17]> net (float[N,4] x) => (float[N,4] y)
    <float[4] w = {1, 2, 3, 4}, float top = {9}>
    { a = Identity(x) b = Add(a, w) c = Mul(b, b) d = Clip(c, , top) y = Add(d, w) }"""
BRANCH = """<ir_version: 8, opset_import: ["" : 17]> net (bool p, float[N,4] x) => (float[N,4] y)
    { a = Abs(x) y = If(p) <then_branch = t () => (float[N,4] u) { u = Neg(a) },
                            else_branch = e () => (float[N,4] v) { v = Exp(a) }> }"""


def links(graph: gs.Graph) -> dict[str, tuple[list[str], list[str]]]:
    """By tensor: the nodes that write and that read it, in order."""
    found = [t for n in graph.nodes for t in (*n.inputs, *n.outputs)] + graph.inputs + graph.outputs
    return {t.name: ([n.name for n in t.inputs], [n.name for n in t.outputs]) for t in found}


def read(tmp_path, text=NET) -> Model:
    proto = onnx.parser.parse_model(text)
    for k, node in enumerate(proto.graph.node):
        node.name = f"n{k}"
    onnx.save(proto, tmp_path / "m.onnx")
    return load(tmp_path / "m.onnx")


def test_they_are_made_when_the_graph_is_asked_for(tmp_path):
    model = read(tmp_path)
    assert not model.linked and not hasattr(model.bare.nodes[0].outputs[0], "inputs")
    copy = model.copy()
    for one in (model, copy):
        assert one.bare.nodes[1].inputs[0].name == "a" and not one.linked
        assert links(one.graph) == links(gs.import_onnx(onnx.load(tmp_path / "m.onnx"))) and one.linked


def test_with_subgraphs_they_are_there_from_the_start(tmp_path):
    model = read(tmp_path, BRANCH)
    assert model.linked
    assert [n.op for n in model.bare.nodes[0].outputs[0].outputs] == ["Neg", "Exp"]


@pytest.mark.parametrize("early", [False, True])
def test_after_passes_they_are_those_of_the_new_graph(tmp_path, early):
    model = read(tmp_path)
    if early:
        assert model.graph.nodes  # from here on they are kept up to date
    ctx = Context(get_target("ort-cpu"), None, model.copy())  # type: ignore[arg-type]
    for step in Registry().build("eliminate,recognize"):
        step.run(model, ctx)
    assert model.linked is early
    found = links(model.graph)
    save(model, tmp_path / "out.onnx")
    assert found == links(gs.import_onnx(onnx.load(tmp_path / "out.onnx")))
    with model.edit() as graph:  # and follow a change
        graph.nodes[-1].inputs.pop()
    assert not any(n is model.graph.nodes[-1] for n in model.graph.nodes[0].inputs[1].outputs)


def test_the_rules_of_a_pass_of_ones_own_have_them(tmp_path):
    @dataclass(frozen=True)
    class Asking(RewritePass):
        """Ask a tensor who writes it."""

        name = "asking"
        kind = Kind.EXACT

        def rules(self, model, ctx):
            return (Rule("asked", ("Mul",), lambda bench, node: node.inputs[0].inputs[0].name),)

    model = read(tmp_path)
    result = Asking().run(model, Context(get_target("ort-cpu"), None, model.copy()))  # type: ignore[arg-type]
    assert [s.reason for s in result.skipped] == ["n1"]


def test_they_are_right_where_a_rule_asks_for_them_in_the_middle_of_a_pass(tmp_path):
    @dataclass(frozen=True)
    class Late(RewritePass):
        """Remove what is dead, ask for the graph, and remove another."""

        name = "late"
        kind = Kind.EXACT
        resumes = True

        def rules(self, model, ctx):
            def late(bench, node):
                bypass(bench, node)
                assert model.graph.nodes

            return (Rule("late", ("Clip",), late),)

    model = read(tmp_path, NET.replace("c = Mul", "unread = Exp(b) c = Mul"))
    assert Late().run(model, Context(get_target("ort-cpu"), None, model.copy())).changed  # type: ignore[arg-type]
    save(model, tmp_path / "out.onnx")
    assert links(model.graph) == links(gs.import_onnx(onnx.load(tmp_path / "out.onnx")))


def test_the_hash_is_that_of_what_was_read(tmp_path):
    model = read(tmp_path)
    content = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(b"another")
    for one in (model, model.copy()):
        assert one.source.sha256 == hashlib.sha256(content).hexdigest()
