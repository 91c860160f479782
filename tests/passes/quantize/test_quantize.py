"""The pass on small graphs: what they become, that they compute the same, what it refuses and says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from onnx_graphsurgeon import Constant

from graphopt import Context, DataError, Model, ModelError, PassError, UsageError
from graphopt.passes.quantize import Quantize
from graphopt.passes.quantize.fusion import Fusion, check_fusion
from graphopt.runtime.target import get_target

IMAGE = "[N,3,8,8]"
CONV = "c = Conv<pads=[1,1,1,1]>(x, w, b) "
BLOCK = CONV + "y = Relu(c)"
W, B = (1, 8, 3, 3, 3), (2, 8)


def weights_of(model: Model) -> list[np.ndarray]:
    """The int8 constants with more than one axis."""
    return [c.values for c in model.constants() if c.dtype == np.int8 and len(c.shape) > 1]


# --- what becomes of graphs ---------------------------------------------------------------------------------------


def test_conv_and_relu_become_one_operator(graph, quantized):
    out = quantized(graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B), 16, 3, 8, 8)
    assert out.ops == {"Conv": 1, "QuantizeLinear": 2, "DequantizeLinear": 4}
    assert out.optimized == {"QuantizeLinear": 1, "QLinearConv": 1, "DequantizeLinear": 1}
    assert out.result.metrics["int8_operators"] == out.result.metrics["int8_operators_fused"] == {"Conv": 1}
    assert out.error < 0.02 and out.output.min() == 0 and not out.warnings


def test_the_text_before_and_after(quantized, eager_target):
    """All numbers of one small graph."""
    target = dataclasses.replace(eager_target, reduce_range=False)
    out = quantized(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,1,1,2] x) => (float[N,1,1,2] y)
        <float[1,1,1,1] w = {2}, float[1] b = {1}> { y = Conv(x, w, b) }""",
        x=np.array([[[[-1, 1.55]]]], np.float32),
        target=target,
        bias_correction="none",
    )
    x = next(n for n in out.model.graph.nodes if n.op == "QuantizeLinear" and n.inputs[0].name == "x")
    assert x.inputs[1].values == np.float32(0.01) and x.inputs[2].values == 100 and x.inputs[2].dtype == np.uint8
    conv = next(n for n in out.model.graph.nodes if n.op == "Conv")
    w, b = (conv.inputs[k].inputs[0] for k in (1, 2))
    assert w.inputs[0].values.reshape(-1) == [127] and w.inputs[0].dtype == np.int8 and w.attrs == {"axis": 0}
    np.testing.assert_allclose(w.inputs[1].values, [2 / 127])
    assert b.inputs[0].dtype == np.int32 and b.inputs[2].dtype == np.int32
    np.testing.assert_allclose(b.inputs[0].values, 1 / (0.01 * 2 / 127), atol=0.51)
    np.testing.assert_allclose(out.output, [[[[-1, 4.1]]]], atol=0.02)


def test_without_the_runtimes_optimizations_it_computes_the_same(graph, quantized, run):
    """The file means the same to any reader: fusion is no part of its sense."""
    out = quantized(graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B), 8, 3, 8, 8)
    x = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    plain = run(out.model, x, optimize=False)
    assert np.abs(plain - out.output).max() <= 1.01 * out.reference.max() / 255


def test_depthwise(graph, quantized):
    text = graph("y = Conv<group=3, pads=[1,1,1,1]>(x, w)", IMAGE, "[N,3,8,8]", w=(1, 3, 1, 3, 3))
    out = quantized(text, 8, 3, 8, 8)
    assert out.optimized["QLinearConv"] == 1 and out.error < 0.02
    assert weights_of(out.model)[0].shape == (3, 1, 3, 3)


def test_matmul_with_a_constant(graph, quantized):
    out = quantized(graph("y = MatMul(x, w)", "[N,5,16]", "[N,5,4]", w=(1, 16, 4)), 16, 5, 16)
    assert out.result.metrics["int8_operators"] == out.result.metrics["int8_operators_fused"] == {"MatMul": 1}
    assert out.error < 0.02
    scale = next(n for n in out.model.graph.nodes if n.op == "MatMul").inputs[1].inputs[0]
    assert scale.inputs[1].values.shape == (4,) and scale.attrs == {"axis": 1}


