"""What inspect says of a quantized model."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from graphopt import Context, Model
from graphopt.analysis.quantization import describe_quantization
from graphopt.runtime.target import get_target

QUANTIZED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,2,4,4] x) => (float[N,2,4,4] y)
<float s = {0.1}, uint8 z = {100}, int8[2,2,1,1] w = {127, 3, -50, 20}, float[2] ws = {0.01, 0.02}, int8[2] wz = {0, 0},
 float t = {0.05}, uint8 o = {0}>
{ xq = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(xq, s, z)
  wd = DequantizeLinear<axis=0>(w, ws, wz)
  c = Conv(xd, wd)
  cq = QuantizeLinear(c, t, o)
  cd = DequantizeLinear(cq, t, o)
  y = Erf(cd) }
"""


class Images:
    synthetic = False

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def subset(self, n: int, seed: int = 0) -> Images:
        return Images(self.x[:n])

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[np.ndarray]:
        for start in range(0, len(self), batch_size):
            yield self.x[start : start + batch_size]


def described(text: str, x: np.ndarray | None = None):
    model = Model.from_text(text)
    images = Images(x if x is not None else np.zeros((0, 2, 4, 4), np.float32))
    ctx = Context(get_target("ort-cpu"), images, model)  # type: ignore[arg-type]
    return describe_quantization(model, ctx, None if x is None else len(x))


def test_a_float_model_has_nothing_to_say():
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[N,2] x) => (float[N,2] y) { y = Relu(x) }'
    assert described(text) is None


def test_scales_and_ranges():
    found = described(QUANTIZED)
    first, second = found["activations"]
    assert (first["tensor"], first["dtype"], first["zero_point"]) == ("x", "uint8", 100)
    assert first["range"] == pytest.approx([-10.0, 15.5]) and second["range"] == pytest.approx([0.0, 12.75])
    assert first["observed"] is None and first["saturated"] is None
    (weights,) = found["weights"]
    assert (weights["tensor"], weights["shape"], weights["scales"], weights["largest"]) == ("w", [2, 2, 1, 1], 2, 127)
    assert weights["scale"] == pytest.approx([0.01, 0.02]) and weights["read_by"] == ["Conv"]


def test_what_runs_in_int8():
    runtime = described(QUANTIZED)["runtime"]
    assert runtime["int8"] == {"QLinearConv": 1} and runtime["float"] == {"Erf": 1}
    assert runtime["conversions"] == 2 and runtime["layers_in_float"] == [] and runtime["error"] is None


def test_layers_that_stay_in_float_are_named():
    alone = QUANTIZED.replace("cq = QuantizeLinear(c, t, o)", "e = Tanh(c)").replace(
        "cd = DequantizeLinear(cq, t, o)", "cd = Neg(e)"
    )
    runtime = described(alone)["runtime"]
    assert runtime["int8"] == {} and len(runtime["layers_in_float"]) == 1


def test_saturation_on_images():
    x = np.zeros((4, 2, 4, 4), np.float32)
    x[0, 0, 0, 0], x[1, 0, 0, 0], x[2, 0, 0, 0], x[3, 0, 0, 0] = 16.0, -11.0, 15.54, 15.5
    first = described(QUANTIZED, x)["activations"][0]
    assert first["observed"] == pytest.approx([-11.0, 16.0])
    assert first["saturated"] == pytest.approx([1 / x.size, 1 / x.size])  # 15.54 is rounded, not cut off


def test_a_model_that_the_runtime_refuses():
    runtime = described(QUANTIZED.replace("Erf(cd)", "NoSuchOp(cd)"))["runtime"]
    assert runtime["int8"] == {} and "NoSuchOp" in runtime["error"]


def test_weights_of_four_bits_behind_a_cast_are_weights():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    net (float[N,2] x) => (float[N,2] y)
    <float s = {0.1}, uint8 z = {100}, int8[2,2] w = {7, 3, -5, 2}, float[2] ws = {0.01, 0.02}, int8[2] wz = {0, 0}>
    { xq = QuantizeLinear(x, s, z)
      xd = DequantizeLinear(xq, s, z)
      wc = Cast<to=3>(w)
      wd = DequantizeLinear<axis=1>(wc, ws, wz)
      y = MatMul(xd, wd) }
    """
    model = Model.from_text(text)
    with model.edit():
        held = next(c for c in model.constants() if c.name == "w")
        held.values = held.values.astype(ml_dtypes.int4)
    images = Images(np.zeros((0, 2), np.float32))
    (weights,) = describe_quantization(model, Context(get_target("ort-cpu"), images, model))["weights"]  # type: ignore
    assert (weights["tensor"], weights["dtype"], weights["shape"]) == ("w", "int4", [2, 2])
    assert weights["largest"] == 7 and weights["read_by"] == ["MatMul"]
    assert weights["scale"] == pytest.approx([0.01, 0.02])
