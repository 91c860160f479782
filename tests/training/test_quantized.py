"""Training through QuantizeLinear and DequantizeLinear: gradients, and integers that go back as they were trained."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from graphopt import Model
from graphopt.ir import infer_shapes
from graphopt.ir.values import peek
from graphopt.training.executor import Executor
from graphopt.training.ops.quantization import fake_quantize, quantize

# A convolution as the quantize pass writes it: integers everywhere, an int32 bias, one scale a channel of the weight.
TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N,2,4,4] x) => (float[N,3,4,4] y)
<float xs = {0.02}, uint8 xz = {120}, int32[3] bz = {0, 0, 0}, float ys = {0.05}, uint8 yz = {3}>
{
    xq = QuantizeLinear (x, xs, xz)
    xd = DequantizeLinear (xq, xs, xz)
    wd = DequantizeLinear <axis = 0> (wq, ws, wz)
    bd = DequantizeLinear <axis = 0> (bq, bs, bz)
    c = Conv <pads = [1,1,1,1]> (xd, wd, bd)
    yq = QuantizeLinear (c, ys, yz)
    y = DequantizeLinear (yq, ys, yz)
}
"""


def quantized(kind: str = "int8") -> Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    most = 7 if kind == "int4" else 127
    scales = rng.uniform(0.5, 1.5, 3).astype(np.float32) / most
    integers = rng.integers(-most, most + 1, (3, 2, 3, 3))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.upper()))
    proto.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(integers.astype(dtype), "wq"),
            onnx.numpy_helper.from_array(np.zeros(3, dtype), "wz"),
            onnx.numpy_helper.from_array(scales, "ws"),
            onnx.numpy_helper.from_array(rng.integers(-900, 900, 3).astype(np.int32), "bq"),
            onnx.numpy_helper.from_array(np.float32(0.02) * scales, "bs"),
        ]
    )
    return Model.from_proto(proto)


def initializers(model: Model) -> dict[str, np.ndarray]:
    return {c.name: np.array(peek(c)) for c in model.constants()}


def run(model: Model, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(0, 0.9, (5, 2, 4, 4)).astype(np.float32))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_what_trains_is_found_and_nothing_changes_untrained(kind: str) -> None:
    model = quantized(kind)
    program = Executor(model, train=True)
    state = program.state
    assert state is not None
    assert set(state.weights) == {"wq", "bq"} and set(state.scales) == {"xs", "ws", "ys"}
    assert state.roles.biases["bq"].scale == "bs"
    before = initializers(model)
    assert state.write(model) == 0
    assert all(np.array_equal(before[n], v) for n, v in initializers(model).items())
    np.testing.assert_array_equal(program.run(images())["y"].detach().numpy(), run(model, images().numpy()))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_what_was_trained_is_what_is_written(kind: str) -> None:
    model = quantized(kind)
    program = Executor(model, train=True)
    state = program.state
    assert state is not None
    before, structure = initializers(model), [(n.op, [t.name for t in n.inputs]) for n in model.graph.nodes]
    optimizer = torch.optim.Adam(state.parameters(), lr=0.03)
    for _ in range(20):
        optimizer.zero_grad()
        (program.run(images())["y"] - 0.7).square().mean().backward()
        optimizer.step()
    trained = program.run(images())["y"].detach().numpy()
    assert state.write(model) >= 5
    after = initializers(model)
    assert structure == [(n.op, [t.name for t in n.inputs]) for n in model.graph.nodes]
    assert all(after[n].dtype == before[n].dtype and after[n].shape == before[n].shape for n in before)
    assert all(np.array_equal(after[n], before[n]) for n in ("xz", "wz", "bz", "yz"))
    assert not np.array_equal(after["wq"], before["wq"]) and not np.array_equal(after["xs"], before["xs"])
    # a runtime takes the int32 bias in units of this product, whatever the file says
    np.testing.assert_array_equal(after["bs"], after["xs"] * after["ws"])
    assert all((after[n] > 0).all() for n in ("xs", "ws", "ys"))
    onnx.checker.check_model(onnx.load_from_string(model.to_bytes()), full_check=True)
    # One step of the output's rounding is the most that a last digit can decide.
    difference = np.abs(run(model, images().numpy()) - trained)
    assert difference.max() <= after["ys"] * 1.01 and (difference > 1e-5).mean() < 0.02