def test_matmul_with_a_bias_becomes_gemm(graph, quantized):
    out = quantized(graph("m = MatMul(x, w) y = Add(m, b)", "[N,16]", "[N,4]", w=(1, 16, 4), b=(2, 4)), 16, 16)
    assert out.result.metrics["int8_operators_fused"] == {"Gemm": 1} and out.error < 0.02


def test_matmul_of_two_activations(graph, quantized):
    body = "t = Transpose<perm=[0,2,1]>(x) y = MatMul(x, t)"
    out = quantized(graph(body + "v = MatMul(x, w)", "[N,5,16]", "[N,5,5]", w=(1, 16, 4)), 16, 5, 16)
    assert out.error < 0.05


def test_residual_add(graph, quantized):
    body = "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, v) s = Add(c, r) y = Relu(s)"
    out = quantized(graph(body, IMAGE, "[N,8,8,8]", w=W, b=B, v=(3, 8, 8, 3, 3)), 16, 3, 8, 8)
    assert out.optimized == {"QuantizeLinear": 1, "QLinearConv": 2, "QLinearAdd": 1, "DequantizeLinear": 1}
    assert out.error < 0.03
    # One Q a tensor, although two read r.
    assert sum(n.op == "QuantizeLinear" for n in out.model.graph.nodes) == 4


def test_flatten_before_gemm(graph, quantized):
    body = BLOCK.replace("y =", "r =") + " g = GlobalAveragePool(r) f = Flatten(g) y = Gemm<transB=1>(f, v, k)"
    out = quantized(graph(body, IMAGE, "[N,4]", w=W, b=B, v=(3, 4, 8), k=(4, 4)), 16, 3, 8, 8)
    assert out.optimized["QGemm"] == 1 and out.optimized["QLinearGlobalAveragePool"] == 1
    assert out.optimized["DequantizeLinear"] == 0  # logits come out of the Gemm in float
    assert out.error < 0.05


def test_concat_takes_parameters_of_each_input(graph, quantized):
    body = "a = Conv(x, w) c = Conv(x, v) y = Concat<axis=1>(a, c)"
    out = quantized(graph(body, IMAGE, "[N,6,8,8]", w=(1, 2, 3, 1, 1), v=(2, 4, 3, 1, 1)), 8, 3, 8, 8)
    assert out.optimized["QLinearConcat"] == 1 and out.error < 0.02


def test_constant_operand_is_quantized(graph, quantized):
    body = "c = Conv(x, w) y = Mul(c, k)"
    out = quantized(graph(body, IMAGE, "[N,2,8,8]", w=(1, 2, 3, 1, 1), k=(2, 1, 2, 1, 1)), 8, 3, 8, 8)
    assert out.optimized["QLinearMul"] == 1 and out.error < 0.03


def test_hardswish_is_all_int8(graph, quantized):
    body = CONV + "h = HardSwish(c) y = Conv(h, v)"
    out = quantized(graph(body, IMAGE, "[N,4,8,8]", w=W, b=B, v=(3, 4, 8, 1, 1)), 16, 3, 8, 8)
    assert out.optimized == {
        "QuantizeLinear": 1,
        "QLinearConv": 2,
        "QLinearAdd": 1,
        "QLinearMul": 1,
        "DequantizeLinear": 1,
    }
    assert out.error < 0.05


def test_clip_is_absorbed(graph, quantized):
    zero, six = "float lo = {0}", "float hi = {6}"
    out = quantized(graph(CONV + "y = Clip(c, lo, hi)", IMAGE, "[N,8,8,8]", w=W, b=B, lo=zero, hi=six), 8, 3, 8, 8)
    assert out.ops["Clip"] == 0 and out.error < 0.02 and out.output.max() <= 6.03


def test_clip_above_zero_is_not_absorbed(graph, quantized):
    one, six = "float lo = {1}", "float hi = {6}"
    out = quantized(graph(CONV + "y = Clip(c, lo, hi)", IMAGE, "[N,8,8,8]", w=W, b=B, lo=one, hi=six), 8, 3, 8, 8)
    assert out.ops["Clip"] == 1 and out.error < 0.05
    assert out.output.min() >= 1


