"""Rounding by reconstruction, bias correction in sequence, weights of 4 bits, weights alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import UsageError
from graphopt.passes.quantize.ranges import channel_caps, quantize_weights
from graphopt.passes.quantize.rounding import Grid, best_scales, damped, round_to

IMAGE, OUT = "[N,3,8,8]", "[N,8,8,8]"
TWO = "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, v)"
W, B, V = (1, 8, 3, 3, 3), (2, 8), (3, 8, 8, 3, 3)


def correlated(seed: int, groups: int, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and second moments of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(groups, 64, 2)) @ rng.normal(size=(groups, 2, inputs))
    rows = mixed + 0.3 * rng.normal(size=(groups, 64, inputs))
    return rng.normal(size=(groups, inputs, outputs)), damped(rows.transpose(0, 2, 1) @ rows / 64)


def cost(error: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Squared error of outputs, by group and output."""
    return np.einsum("gio,gij,gjo->go", error, moments, error)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.sampled_from([(1, 12, 3), (5, 9, 1), (2, 70, 4)]), st.sampled_from([7, 127]))
def test_rounding_by_moments_beats_the_nearest(seed, shape, most):
    weight, moments = correlated(seed, *shape)
    scale = np.abs(weight).max(axis=1, keepdims=True) / most
    grid = Grid(scale, np.full(weight.shape, float(most)))
    found = round_to(weight, moments, grid)
    assert np.array_equal(found, np.rint(found)) and np.abs(found).max() <= most
    ours = cost(found * scale - weight, moments).sum()
    assert ours <= cost(grid.nearest(weight) * scale - weight, moments).sum() * (1 + 1e-9)


def test_no_single_integer_can_be_improved():
    weight, moments = correlated(0, 1, 10, 2)
    grid = Grid(np.abs(weight).max(axis=1, keepdims=True) / 7, np.full(weight.shape, 7.0))
    found = round_to(weight, moments, grid)
    least = cost(found * grid.scale - weight, moments)
    for j in range(10):
        for step in (-1, 1):
            other = found.copy()
            other[:, j] = np.clip(other[:, j] + step, -7, 7)
            assert (cost(other * grid.scale - weight, moments) >= least - 1e-9).all()


def test_scales_are_chosen_by_the_error_and_not_below_the_least():
    weight, moments = correlated(1, 1, 30, 4)
    weight[0, 0] = 9.0  # one that stands out
    grid = Grid(np.abs(weight).max(axis=1, keepdims=True) / 7, np.full(weight.shape, 7.0))
    none = np.zeros(grid.scale.shape)
    chosen = best_scales(weight, np.eye(30)[None], grid, none, np.linspace(1, 0.3, 15))
    assert (chosen < grid.scale).any()
    held = best_scales(weight, moments, grid, grid.scale * 0.9, np.linspace(1, 0.3, 15))
    assert (held >= grid.scale * 0.9).all()


@pytest.mark.parametrize("reduced", [False, True])
def test_no_pair_of_weights_can_saturate_where_that_matters(reduced):
    weight = np.random.default_rng(0).normal(size=(2, 9, 3))
    caps = channel_caps(weight, 127, reduced)
    two = np.sort(caps, axis=1)[:, -2:].sum(axis=1)
    assert (two <= 128).all() if reduced else (two == 254).all()
    assert (channel_caps(weight, 7, True) == 7).all()  # 4 bits never do


def test_four_bits_take_the_scale_with_the_least_error():
    weight = np.random.default_rng(0).normal(size=(4, 50))
    result = quantize_weights(weight, 0, None, 0.1, most=7)
    widest = np.abs(weight).max(axis=1) / 7
    assert np.abs(result.values).max() == 7 and (result.scales < widest).all()

    def error(scales: np.ndarray) -> float:
        return float(np.square(np.clip(np.rint(weight / scales[:, None]), -7, 7) * scales[:, None] - weight).sum())

    assert error(result.scales) < error(widest)


@pytest.fixture
def target(eager_target):
    return dataclasses.replace(eager_target, reduce_range=False)


def test_reconstruction_lowers_the_error_and_keeps_the_operators(graph, quantized, target):
    text = graph(TWO, IMAGE, OUT, w=W, b=B, v=V)
    runs = {
        how: quantized(text, 64, 3, 8, 8, target=target, rounding=how, weights="int4", bias_correction="none")
        for how in ("nearest", "reconstruct")
    }
    assert runs["reconstruct"].error < 0.9 * runs["nearest"].error
    assert runs["reconstruct"].ops == runs["nearest"].ops
    metrics = runs["reconstruct"].result.metrics["reconstruction"]
    assert metrics["improved"] == metrics["layers"] == 2
    assert metrics["relative_error_after"] < metrics["relative_error_before"]
    assert "reconstruction" not in runs["nearest"].result.metrics