def test_int4_widened_for_int8_kernels_trains_too() -> None:
    model = quantized("int4")
    text = model.to_proto()
    (reader,) = [n for n in text.graph.node if n.output[0] == "wd"]
    reader.input[:] = ["wide", "ws"]
    text.graph.node.insert(0, onnx.helper.make_node("Cast", ["wq"], ["wide"], to=onnx.TensorProto.INT8))
    model = Model.from_proto(text)
    infer_shapes(model)
    program = Executor(model, train=True)
    assert program.state is not None and "wq" in program.state.weights and program.state.roles.biases
    before = initializers(model)["wq"]
    program.run(images())["y"].sum().backward()
    assert program.state.weights["wq"].grad is not None
    torch.optim.SGD([program.state.weights["wq"]], 1e-2).step()
    program.state.write(model)
    after = initializers(model)["wq"]
    assert after.dtype == before.dtype and not np.array_equal(after, before)
    np.testing.assert_allclose(program.run(images())["y"].detach().numpy(), run(model, images().numpy()), atol=0.0501)


def test_a_scale_of_a_bias_that_others_read_keeps_all_three() -> None:
    proto = quantized().to_proto()
    proto.graph.node.append(onnx.helper.make_node("DequantizeLinear", ["bq", "bs"], ["other"], axis=0))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [3]))
    state = Executor(Model.from_proto(proto), train=True).state
    assert state is not None
    assert "bq" not in state.weights, "read twice"
    assert set(state.scales) <= {"xs", "ws", "ys"} and "bs" not in state.scales


def test_scales_can_stay() -> None:
    program = Executor(quantized(), train=True, learn_scales=False)
    assert program.state is not None and not program.state.scales


def test_scales_on_both_sides_of_a_pooling_stay_equal() -> None:
    text = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N,2,4,4] x) => (float[N,2,2,2] y)
<float a = {0.02}, float b = {0.02}, float c = {0.03}, uint8 z = {9}>
{
    q = QuantizeLinear (x, a, z)
    d = DequantizeLinear (q, a, z)
    p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (d)
    r = QuantizeLinear (p, b, z)
    e = DequantizeLinear (r, b, z)
    s = Relu (e)
    u = QuantizeLinear (s, c, z)
    y = DequantizeLinear (u, c, z)
}
"""
    state = Executor(Model.from_text(text), train=True).state
    assert state is not None
    assert state.roles.scales["a"] == state.roles.scales["b"] != state.roles.scales["c"]
    assert len(state.scales) == 2


def test_gradient_of_a_scale_is_that_of_the_published_method() -> None:
    x = torch.tensor([-9.0, -0.26, 0.24, 0.61, 30.0], dtype=torch.float64)
    low, high, zero = 0, 255, 10.0
    for function in (
        lambda x, s: fake_quantize(x, s, zero, low, high),
        lambda x, s: (quantize(x, s, zero, low, high) - zero) * s,
    ):
        v = x.clone().requires_grad_()
        s = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        y = function(v, s)
        y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64))
        assert v.grad is not None and s.grad is not None
        assert v.grad.tolist() == pytest.approx([0.0, 2.0, 3.0, 4.0, 0.0])
        # outside: the bound in steps; inside: the rounding error in steps (Esser et al., equation 3)
        inside = [2 * (-3 + 2.6), 3 * (2 - 2.4), 4 * (6 - 6.1)]
        assert float(s.grad) == pytest.approx(1 * (low - zero) + sum(inside) + 5 * (high - zero))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "uint4", "int16", "uint16"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_every_type_forward(kind: str, shape: tuple[int, ...]) -> None:
    proto = onnx.parser.parse_model(
        """
<ir_version: 10, opset_import: ["" : 21]>
g (float[3,50] x) => (float[3,50] y)
{
    q = QuantizeLinear <axis = 0> (x, s, z)
    y = DequantizeLinear <axis = 0> (q, s, z)
}
"""
    )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.upper()))
    scale, zero = np.float32([0.13, 0.2, 0.01]), np.array([3, 0, 5]).astype(dtype)
    for name, values in (("s", scale), ("z", zero)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values if shape else values[0:1].reshape(()), name))
    model = Model.from_proto(proto)
    x = np.random.default_rng(0).normal(0, 20, (3, 50)).astype(np.float32)
    found = Executor(model).run(torch.from_numpy(x))["y"].numpy()
    np.testing.assert_array_equal(found, run(model, x))