def test_relu_is_not_absorbed_when_others_read_before_it(graph, quantized):
    body = CONV + "r = Relu(c) y = Add(c, r)"
    out = quantized(graph(body, IMAGE, "[N,8,8,8]", w=W, b=B), 8, 3, 8, 8)
    assert out.ops["Relu"] == 1 and out.error < 0.03


def test_pad_runs_on_integers(graph, quantized):
    body = CONV + "r = Relu(c) p = Pad(r, pads) y = Conv(p, v)"
    pads = "int64[8] pads = {0,0,1,1,0,0,1,1}"
    out = quantized(graph(body, IMAGE, "[N,4,10,10]", w=W, b=B, v=(3, 4, 8, 1, 1), pads=pads), 8, 3, 8, 8)
    pad = next(n for n in out.model.graph.nodes if n.op == "Pad")
    assert pad.inputs[0].dtype == np.uint8 and out.error < 0.03


def test_pad_of_ones_stays_in_float(graph, quantized):
    body = CONV + "p = Pad(c, pads, one) y = Conv(p, v)"
    pads, one = "int64[8] pads = {0,0,1,1,0,0,1,1}", "float one = {1}"
    out = quantized(graph(body, IMAGE, "[N,4,10,10]", w=W, b=B, v=(3, 4, 8, 1, 1), pads=pads, one=one), 8, 3, 8, 8)
    pad = next(n for n in out.model.graph.nodes if n.op == "Pad")
    assert pad.inputs[0].dtype == np.float32 and any("value other than 0" in r for r in out.reasons.values())
    assert out.error < 0.03


# --- sharing ------------------------------------------------------------------------------------------------------


def test_a_shared_weight(graph, quantized):
    """Two nodes, two inputs: the weights may be stored twice, but both are right."""
    body = "a = Conv(x, w, b) r = Relu(a) c = Conv(r, w, b) y = Relu(c)"
    out = quantized(graph(body, IMAGE, "[N,3,8,8]", w=(1, 3, 3, 1, 1), b=(2, 3)), 16, 3, 8, 8)
    assert out.optimized["QLinearConv"] == 2 and out.error < 0.03


def test_a_weight_shared_with_a_node_in_float(graph, quantized):
    source = Model.from_text(graph("c = Conv(x, w) y = Conv(c, w)", IMAGE, "[N,3,8,8]", w=(1, 3, 3, 1, 1)))
    source.graph.nodes[0].name, source.graph.nodes[1].name = "first", "second"
    out = quantized(source, 16, 3, 8, 8, keep_float=("second",))
    assert out.error < 0.03
    second = next(n for n in out.model.graph.nodes if n.name == "second")
    assert isinstance(second.inputs[1], Constant) and second.inputs[1].dtype == np.float32


