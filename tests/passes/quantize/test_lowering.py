"""Exact rewrites before quantization: each with cases that it must leave alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from graphopt import Model, PassError
from graphopt.ir import Snapshot, verify
from graphopt.passes.quantize.lowering import lower

IMAGE = "[N,3,8,8]"


@pytest.fixture
def lowered(run):
    """Lower a graph, and check that it computes the same; returns operators, rules applied, and the model."""

    def check(source: str, *shape: int, **options):
        model = Model.from_text(source)
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        expected, before = run(model, x), Snapshot.of(model)
        counts = lower(model, **options)
        verify(model, before)
        np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)
        return Counter(n.op for n in model.graph.nodes), counts, model

    return check


@pytest.mark.parametrize(("keep", "y", "ops"), [(1, "[N,3,1,1]", 1), (0, "[N,3]", 2)])
@pytest.mark.parametrize("axes", ["2,3", "-1,-2", "3,2"])
def test_mean_over_space_is_a_pool(graph, lowered, keep, y, ops, axes):
    text = graph(f"y = ReduceMean<axes=[{axes}], keepdims={keep}>(x)", IMAGE, y)
    found, counts, _ = lowered(text, 2, 3, 8, 8)
    assert found["GlobalAveragePool"] == 1 and found.total() == ops
    assert counts == {"ReduceMean -> GlobalAveragePool": 1}


def test_mean_with_axes_as_an_input(graph, lowered):
    text = graph("y = ReduceMean(x, a)", IMAGE, "[N,3,1,1]", opset=18, a="int64[2] a = {2,3}")
    assert lowered(text, 2, 3, 8, 8)[0] == {"GlobalAveragePool": 1}


@pytest.mark.parametrize(
    ("axes", "y"), [("1,2", "[N,1,1,8]"), ("2", "[N,3,1,8]"), ("1,2,3", "[N,1,1,1]"), ("0,1", "[1,1,8,8]")]
)
def test_other_means_stay(graph, lowered, axes, y):
    found, counts, _ = lowered(graph(f"y = ReduceMean<axes=[{axes}]>(x)", IMAGE, y), 2, 3, 8, 8)
    assert found == {"ReduceMean": 1} and not counts


def test_mean_of_three_axes_stays(graph, lowered):
    assert not lowered(graph("y = ReduceMean<axes=[1,2]>(x)", "[N,3,8]", "[N,1,1]"), 2, 3, 8)[1]


def test_matmul_and_add_become_gemm(graph, lowered):
    text = graph("m = MatMul(x, w) y = Add(b, m)", "[N,6]", "[N,4]", w=(1, 6, 4), b=(2, 4))
    assert lowered(text, 3, 6)[0] == {"Gemm": 1}


def test_matmul_of_tokens_becomes_gemm_between_reshapes(graph, lowered):
    text = graph("m = MatMul(x, w) y = Add(m, b)", "[N,5,6]", "[N,5,4]", w=(1, 6, 4), b=(2, 1, 1, 4))
    assert lowered(text, 3, 5, 6)[0] == {"Gemm": 1, "Reshape": 2}


@pytest.mark.parametrize(
    ("body", "x", "y", "b"),
    [
        ("m = MatMul(x, w) y = Add(m, b)", "[3,6]", "[3,4]", (2, 3, 4)),  # differs by row
        ("m = MatMul(x, w) y = Add(m, b)", "[N,6]", "[N,4]", (2, 1)),  # a scalar
        ("m = MatMul(x, w) y = Add(m, b)", "[N,6]", "[1,N,4]", (2, 1, 1, 4)),  # adds an axis
        ("m = MatMul(x, w) a = Add(m, b) y = Add(a, m)", "[N,6]", "[N,4]", (2, 4)),  # product read twice
        ("m = MatMul(x, w) y = Sub(m, b)", "[N,6]", "[N,4]", (2, 4)),
        ("m = MatMul(x, w) y = Add(m, m)", "[N,6]", "[N,4]", (2, 4)),
        ("m = MatMul(x, w) y = Add(m, b)", "[N,K,6]", "[N,K,4]", (2, 4)),  # two open dimensions
    ],
)
def test_other_matmuls_stay(graph, lowered, body, x, y, b):
    text = graph(body, x, y, w=(1, 6, 4), b=(*b,))
    shape = (3, 5, 6) if "K" in x else (3, 6)
    assert lowered(text, *shape)[0]["MatMul"] == 1


def test_gemm_factors_are_folded(graph, lowered):
    text = graph("y = Gemm<alpha=0.5, beta=2.0>(x, w, b)", "[N,6]", "[N,4]", w=(1, 6, 4), b=(2, 4))
    _, counts, model = lowered(text, 3, 6)
    assert counts == {"plain Gemm": 1} and model.graph.nodes[0].attrs == {}


def test_a_weight_shared_with_a_scaled_gemm_is_not_scaled_twice(graph, lowered):
    text = graph("a = Gemm<alpha=0.5>(x, w) y = Gemm<alpha=3.0>(a, w)", "[N,4]", "[N,4]", w=(1, 4, 4))
    assert lowered(text, 3, 4)[1] == {"plain Gemm": 2}


@pytest.mark.parametrize("attrs", ["", "<alpha=1.0, beta=1.0>"])
def test_plain_gemms_stay(graph, lowered, attrs):
    assert not lowered(graph(f"y = Gemm{attrs}(x, w, b)", "[N,6]", "[N,4]", w=(1, 6, 4), b=(2, 4)), 3, 6)[1]


def test_gemm_with_a_computed_bias_stays(graph, lowered):
    text = graph("c = Relu(b) y = Gemm<alpha=0.5, beta=2.0>(x, w, c)", "[N,6]", "[N,4]", w=(1, 6, 4), b=(2, 4))
    assert not lowered(text, 3, 6)[1]


def test_relu_goes_before_what_only_moves(graph, lowered):
    body = "c = Conv(x, w) p = MaxPool<kernel_shape=[2,2]>(c) f = Flatten(p) y = Relu(f)"
    _, counts, model = lowered(graph(body, IMAGE, "[N,98]", w=(1, 2, 3, 1, 1)), 2, 3, 8, 8)
    assert [n.op for n in model.graph.nodes] == ["Conv", "Relu", "MaxPool", "Flatten"]
    assert counts == {"activation before what only moves": 1}


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w) p = AveragePool<kernel_shape=[2,2]>(c) y = Relu(p)",
        "c = Conv(x, w) p = MaxPool<kernel_shape=[2,2]>(c) r = Relu(p) y = Add(r, p)",
        "p = MaxPool<kernel_shape=[2,2]>(x) y = Relu(p)",
    ],
)
def test_relu_stays_behind_averages_and_what_others_read(graph, lowered, body):
    channels = 2 if "w)" in body else 3
    text = graph(body, IMAGE, f"[N,{channels},7,7]", w=(1, 2, 3, 1, 1))
    assert not lowered(text, 2, 3, 8, 8)[1]


def test_hardswish_is_split(graph, lowered):
    assert lowered(graph("y = HardSwish(x)", IMAGE, IMAGE), 2, 3, 8, 8)[0] == {"HardSigmoid": 1, "Mul": 1}


def test_kept_nodes_stay(graph, lowered):
    model = graph("y = HardSwish(x)", IMAGE, IMAGE)
    assert lowered(model, 2, 3, 8, 8, keep_float=("*",))[0] == {"HardSwish": 1}


def test_old_opsets_are_upgraded(graph, lowered):
    _, counts, model = lowered(graph("y = Relu(x)", IMAGE, IMAGE, opset=11), 2, 3, 8, 8)
    assert counts == {"opset upgrade": 1} and model.opset == 13


def test_an_opset_that_cannot_be_upgraded_says_so(graph, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no adapter")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    with pytest.raises(PassError, match="the model has 11 and cannot be upgraded: no adapter"):
        lower(Model.from_text(graph("y = Relu(x)", IMAGE, IMAGE, opset=11)))


def test_operators_of_other_domains_stay():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[N,3] x) => (float[N,3] y) { y = mine.HardSwish(x) }""")
    assert lower(model) == {} and model.graph.nodes[0].op == "HardSwish"


@pytest.mark.parametrize(
    ("body", "op"),
    [("m = MatMul(x, w) y = mine.Add(m, b)", "MatMul"), ("r = Neg(x) m = mine.MaxPool(r) y = Relu(m)", "Relu")],
)
def test_namesakes_of_other_domains_are_no_part_of_a_pattern(body, op):
    model = Model.from_text(f"""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[N,2] x) => (float[N,2] y) <float[2,2] w = {{1,2,3,4}}, float[2] b = {{1,2}}> {{ {body} }}""")
    for node in model.graph.nodes:
        node.outputs[0].dtype, node.outputs[0].shape = np.dtype(np.float32), ["N", 2]
    before = [n.op for n in model.graph.nodes]
    assert not lower(model) and [n.op for n in model.graph.nodes] == before and op in before
