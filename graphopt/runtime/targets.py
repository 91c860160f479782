"""The targets that there are. Every rule on where int8 goes is a field here."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace

from graphopt.runtime import target as this
from graphopt.runtime.target import Costs, OpCost, Target

_ORT_INT8 = frozenset("Conv MatMul Gemm Add Mul AveragePool GlobalAveragePool LeakyRelu Sigmoid Softmax Concat".split())
_ORT_PASSTHROUGH = frozenset(
    "MaxPool ReduceMax ReduceMin Resize Reshape Transpose Flatten Squeeze Unsqueeze".split()
).union("Slice Split Gather Expand Tile".split())
# From ONNX Runtime's profiles of whole models on an x86 CPU with AVX512-VNNI, where weights and tensors come from where
# they are in a network. In float an activation behind a Conv is fused, thus free. A Conv in int8 first copies the input
# under each tap of its kernel: with few channels, as in the first layer, that takes longer than the products.
_ORT_COSTS = Costs(
    ops=(
        ("Conv", OpCost(0.0095, 0.0022, 0.16, 0.10, int8_tap_ns=1.0)),
        ("depthwise", OpCost(0.0165, 0.0225, 0.20, 0.14, int8_tap_ns=0.1, int8_odd_ns=0.7)),
        ("Gemm", OpCost(0.0095, 0.0022, 0.16, 0.30)),
        ("MatMul", OpCost(0.0095, 0.0022, 0.16, 0.30)),
        ("vector", OpCost(0.13, 0.04)),
        ("product", OpCost(0.012, 0.02, 0.10, 0.20)),
        ("Add", OpCost(0.08, 0.11)),
        ("Mul", OpCost(0.08, 0.20)),
        ("HardSigmoid", OpCost(0.03, 0.09)),
        ("Sigmoid", OpCost(0.5, 0.5)),
        ("LeakyRelu", OpCost(0.1, 0.5)),
        ("Softmax", OpCost(0.3, 2.4)),
        ("AveragePool", OpCost(0.5, 0.5)),
        ("GlobalAveragePool", OpCost(1.0, 1.0)),
        ("MaxPool", OpCost(1.0, 0.5)),
    ),
    convert_ns=0.3,
    node_ns=1500.0,
    relayout=4.0,
)

# Rough, since neither runtime can be timed here: products gain by a factor, and conversions are part of the operators.
_ELSEWHERE_COSTS = Costs(
    ops=(
        ("Conv", OpCost(0.01, 0.003)),
        ("depthwise", OpCost(0.02, 0.02)),
        ("Gemm", OpCost(0.01, 0.003)),
        ("MatMul", OpCost(0.01, 0.003)),
        ("vector", OpCost(0.1, 0.03)),
        ("product", OpCost(0.01, 0.005)),
    ),
    default=OpCost(0.1, 0.09),
    convert_ns=0.001,
    node_ns=10.0,
)


def _x86(name: str, vnni: bool) -> Target:
    return Target(
        name=name,
        provider="CPUExecutionProvider",
        activation="uint8",
        weight="int8",
        symmetric_activations=False,
        reduce_range=not vnni,
        channel_multiple=8,
        int8_channel_multiple=16,  # of outputs; others take kernels half as fast that copy their inputs first
        int8_ops=_ORT_INT8,
        passthrough_ops=_ORT_PASSTHROUGH,
        float_output_ops=frozenset({"Gemm", "MatMul"}),
        absorbed_ops=frozenset({"Relu", "Clip"}),
        integer_ops=frozenset({"Pad"}),
        self_quantizing=frozenset({"Conv", "ConvTranspose", "Gemm"}),
        int8_followers=frozenset({"MaxPool"}),
        joining_ops=frozenset({"Add", "Mul", "Concat"}),
        measurable=not _is_arm() and vnni == this.has_vnni(),
        fused_names=(
            ("Conv", ("QLinearConv",)),
            ("Gemm", ("QGemm",)),
            ("MatMul", ("QLinearMatMul", "MatMulIntegerToFloat")),
        ),
        costs=_ORT_COSTS,
    )


def _arm(name: str) -> Target:
    """The same operators as on x86. ARM's byte products add up in 32 bits: the whole range of the weights is safe."""
    return replace(_x86(name, vnni=True), reduce_range=False, measurable=_is_arm())


def _here() -> Target:
    return _arm("ort-cpu") if _is_arm() else _x86("ort-cpu", this.has_vnni())


def _is_arm() -> bool:
    return platform.machine().lower() in ("aarch64", "arm64")


def _tensorrt() -> Target:
    """NVIDIA TensorRT reads QuantizeLinear and DequantizeLinear as orders: int8 without zero points, biases in float.

    A convolution takes a residual sum and a Relu behind it into one kernel, so neither is quantized before its end.
    """
    return Target(
        name="tensorrt",
        provider="TensorrtExecutionProvider",
        activation="int8",
        weight="int8",
        symmetric_activations=True,
        reduce_range=False,
        channel_multiple=32,
        int8_channel_multiple=32,
        int8_ops=frozenset("Conv MatMul Gemm Add AveragePool GlobalAveragePool".split()),
        passthrough_ops=frozenset("MaxPool Reshape Transpose Flatten Squeeze Unsqueeze".split()),
        float_output_ops=frozenset("Conv MatMul Gemm Add AveragePool GlobalAveragePool".split()),
        fused_behind=frozenset({"Relu", "Clip", "Sigmoid", "Mul", "HardSwish"}),
        float_bias=True,
        costs=_ELSEWHERE_COSTS,
    )


def _openvino() -> Target:
    """OpenVINO folds the conversions into its operators, and drops those that it cannot use."""
    return Target(
        name="openvino",
        provider="OpenVINOExecutionProvider",
        activation="uint8",
        weight="int8",
        symmetric_activations=False,
        reduce_range=not this.has_vnni(),
        channel_multiple=16,
        int8_channel_multiple=16,
        int8_ops=frozenset("Conv MatMul Gemm Add Mul AveragePool GlobalAveragePool Concat".split()),
        passthrough_ops=_ORT_PASSTHROUGH - {"Resize"},
        float_output_ops=frozenset({"Conv", "MatMul", "Gemm"}),
        absorbed_ops=frozenset({"Relu", "Clip"}),
        float_bias=True,
        costs=_ELSEWHERE_COSTS,
    )


TARGETS: dict[str, Callable[[], Target]] = {
    "ort-cpu": _here,
    "ort-cpu-vnni": lambda: _x86("ort-cpu-vnni", vnni=True),
    "ort-cpu-novnni": lambda: _x86("ort-cpu-novnni", vnni=False),
    "ort-cpu-arm": lambda: _arm("ort-cpu-arm"),
    "tensorrt": _tensorrt,
    "openvino": _openvino,
}