def test_a_tensor_read_in_int8_and_as_an_output(quantized):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N,3,8,8] x) => (float[N,3,8,8] c, float[N,3,8,8] y)
    <float[3,3,1,1] w = {1,0.5,0,0,1,0,0,0,-1}> { c = Conv(x, w) r = Relu(c) y = Conv(r, w) }"""
    out = quantized(text, 8, 3, 8, 8)
    assert [t.name for t in out.model.outputs] == ["c", "y"] and out.error < 0.02


# --- degenerate values --------------------------------------------------------------------------------------------


def scales(model: Model) -> list[np.ndarray]:
    return [n.inputs[1].values for n in model.graph.nodes if n.op.endswith("Linear")]


def test_activations_that_are_all_zero(graph, quantized):
    out = quantized(
        graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b="float[8] b = {0,0,0,0,0,0,0,0}"), x=np.zeros((4, 3, 8, 8), np.float32)
    )
    assert all(np.all(s > 0) and np.isfinite(s).all() for s in scales(out.model))
    assert not out.output.any()


def test_a_channel_of_zeros(graph, quantized):
    text = graph(
        "y = Conv(x, w, b)", IMAGE, "[N,2,8,8]", w="float[2,3,1,1] w = {0,0,0,1,2,3}", b="float[2] b = {0.5,0}"
    )
    out = quantized(text, 8, 3, 8, 8)
    assert all(np.all(s > 0) and np.isfinite(s).all() for s in scales(out.model))
    np.testing.assert_allclose(out.output[:, 0], 0.5, atol=0.1)
    assert out.error < 0.02


def test_weights_that_are_all_zero(graph, quantized):
    text = graph("y = Conv(x, w)", IMAGE, "[N,1,8,8]", w="float[1,3,1,1] w = {0,0,0}")
    for per_channel in (True, False):
        out = quantized(text, 8, 3, 8, 8, per_channel=per_channel)
        assert all(np.all(s > 0) for s in scales(out.model)) and not out.output.any()


def test_a_bias_that_would_overflow(graph, quantized):
    w, b = "float[2,3,1,1] w = {1e-8,1e-8,1e-8,1,2,3}", "float[2] b = {100,0}"
    out = quantized(graph("y = Conv(x, w, b)", IMAGE, "[N,2,8,8]", w=w, b=b), 8, 3, 8, 8)
    assert out.result.metrics["channels_widened_for_bias"] == 1
    np.testing.assert_allclose(out.output[:, 0], 100, atol=1)


def test_no_bias_that_overflows_is_reported_where_there_is_none(graph, quantized):
    out = quantized(graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B), 8, 3, 8, 8)
    assert "channels_widened_for_bias" not in out.result.metrics


def test_values_that_are_not_finite_are_named(graph, quantized):
    x = np.ones((2, 3, 8, 8), np.float32)
    x[1, 0, 0, 0] = np.inf
    with pytest.raises(DataError, match="not finite on the calibration images"):
        quantized(graph("y = Conv(x, w)", IMAGE, "[N,2,8,8]", w=(1, 2, 3, 1, 1)), x=x)


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", [True, False])
def test_weights_within_the_targets_range(graph, quantized, run, eager_target, reduce):
    target = dataclasses.replace(eager_target, reduce_range=reduce)
    text = graph(CONV + "r = Relu(c) y = Conv(r, v)", IMAGE, "[N,4,8,8]", w=W, b=B, v=(3, 4, 8, 1, 1))
    x = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    out = quantized(text, x=x, target=target)
    for weight in weights_of(out.model):
        pair = np.sort(np.abs(weight.astype(int)).reshape(len(weight), -1), axis=1)[:, -2:].sum(axis=1).max()
        assert 126 <= pair <= 128 if reduce else pair > 128
    # Without the fused kernels, which saturate on 8-bit weights where the CPU has no VNNI.
    out.output = run(out.model, x, optimize=False)
    assert out.error < 0.03


def test_one_scale_a_tensor(graph, quantized):
    out = quantized(graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B), 8, 3, 8, 8, per_channel=False)
    assert all(s.shape == () for s in scales(out.model)) and out.error < 0.03
    assert out.optimized["QLinearConv"] == 1


def named(graph, *names: str) -> Model:
    body = "a = Conv(x, w) r = Relu(a) c = Conv(r, v) s = Relu(c) y = Conv(s, u)"
    model = Model.from_text(graph(body, IMAGE, "[N,4,8,8]", w=(1, 8, 3, 1, 1), v=(2, 8, 8, 1, 1), u=(3, 4, 8, 1, 1)))
    for node, name in zip([n for n in model.graph.nodes if n.op == "Conv"], names, strict=True):
        node.name = name
    return model


def test_keep_float_leaves_a_node_alone(graph, quantized):
    out = quantized(named(graph, "stem/conv", "body/conv", "head/conv"), 8, 3, 8, 8, keep_float=("body/*",))
    kept = next(n for n in out.model.graph.nodes if n.name == "body/conv")
    assert isinstance(kept.inputs[1], Constant)
    assert out.reasons["body/conv"] == "kept in float as asked (keep_float has 'body/*')"
    assert out.optimized["QLinearConv"] == 2 and out.optimized["Conv"] + out.optimized["FusedConv"] == 1
    assert out.error < 0.03


def test_keep_float_of_nothing_is_an_error(graph, quantized):
    with pytest.raises(UsageError, match="'body/cnov' matches no node") as error:
        quantized(named(graph, "stem/conv", "body/conv", "head/conv"), 8, 3, 8, 8, keep_float=("stem/*", "body/cnov"))
    assert error.value.hint == "did you mean 'body/conv'?"


def test_keep_float_of_all_changes_nothing(graph, quantized):
    out = quantized(named(graph, "a", "b", "c"), 8, 3, 8, 8, keep_float=("*",))
    assert not out.result.changed and out.result.metrics["int8_operators"] == {}
    assert "nothing was quantized" in out.warnings[0] and len(out.result.skipped) == 5
    np.testing.assert_array_equal(out.output, out.reference)


def test_images_are_limited(graph, quantized):
    """Those that are taken come from all of them, not from the first classes."""
    x = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    x[16:] *= 100
    text = graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B)
    few, every = quantized(text, x=x, images=8), quantized(text, x=x)
    assert (few.result.metrics["calibration_images"], every.result.metrics["calibration_images"]) == (8, 32)
    assert every.output.max() / 2 < few.output.max() < every.output.max()


def test_a_percentile_ignores_outliers(graph, quantized):
    x = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    x[0, 0, 0, 0] = 1000
    text = graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B)
    extremes, cut = (quantized(text, x=x, calibration=c, percentile=99.9) for c in ("minmax", "percentile"))
    errors = [np.abs(o.output - o.reference)[1:].mean() for o in (extremes, cut)]
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize("options", [{"calibration": "guess"}, {"percentile": 101.0}, {"images": 0}, {"place": "x"}])
def test_bad_options_are_refused(options):
    with pytest.raises(UsageError, match="|".join(options)):
        Quantize(**options)


def test_bias_correction_lowers_the_mean_error(graph, quantized, eager_target):
    x = np.abs(np.random.default_rng(0).normal(size=(64, 32))).astype(np.float32)
    text = graph("y = Gemm(x, w)", "[N,32]", "[N,8]", w=(1, 32, 8))
    target = dataclasses.replace(eager_target, reduce_range=True)
    shift = [
        np.abs((o.output - o.reference).mean(axis=0)).mean()
        for o in (quantized(text, x=x, target=target, bias_correction=c) for c in ("fast", "none"))
    ]
    assert shift[0] < 0.5 * shift[1]


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_quantized_model_is_refused(graph, quantized):
    once = quantized(graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B), 8, 3, 8, 8).model
    with pytest.raises(ModelError, match="quantized already: it has 4 DequantizeLinear, 2 QuantizeLinear"):
        quantized(once, 8, 3, 8, 8)


def test_a_model_without_weights_is_refused(graph, quantized):
    with pytest.raises(PassError, match="no Conv, Gemm or MatMul with constant float32 weights"):
        quantized(graph("r = Relu(x) y = MaxPool<kernel_shape=[2,2]>(r)", IMAGE, "[N,3,7,7]"), 8, 3, 8, 8)


def test_half_precision_is_refused(graph):
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float16[N,2] x) => (float16[N,1] y)
    <float16[2,1] w = {1, 2}> { y = MatMul(x, w) }"""
    model = Model.from_text(text)
    with pytest.raises(PassError, match="float16"):
        Quantize().run(model, Context(get_target("ort-cpu"), [], model))  # type: ignore[arg-type]


