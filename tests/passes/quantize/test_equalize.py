"""Cross-layer equalization: what it changes, that it changes no output, and where it is not exact."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt import Model
from graphopt.passes.quantize.equalize import equalize

IMAGE, OUT = "[N,3,8,8]", "[N,8,8,8]"
W, B, V, C = (1, 8, 3, 3, 3), (2, 8), (3, 8, 8, 3, 3), (4, 8)
FIRST, SECOND = "a = Conv<pads=[1,1,1,1]>(x, w, b) ", "y = Conv<pads=[1,1,1,1]>(r, v, c)"


def uneven(model: Model) -> Model:
    """The same with channels of very different ranges."""
    for constant in model.constants():
        if constant.name in ("w", "b"):
            factor = 10.0 ** np.linspace(-2, 1, len(constant.values), dtype=np.float32)
            constant.values = constant.values * factor.reshape(-1, *[1] * (constant.values.ndim - 1))
    return model


@pytest.mark.parametrize(
    "between",
    [
        "r = Relu(a) ",
        "r = LeakyRelu<alpha=0.1>(a) ",
        "p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) r = Relu(p) ",
        "r = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) ",
        "r = PRelu(a, slope) ",
    ],
)
def test_outputs_stay_and_ranges_become_alike(graph, run, between):
    slope = {"slope": (5, 8, 1, 1)} if "slope" in between else {}
    model = uneven(Model.from_text(graph(FIRST + between + SECOND, IMAGE, OUT, w=W, b=B, v=V, c=C, **slope)))
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    before = run(model, x, optimize=False)
    assert equalize(model)[0] == 1
    after = run(model, x, optimize=False)
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
    first, second = (n for n in model.graph.nodes if n.op == "Conv")
    out = np.abs(first.inputs[1].values).max(axis=(1, 2, 3))
    into = np.abs(second.inputs[1].values).max(axis=(0, 2, 3))
    np.testing.assert_allclose(out, into, rtol=1e-2)


def test_depthwise_layers_in_a_row(graph, run):
    body = "a = Conv(x, w, b) r = Relu(a) d = Conv<pads=[1,1,1,1], group=8>(r, v, c) s = Relu(d) y = Conv(s, u)"
    shapes = {"w": (1, 8, 3, 1, 1), "b": B, "v": (3, 8, 1, 3, 3), "c": C, "u": (5, 4, 8, 1, 1)}
    model = uneven(Model.from_text(graph(body, IMAGE, "[N,4,8,8]", **shapes)))
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    before = run(model, x, optimize=False)
    assert equalize(model)[0] == 2
    np.testing.assert_allclose(run(model, x, optimize=False), before, atol=1e-4 * np.abs(before).max())


def test_through_a_pool_to_the_classifier(graph, run):
    body = FIRST + "r = Relu(a) g = GlobalAveragePool(r) f = Flatten(g) y = Gemm<transB=1>(f, m)"
    model = uneven(Model.from_text(graph(body, IMAGE, "[N,4]", w=W, b=B, m=(3, 4, 8))))
    for node in model.graph.nodes:
        if node.op == "GlobalAveragePool":
            node.outputs[0].shape = ["N", 8, 1, 1]
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    before = run(model, x, optimize=False)
    assert equalize(model)[0] == 1
    np.testing.assert_allclose(run(model, x, optimize=False), before, atol=1e-4 * np.abs(before).max())


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (FIRST + "r = Clip(a, zero, six) " + SECOND, "Clip behind it does not pass"),
        (FIRST + "r = HardSwish(a) " + SECOND, "HardSwish behind it"),
        (FIRST + "r = Sigmoid(a) " + SECOND, "Sigmoid behind it"),
        (FIRST + "q = Relu(a) r = Add(q, a) " + SECOND, "several operators read"),
    ],
)
def test_where_it_is_not_exact_nothing_happens_and_the_report_says_why(graph, body, why):
    bounds = {"zero": "float zero = {0}", "six": "float six = {6}"} if "Clip" in body else {}
    model = Model.from_text(graph(body, IMAGE, OUT, w=W, b=B, v=V, c=C, **bounds))
    before = model.fingerprint()
    count, skipped = equalize(model)
    assert count == 0 and model.fingerprint() == before
    assert any(why in s.reason for s in skipped) and any("an output of the model" in s.reason for s in skipped)


def test_dead_channels_keep_their_weights(graph):
    model = Model.from_text(graph(FIRST + "r = Relu(a) " + SECOND, IMAGE, OUT, w=W, b=B, v=V, c=C))
    first = model.graph.nodes[0]
    values = first.inputs[1].values.copy()
    values[2] = 0
    first.inputs[1].values = values
    equalize(model)
    after = model.graph.nodes[0].inputs
    assert np.isfinite(after[1].values).all() and (after[1].values[2] == 0).all()
    assert after[2].values[2] == first.inputs[2].values[2]


def test_as_an_option_of_the_pass(graph, quantized):
    text = graph(FIRST + "r = Relu(a) " + SECOND, IMAGE, OUT, w=W, b=B, v=V, c=C)
    model = uneven(Model.from_text(text))
    plain, even = (quantized(model, 16, 3, 8, 8, equalize=e, per_channel=False) for e in (False, True))
    assert even.result.metrics["equalized_pairs"] == 1 and "equalized_pairs" not in plain.result.metrics
    assert even.error < 0.8 * plain.error
    onnx.checker.check_model(even.model.to_proto())