def images_that_repeat(count: int, channels: int) -> np.ndarray:
    """Channels that depend on each other, so that errors of their weights can make up for each other."""
    rng = np.random.default_rng(0)
    x = np.einsum("nkhw,kc->nchw", rng.normal(size=(count, 2, 8, 8)), rng.normal(size=(2, channels)))
    return (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)


@pytest.mark.parametrize("bias_correction", ["none", "auto"])
def test_errors_of_weights_make_up_for_each_other_by_default(graph, quantized, target, bias_correction):
    text = graph("y = Conv(x, w, b)", "[N,16,8,8]", OUT, w=(1, 8, 16, 1, 1), b=B)
    common = {"x": images_that_repeat(64, 16), "target": target, "activations": "float"}
    runs = {
        how: quantized(text, **common, rounding=how, bias_correction=bias_correction)
        for how in ("nearest", "auto", "compensate")
    }
    assert runs["auto"].error < 0.6 * runs["nearest"].error
    assert runs["auto"].ops == runs["nearest"].ops
    assert runs["auto"].model.to_bytes() == runs["compensate"].model.to_bytes()
    found = runs["auto"].result.metrics["rounding"]
    assert found["layers"] == 1 and found["relative_error_after"] < 0.4 * found["relative_error_before"]
    assert "rounding" not in runs["nearest"].result.metrics


def test_compensated_depthwise_and_grouped_layers(graph, quantized, target):
    body = "a = Conv<pads=[1,1,1,1], group=8>(x, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1], group=2>(r, v, c)"
    text = graph(body, OUT, OUT, w=(1, 8, 1, 3, 3), b=B, v=(3, 8, 4, 3, 3), c=(4, 8))
    runs = {
        how: quantized(text, 64, 8, 8, 8, target=target, rounding=how, bias_correction="none")
        for how in ("nearest", "compensate")
    }
    assert runs["compensate"].result.metrics["rounding"]["layers"] == 2
    assert runs["compensate"].error < runs["nearest"].error < 0.02


def test_biases_take_up_the_mean_error_of_compensated_weights_only_where_asked(graph, quantized, target):
    text = graph("y = Conv(x, w, b)", "[N,16,8,8]", OUT, w=(1, 8, 16, 1, 1), b=B)
    x = images_that_repeat(64, 16) + 3
    shift = {}
    for how in ("none", "fast"):
        out = quantized(text, x=x, target=target, rounding="compensate", bias_correction=how)
        shift[how] = np.abs((out.output - out.reference).mean(axis=(0, 2, 3))).max()
        kept = next(c.values * s for c in out.model.constants() if c.dtype == np.int32 for s in [1.0])
        assert kept.size == 8
    assert shift["fast"] < 0.02


def test_depthwise_and_grouped_layers_are_reconstructed(graph, quantized, target):
    body = "a = Conv<pads=[1,1,1,1], group=8>(x, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1], group=2>(r, v, c)"
    text = graph(body, OUT, OUT, w=(1, 8, 1, 3, 3), b=B, v=(3, 8, 4, 3, 3), c=(4, 8))
    out = quantized(text, 64, 8, 8, 8, target=target, rounding="reconstruct")
    assert out.result.metrics["reconstruction"]["layers"] == 2 and out.error < 0.02


def test_matmul_without_bias_is_reconstructed(graph, quantized, target):
    text = graph("y = MatMul(x, w)", "[N,5,16]", "[N,5,4]", w=(1, 16, 4))
    x = np.random.default_rng(0).normal(size=(64, 5, 16)).astype(np.float32)
    out = quantized(text, x=x, target=target, rounding="reconstruct")
    assert out.result.metrics["reconstruction"]["layers"] == 1 and out.error < 0.02


def test_bias_correction_in_sequence_gives_a_layer_without_bias_one(graph, quantized, target):
    text = graph(TWO, IMAGE, OUT, w=W, b=B, v=V)
    runs = {
        how: quantized(text, 64, 3, 8, 8, target=target, weights="int4", rounding="nearest", bias_correction=how)
        for how in ("none", "full")
    }
    shift = {k: np.abs((r.output - r.reference).mean(axis=(0, 2, 3))).max() for k, r in runs.items()}
    assert shift["full"] < 0.2 * shift["none"]
    last = next(n for n in runs["full"].model.graph.nodes if n.outputs[0].name.startswith("y"))
    assert last is not None and runs["full"].error < runs["none"].error