# --- reports ------------------------------------------------------------------------------------------------------


def test_what_does_not_fuse_is_reported(graph, quantized, monkeypatch):
    found = Fusion({"Conv": 1}, {"Conv": 0})
    monkeypatch.setattr("graphopt.passes.quantize.fusion.check_fusion", lambda *_: found)
    out = quantized(graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B), 8, 3, 8, 8)
    assert out.result.metrics["not_fused"] == {"Conv": 1} and "1 Conv" in out.warnings[0]


def test_nodes_that_the_runtime_leaves_in_float_are_taken_out(graph, quantized, eager_target):
    """A target that promises more than the runtime has: nothing is converted for nothing."""
    target = dataclasses.replace(eager_target, int8_ops=eager_target.int8_ops | {"Tanh"})
    text = graph("c = Conv(x, w) t = Tanh(c) y = Conv(t, v)", IMAGE, "[N,4,8,8]", w=(1, 8, 3, 1, 1), v=(2, 4, 8, 1, 1))
    out = quantized(text, 8, 3, 8, 8, target=target)
    assert "not_fused" not in out.result.metrics and "1 Tanh" in out.warnings[0]
    assert out.result.metrics["repaired"] == ["Tanh_0"] and out.result.metrics["int8_operators"] == {"Conv": 2}
    assert [(s.op, s.node) for s in out.result.skipped] == [("Tanh", "Tanh_0")]
    assert "taken out again" in out.result.skipped[0].reason and out.error < 0.05
    tanh = next(n for n in out.model.graph.nodes if n.op == "Tanh")
    assert [n.op for n in tanh.outputs[0].outputs] == ["QuantizeLinear"]  # for the Conv, which stays in int8


