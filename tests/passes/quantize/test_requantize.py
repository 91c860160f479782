"""Quantized models: refused, or made float and quantized anew; never quantized twice."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Model, ModelError
from graphopt.passes.quantize.dequantize import dequantize

IMAGE = "[N,3,8,8]"
BLOCK = (
    "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) "
    "d = Conv<pads=[1,1,1,1]>(m, v) e = Add(d, m) s = Clip(e, low, high) "
    "g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, t, k)"
)
PARTS = {
    "w": (1, 8, 3, 3, 3), "b": (2, 8), "v": (3, 8, 8, 3, 3), "t": (4, 5, 8), "k": (5, 5),
    "low": "float low = {-1}", "high": "float high = {2}",
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"weights": "int4"}, {"per_channel": False}, {"activations": "float"}])
def test_a_quantized_model_becomes_float_again(graph, quantized, run, options):
    out = quantized(graph(BLOCK, IMAGE, "[N,5]", **PARTS), 32, 3, 8, 8, **options)
    model = out.model.copy()
    assert dequantize(model)["weights"] > 0
    assert not {n.op for n in model.graph.nodes} & {"QuantizeLinear", "DequantizeLinear"}
    x = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    spread = out.reference.std()
    assert np.abs(run(model, x) - out.output).max() < 0.1 * spread  # saturation is kept, rounding is not


def test_gates_and_pads_on_integers(graph, quantized, run):
    body = "a = Conv<pads=[1,1,1,1]>(x, w, b) h = HardSwish(a) p = Pad(h, pads) y = Conv(p, v)"
    text = graph(
        body, IMAGE, "[N,8,8,8]", w=(1, 8, 3, 3, 3), b=(2, 8), v=(3, 8, 8, 3, 3),
        pads="int64[8] pads = {0,0,1,1,0,0,1,1}",
    )  # fmt: skip
    out = quantized(text, 32, 3, 8, 8)
    model = out.model.copy()
    dequantize(model)
    x = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    assert np.abs(run(model, x) - out.output).max() < 0.1 * out.reference.std()


def test_quantizing_twice_is_refused_and_the_way_out_is_named(graph, quantized):
    out = quantized(graph(BLOCK, IMAGE, "[N,5]", **PARTS), 8, 3, 8, 8)
    with pytest.raises(ModelError, match="quantized already") as error:
        quantized(out.model, 8, 3, 8, 8)
    assert "requantize=true" in error.value.hint


def test_requantizing_gives_one_layer_of_quantization(graph, quantized):
    text = graph(BLOCK, IMAGE, "[N,5]", **PARTS)
    first = quantized(text, 32, 3, 8, 8, per_channel=False)
    again = quantized(first.model, 32, 3, 8, 8, requantize=True)
    assert again.result.metrics["dequantized"]["QuantizeLinear"] > 0
    assert again.result.metrics["int8_operators"] == first.result.metrics["int8_operators"]
    assert again.ops["QuantizeLinear"] <= first.ops["QuantizeLinear"] + 1
    assert np.abs(again.output - first.reference).max() < 0.2 * first.reference.std()
    four = quantized(first.model, 32, 3, 8, 8, requantize=True, weights="int4")
    assert four.result.metrics["int4_weights"] > 0


def test_a_float_model_is_not_touched_by_requantize(graph, quantized):
    out = quantized(graph(BLOCK, IMAGE, "[N,5]", **PARTS), 8, 3, 8, 8, requantize=True)
    assert "dequantized" not in out.result.metrics


def test_operators_on_integers_are_refused():
    model = Model.from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,3] y)
        <float s = {0.1}, uint8 z = {0}, int8[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, int8 wz = {0}>
        { q = QuantizeLinear(x, s, z) y = QLinearMatMul(q, s, z, w, s, wz, s, z) }""".replace(
            "y = QLinearMatMul", "m = QLinearMatMul"
        ).replace("s, z) }", "s, z) y = DequantizeLinear(m, s, z) }")
    )
    with pytest.raises(ModelError, match=r"QLinearMatMul.*computes with integers"):
        dequantize(model)