def test_what_cannot_be_refitted_is_reported(graph, quantized, target):
    text = graph('y = Conv<auto_pad="SAME_UPPER">(x, w, b)', IMAGE, OUT, w=W, b=B)
    out = quantized(text, 16, 3, 8, 8, target=target, rounding="reconstruct")
    (reason,) = out.reasons.values()
    assert "rounded to nearest, not refitted" in reason and "explicit pads" in reason


def test_int4_is_packed_and_still_runs_on_integers(graph, quantized, target):
    out = quantized(graph(TWO, IMAGE, OUT, w=W, b=B, v=V), 64, 3, 8, 8, target=target, weights="int4")
    packed = [t for t in out.model.to_proto().graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert sorted(len(t.raw_data) for t in packed) == [108, 288]
    assert out.result.metrics["int4_weights"] == 2 and out.model.opset == 21
    assert out.optimized == {"QuantizeLinear": 1, "QLinearConv": 2, "DequantizeLinear": 1}


def test_the_smallest_layers_keep_eight_bits(graph, quantized, target):
    body = "a = Conv(x, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, v)"
    text = graph(body, IMAGE, OUT, w=(1, 8, 3, 1, 1), b=B, v=V)
    out = quantized(text, 32, 3, 8, 8, target=target, weights="int4")
    assert out.result.metrics["int4_weights"] == 1


def test_weights_alone_leave_activations_in_float(graph, quantized, target):
    text = graph(TWO, IMAGE, OUT, w=W, b=B, v=V)
    out = quantized(text, 32, 3, 8, 8, target=target, activations="float")
    assert out.ops == {"Conv": 2, "Relu": 1, "DequantizeLinear": 2} and out.error < 0.02
    assert out.result.metrics["weights_only"] == 2
    four = quantized(text, 32, 3, 8, 8, target=target, activations="float", weights="int4")
    assert four.ops == out.ops and out.error < four.error < 0.2


def test_nodes_kept_in_float_keep_their_weights(graph, quantized, target):
    text = graph(TWO, IMAGE, OUT, w=W, b=B, v=V)
    name = quantized(text, 4, 3, 8, 8, target=target, activations="float").model.graph.nodes[1].name
    out = quantized(text, 4, 3, 8, 8, target=target, activations="float", keep_float=(name,))
    assert out.result.metrics["weights_only"] == 1


def test_same_input_same_bytes(graph, quantized, target):
    text = graph(TWO, IMAGE, OUT, w=W, b=B, v=V)
    one, two = (quantized(text, 32, 3, 8, 8, target=target, weights="int4").model.to_bytes() for _ in range(2))
    assert one == two


def test_an_unknown_rounding_is_refused(graph, quantized):
    with pytest.raises(UsageError, match=r"rounding.*one of auto, nearest, compensate, reconstruct"):
        quantized(graph(TWO, IMAGE, OUT, w=W, b=B, v=V), 4, 3, 8, 8, rounding="up")


@pytest.mark.parametrize("rounding", ["nearest", "compensate", "reconstruct"])
def test_where_pairs_of_products_saturate_no_two_weights_can(graph, quantized, eager_target, rounding):
    narrow = dataclasses.replace(eager_target, reduce_range=True)
    out = quantized(graph(TWO, IMAGE, OUT, w=W, b=B, v=V), 32, 3, 8, 8, target=narrow, rounding=rounding)
    weights = [c.values for c in out.model.constants() if c.dtype == np.int8 and len(c.shape) == 4]
    for values in weights:
        two = np.sort(np.abs(values.astype(int)).reshape(len(values), -1), axis=1)[:, -2:].sum(axis=1)
        assert two.max() <= 128
    assert len(weights) == 2 and out.error < 0.03


def test_biases_stay_float_where_the_target_wants_them(graph, quantized, eager_target):
    other = dataclasses.replace(eager_target, reduce_range=False, float_bias=True)
    out = quantized(graph(TWO, IMAGE, OUT, w=W, b=B, v=V), 32, 3, 8, 8, target=other, bias_correction="full")
    convs = [n for n in out.model.graph.nodes if n.op == "Conv"]
    assert [n.inputs[2].dtype for n in convs if not n.inputs[2].inputs] == [np.float32, np.float32]
    assert out.error < 0.02