def test_other_providers_are_not_checked(graph, quantized, eager_target):
    target = dataclasses.replace(eager_target, provider="OtherExecutionProvider")
    out = quantized(graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B), 8, 3, 8, 8, target=target)
    assert check_fusion(out.model, target, {"Conv": ["Conv_0"]}) == Fusion()
    assert "int8_operators_fused" not in out.result.metrics and not out.warnings


def test_the_same_again(graph, quantized):
    body = "a = Conv(x, w, b) r = Relu(a) h = HardSwish(r) c = Conv(h, v) s = Add(c, r) y = Relu(s)"
    text = graph(body, IMAGE, "[N,8,8,8]", w=(1, 8, 3, 1, 1), b=B, v=(3, 8, 8, 1, 1))
    one, two = (quantized(text, 8, 3, 8, 8, calibration="percentile") for _ in range(2))
    assert one.model.to_bytes() == two.model.to_bytes() and one.result == two.result


def test_saved_and_loaded(graph, quantized, tmp_path: Path, run):
    from graphopt.ir import load, save

    out = quantized(graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B), 8, 3, 8, 8)
    save(out.model, tmp_path / "int8.onnx")
    x = np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(load(tmp_path / "int8.onnx"), x), out.output)


# --- control flow -------------------------------------------------------------------------------------------------


def test_a_subgraph_that_reads_a_quantized_tensor(graph, quantized):
    body = """c = Conv(x, w) r = Relu(c) d = Conv(r, v)
    i = If(p) <then_branch = a () => (float[N,2,8,8] u) { u = Add(r, d) },
               else_branch = b () => (float[N,2,8,8] k) { k = Neg(d) }>
    y = Conv(i, v)"""
    text = graph(body, IMAGE, "[N,2,8,8]", w=(1, 2, 3, 1, 1), v=(2, 2, 2, 1, 1), p="bool p = {1}")
    out = quantized(text, 8, 3, 8, 8)
    assert out.ops["If"] == 1 and out.error < 0.03
    assert out.optimized["QLinearConv"] >= 2
    assert any(s.op == "If" and "control flow" in s.reason for s in out.result.skipped)


def test_a_subgraph_that_reads_the_input(graph, quantized):
    body = """c = Conv(x, w) i = If(p) <then_branch = a () => (float[N,3,8,8] u) { u = Relu(x) },
                                         else_branch = b () => (float[N,3,8,8] k) { k = Neg(x) }>
    y = Conv(i, w)"""
    text = graph(body, IMAGE, "[N,2,8,8]", w=(1, 2, 3, 1, 1), p="bool p = {0}")
    assert quantized(text, 8, 3, 8, 8).error < 0.03


@pytest.mark.parametrize("calibration", ["minmax", "average", "percentile", "entropy", "mse"])
def test_every_calibration_method(graph, quantized, calibration):
    out = quantized(graph(BLOCK, IMAGE, "[N,8,8,8]", w=W, b=B), 16, 3, 8, 8, calibration=calibration)
    assert out.result.metrics["int8_operators"] and out.error < 0.2  # entropy cuts most of so few values


def test_a_hard_sigmoid_of_another_is_not_folded_into_the_same_bias(graph, quantized):
    body = "a = Conv<pads=[1,1,1,1]>(x, w, b) s = HardSigmoid(a) y = HardSigmoid<alpha=0.5,beta=0.2>(s)"
    assert quantized(graph(body, IMAGE, "[N,8,8,8]", w=W, b=B), 8, 3, 8, 8).error < 0.05
