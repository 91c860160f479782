"""Shapes, operands and operators at the edge of what the pass takes."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Model
from graphopt.passes.quantize.placement import decide
from graphopt.passes.quantize.ranges import quantize_weights

IMAGE = "[N,3,8,8]"
W1 = (1, 8, 3, 1, 1)


# --- ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "w", "v"),
    [
        ("[N,3,9]", "[N,4,5]", (1, 8, 3, 3), (2, 4, 8, 3)),
        ("[N,3,5,5,5]", "[N,4,3,3,3]", (1, 8, 3, 3, 3, 3), (2, 4, 8, 1, 1, 1)),
    ],
)
def test_convolutions_of_other_ranks(graph, quantized, x, y, w, v):
    shape = [4, *(int(d) for d in x.strip("[]").split(",")[1:])]
    out = quantized(graph("c = Conv(x, w) r = Relu(c) y = Conv(r, v)", x, y, w=w, v=v), *shape)
    assert out.optimized["QLinearConv"] == 2 and out.error < 0.03 and not out.warnings


@pytest.mark.parametrize(
    ("pool", "x", "w"),
    [
        ("AveragePool<kernel_shape=[2]>(c)", "[N,3,8]", (1, 8, 3, 1)),
        ("AveragePool<kernel_shape=[2,2,2]>(c)", "[N,3,4,4,4]", (1, 8, 3, 1, 1, 1)),
        ("AveragePool<kernel_shape=[3,3], ceil_mode=1, strides=[2,2]>(c)", IMAGE, W1),
        ("AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(c)", IMAGE, W1),
        ("AveragePool<kernel_shape=[2,2], dilations=[2,2]>(c)", IMAGE, W1),
        ("MaxPool<kernel_shape=[2]>(c)", "[N,3,8]", (1, 8, 3, 1)),
        ("MaxPool<kernel_shape=[2,2,2]>(c)", "[N,3,4,4,4]", (1, 8, 3, 1, 1, 1)),
        ("MaxPool<kernel_shape=[2,2], dilations=[2,2]>(c)", IMAGE, W1),
        ("GlobalAveragePool(c)", "[N,3,8]", (1, 8, 3, 1)),
        ("GlobalAveragePool(c)", "[N,3,4,4,4]", (1, 8, 3, 1, 1, 1)),
        ("Softmax<axis=1>(c)", IMAGE, W1),
        ("LeakyRelu<alpha=-0.5>(c)", IMAGE, W1),
    ],
)
def test_pools_and_their_like(graph, quantized, pool, x, w):
    rank = x.count(",") + 1
    shape = [4, *(int(d) for d in x.strip("[]").split(",")[1:])]
    y = "[" + ",".join(["N", "8", *"PQR"[: rank - 2]]) + "]"
    out = quantized(graph(f"c = Conv(x, w) y = {pool}", x, y, opset=19, w=w), *shape)
    assert "not_fused" not in out.result.metrics and out.error < 0.05


def test_transposed_convolution_stays_in_float(graph, quantized):
    body = "c = Conv(x, w) r = Relu(c) t = ConvTranspose(r, u) y = Conv(t, v)"
    out = quantized(graph(body, IMAGE, "[N,4,P,Q]", w=W1, u=(2, 8, 8, 2, 2), v=(3, 4, 8, 1, 1)), 8, 3, 8, 8)
    assert out.result.metrics["int8_operators_fused"] == {"Conv": 2} and out.error < 0.05
    assert "no int8 kernel for ConvTranspose" in next(s.reason for s in out.result.skipped if s.op == "ConvTranspose")


def test_channels_last_input(graph, quantized):
    body = "t = Transpose<perm=[0,3,1,2]>(x) c = Conv(t, w) r = Relu(c) y = Transpose<perm=[0,2,3,1]>(r)"
    out = quantized(graph(body, "[N,8,8,3]", "[N,8,8,8]", w=W1), 8, 8, 8, 3)
    assert out.optimized["QLinearConv"] == 1 and out.error < 0.02


def test_a_vector_times_a_matrix(graph, quantized):
    text = graph("s = ReduceSum<keepdims=0>(x, a) y = MatMul(s, w)", "[N,6]", "[4]", w=(1, 6, 4), a="int64[1] a = {0}")
    out = quantized(text, 4, 6)
    assert out.error < 0.05 and "not_fused" not in out.result.metrics


def test_an_activation_without_axes(graph, quantized):
    body = "c = Conv(x, w) s = ReduceMax<keepdims=0>(c) y = Mul(c, s)"
    out = quantized(graph(body, "[1,3,8,8]", "[1,8,8,8]", w=W1), 1, 3, 8, 8)
    assert "not_fused" not in out.result.metrics and out.error < 0.03


def test_a_fixed_batch(graph, quantized):
    out = quantized(graph("c = Conv(x, w) y = Relu(c)", "[5,3,8,8]", "[5,8,8,8]", w=W1), 5, 3, 8, 8)
    assert out.optimized["QLinearConv"] == 1 and out.error < 0.02
    assert out.model.inputs[0].shape[0] == 5


def test_shapes_that_nobody_knows(graph, quantized):
    """Nothing can be inferred behind a NonZero; the operators are placed all the same."""
    body = """c = Conv(x, w) i = NonZero(k) j = Squeeze(i, z) g = Gather<axis=1>(c, j) y = Conv(g, v)"""
    text = graph(
        body, IMAGE, "[N,2,8,8]", w=W1, v=(2, 2, 3, 1, 1), k="float[8] k = {1,1,0,1,0,0,0,0}", z="int64[1] z = {0}"
    )
    out = quantized(text, 8, 3, 8, 8)
    assert out.optimized["QLinearConv"] == 2 and out.error < 0.03


# --- operands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", ["[1,4]", "[4]", "[1]", "[1,1]", ""])
def test_a_gemm_bias_of_one_row(graph, quantized, c):
    values = "1,2,3,4" if "4" in c else "2.5"
    text = graph("y = Gemm(x, w, c)", "[4,6]", "[4,4]", w=(1, 6, 4), c=f"float{c} c = {{{values}}}")
    out = quantized(text, 4, 6)
    assert out.result.metrics["int8_operators_fused"] == {"Gemm": 1} and out.error < 0.03


@pytest.mark.parametrize("c", ["[4,1]", "[4,4]"])
def test_a_gemm_bias_that_differs_by_row_stays_in_float(graph, quantized, c):
    """[4,1] has as many values as there are columns, but is no row."""
    values = ",".join(str(10 * k) for k in range(16 if c == "[4,4]" else 4))
    text = graph("h = Gemm(x, w) y = Gemm(h, v, c)", "[4,6]", "[4,4]", w=(1, 6, 4), v=(2, 4, 4),
                 c=f"float{c} c = {{{values}}}")  # fmt: skip
    out = quantized(text, 4, 6)
    assert out.result.metrics["int8_operators"] == {"Gemm": 1} and out.error < 0.03
    assert any("differs by row" in reason for reason in out.reasons.values())


@pytest.mark.parametrize("attrs", ["alpha=0.5, beta=2.0", "alpha=2.0, transB=1", "beta=0.0"])
def test_gemm_factors(graph, quantized, attrs):
    w = (1, 4, 6) if "transB" in attrs else (1, 6, 4)
    out = quantized(graph(f"y = Gemm<{attrs}>(x, w, c)", "[N,6]", "[N,4]", w=w, c=(2, 4)), 8, 6)
    assert out.result.metrics["int8_operators_fused"] == {"Gemm": 1} and out.error < 0.03


@pytest.mark.parametrize("order", ["k, c", "c, k"])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_constant_on_either_side(graph, quantized, op, order):
    out = quantized(graph(f"c = Conv(x, w) y = {op}({order})", IMAGE, "[N,8,8,8]", w=W1, k=(2, 8, 1, 1)), 8, 3, 8, 8)
    assert out.optimized[f"QLinear{op}"] == 1 and out.error < 0.03


def test_weights_that_are_an_output_stay_as_they_are(graph, quantized):
    model = Model.from_text(graph("c = Conv(x, w) y = Relu(c)", IMAGE, "[N,8,8,8]", w=W1))
    weight = next(c for c in model.constants() if c.name == "w")
    before = weight.values
    model.graph.outputs.append(weight)
    out = quantized(model, 8, 3, 8, 8)
    assert out.optimized["QLinearConv"] == 1 and out.error < 0.02
    np.testing.assert_array_equal(next(c for c in out.model.constants() if c.name == "w").values, before)


def test_integer_arithmetic_is_none_of_its_business(graph, quantized):
    body = "c = Conv(x, w) s = Shape(c) t = Mul(s, one) y = Reshape(c, t)"
    out = quantized(graph(body, IMAGE, "[N,8,8,8]", w=W1, one="int64[1] one = {1}"), 8, 3, 8, 8)
    assert out.ops["Mul"] == 1 and out.error < 0.02
    assert not any(s.op in ("Mul", "Shape") for s in out.result.skipped)


def test_resize_that_fills_in_a_value_stays_in_float(graph, quantized):
    """The value may lie outside the range of what is resized."""
    resize = 'mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=-9.0'
    body = f"c = Conv(x, w) r = Relu(c) m = Resize<{resize}>(r, o, f) y = Conv(m, v)"
    roi, factors = "float[8] o = {0,0,-0.5,-0.5,1,1,1.5,1.5}", "float[4] f = {1,1,1.5,1.5}"
    out = quantized(graph(body, IMAGE, "[N,4,P,Q]", w=W1, v=(2, 4, 8, 1, 1), o=roi, f=factors), 8, 3, 8, 8)
    assert out.error < 0.03 and any("fills in" in reason for reason in out.reasons.values())


def test_an_activation_of_another_domain_is_not_absorbed(eager_target):
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[N,1,4,4] x) => (float[N,1,4,4] y) <float[1,1,1,1] w = {2}> { c = Conv(x, w) y = mine.Relu(c) }""")
    model.graph.nodes[1].outputs[0].dtype = np.dtype(np.float32)
    plan = decide(model, eager_target)
    assert plan.int8 == {0} and not plan.absorbed
    assert [s.op for s in plan.skipped] == ["Relu"] and "domain 'mine'" in plan.skipped[0].reason


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [None, np.array([1e-3, 0.0], np.float32)])
@pytest.mark.parametrize("peak", [1e-45, 1e-38, 1e-30])
@pytest.mark.parametrize("input_scale", [1e-38, 1e-12, 1.0])
def test_products_of_tiny_scales_do_not_vanish(bias, peak, input_scale):
    weight = np.array([[peak, -peak], [1.0, 0.5]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = quantize_weights(weight, 0, bias, input_scale, input_means=np.ones(2))
    assert np.all(found.scales >= np.finfo(np.float32).tiny) and np.isfinite(found.scales).all()
    assert found.bias is not None and found.bias_scales is not None
    assert np.all(found.bias_scales > 0) and np.isfinite(found.bias_scales).all()
    wanted = 0.0 if bias is None else bias[0]
    assert found.bias[0] * float(found.bias_scales[0]) == pytest.approx(wanted, rel=1e-3, abs=1e-30)


def test_a_clip_over_zeros_alone_still_clips(graph, quantized, run):
    """A tensor of zeros on all images tells no range; the Clip that is absorbed does."""
    body, lo, hi = "c = Conv(x, w) y = Clip(c, lo, hi)", "float lo = {0}", "float hi = {6}"
    out = quantized(graph(body, IMAGE, "[N,8,8,8]", w=W1, lo=lo, hi=hi), x=np.zeros((2, 3, 8, 8), np.float32))
    assert run(out.model, np.full((1, 3, 8, 8), 100, np.float32)).max() <= 6
