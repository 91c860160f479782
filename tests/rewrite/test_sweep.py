"""The first walk of folding: what it does, what it leaves to the worklist, and that it makes no difference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt import Context, Model, load
from graphopt.passes.fold import Fold
from graphopt.rewrite import sweep
from graphopt.runtime.target import get_target

HEAD = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> net '
SHAPES = """(float[N,4] x) => (float[N,2,2] y, int64[1] n)
    <int64 zero = {0}, int64[1] axis = {0}, int64[2] rest = {2, 2}> {
    a = Relu(x) s = Shape(a) g = Gather(s, zero) b = Unsqueeze(g, axis) c = Concat<axis = 0>(b, rest)
    r = Reshape(a, c) d = Shape(r) e = Exp(a) y = Neg(r) n = Shape<start = 1, end = 2>(x)
}"""
RANDOM = """(float[N,4] x) => (float[N,4] y) { a = RandomNormalLike(x) b = Shape(a) y = Relu(x) }"""
OUTPUT = """(float[N,4] x) => (float[2] y, float[N,4] z) { y = Constant<value = float[2] {1, 2}>() z = Relu(x) }"""
CUSTOM = """(float[N,4] x) => (float[N,4] y) {
    t = Constant<value = float {2}>() a = own.Thing(t) b = Exp(x) y = Mul(x, a) }"""
NESTED = """(float[N,4] x, bool p) => (float[N,4] y) {
    two = Constant<value = float {2}>()
    y = If(p) <then_branch = t () => (u) { u = Mul(x, two) }, else_branch = e () => (v) { v = Neg(x) }>
}"""


def read(tmp_path, text: str) -> Model:
    onnx.save(onnx.parser.parse_model(HEAD + text), tmp_path / "m.onnx")
    return load(tmp_path / "m.onnx")


def fold(model: Model) -> tuple[bytes, object]:
    result = Fold().run(model, Context(get_target("ort-cpu"), None, model.copy()))  # type: ignore[arg-type]
    return model.to_bytes(), (result.changed, result.metrics, result.skipped)


@pytest.mark.parametrize("text", [SHAPES, RANDOM, OUTPUT, CUSTOM, NESTED])
def test_it_makes_no_difference(tmp_path, text, monkeypatch):
    with_it = fold(read(tmp_path, text))
    monkeypatch.setattr(sweep.Sweep, "over", lambda model, rules: None)
    assert with_it == fold(read(tmp_path, text))


def swept(model: Model) -> sweep.Sweep | None:
    ctx = Context(get_target("ort-cpu"), None, model.copy())  # type: ignore[arg-type]
    rules: dict[str, list] = {}
    for rule in Fold().rules(model, ctx):
        for op in rule.ops if rule.forward else ():
            rules.setdefault(op, []).append((rule.name, rule.apply))
    return sweep.Sweep.over(model, rules)


def test_it_folds_and_removes_what_is_dead(tmp_path):
    model = read(tmp_path, SHAPES)
    done = swept(model)
    assert [n.op for n in model.bare.nodes] == ["Relu", "Reshape", "Neg", "Shape"]
    assert np.array_equal(model.bare.nodes[1].inputs[1].values, [0, 2, 2])
    assert done is not None and done.counts == {"reshape_targets": 1, "dead_nodes_removed": 6}
    assert done.stale == [model.bare.nodes[1]]


def test_random_operators_and_outputs_of_the_graph_stay(tmp_path):
    random, output = read(tmp_path, RANDOM), read(tmp_path, OUTPUT)
    done = swept(random)
    assert [n.op for n in random.bare.nodes] == ["RandomNormalLike", "Relu"]
    assert done is not None and done.counts == {"dead_nodes_removed": 1}
    assert swept(output) is None and [n.op for n in output.bare.nodes] == ["Constant", "Relu"]


@pytest.mark.parametrize("text", [CUSTOM, NESTED])
def test_custom_operators_and_subgraphs_are_left_to_the_worklist(tmp_path, text):
    model = read(tmp_path, text)
    before = model.to_bytes()
    assert swept(model) is None and model.to_bytes() == before


def test_tensors_that_list_their_readers_are_left_to_the_worklist(tmp_path):
    model = read(tmp_path, SHAPES)
    assert model.graph.nodes and swept(model) is None
    fold(model)
    assert [n.op for n in model.graph.nodes] == ["Relu", "Reshape", "Neg", "Constant"]
    assert [n.op for n in model.graph.nodes[0].outputs[0].outputs] == ["Reshape"]
