"""What the model will run on.

Quantization, channel rounding and placement read this record; no pass has an ``if`` of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from graphopt.spec import unknown


@dataclass(frozen=True)
class OpCost:
    """Time of an operator on one thread: nanoseconds a unit, in float and in int8.

    A unit is a multiply-accumulate where the operator has weights, else an output element. Only ratios matter: they
    decide whether an operator between others that stay in float is worth converting its tensors to int8 and back.
    Besides:

    ``float_out_ns``, ``int8_out_ns``: an output element of an operator with weights.
    ``int8_tap_ns``: an element of the kernel at a position of the output, where int8 rearranges the input of a Conv.
    ``int8_odd_ns``: a multiply-accumulate in channels beyond the last full vector (``Costs.lanes``).
    """

    float_ns: float
    int8_ns: float
    float_out_ns: float = 0.0
    int8_out_ns: float = 0.0
    int8_tap_ns: float = 0.0
    int8_odd_ns: float = 0.0


@dataclass(frozen=True)
class Costs:
    """Costs of the operators of a target, by name.

    ``depthwise`` stands for a Conv with one input channel a group, ``vector`` for a Gemm or MatMul of one row by
    constant weights, ``product`` for a MatMul of two activations. ``convert_ns`` is what QuantizeLinear or
    DequantizeLinear takes an element, ``node_ns`` what any operator takes however small its work. ``lanes``: channels
    of a full int8 vector. ``few_channels``: the cost of a tap grows by so many over the number of input channels.
    """

    ops: tuple[tuple[str, OpCost], ...] = ()
    default: OpCost = OpCost(0.3, 0.3)
    convert_ns: float = 0.2
    node_ns: float = 3000.0
    lanes: int = 16
    few_channels: float = 4.0

    def of(self, op: str) -> OpCost:
        return dict(self.ops).get(op, self.default)


@dataclass(frozen=True)
class Target:
    """A place to run.

    ``channel_multiple``: channel counts that are not a multiple of it waste lanes of the vector kernels.
    ``reduce_range``: 7-bit weights, for CPUs whose 8-bit products saturate in 16 bits.
    ``int8_ops``: operators that run in int8 between DequantizeLinear and QuantizeLinear.
    ``passthrough_ops``: operators that only move values, so that input and output must share quantization parameters.
    ``float_output_ops``: the ``int8_ops`` that need no QuantizeLinear behind them: they give float at no extra cost.
    ``absorbed_ops``: activations that the QuantizeLinear behind them replaces when its range says the same.
    ``integer_ops``: operators that no kernel fuses, but that run on the quantized integers as they are.
    ``self_quantizing``: float operators that the runtime quantizes on its own between DequantizeLinear and
    QuantizeLinear.
    ``int8_followers``: operators that are slow in int8 unless what they read was written by an int8 operator, whose
    layout they then share. The runtime drags them into int8 across a QuantizeLinear unless something stands between.
    ``measurable``: whether times that are measured on this machine are those of the target.
    ``fused_names``: what the runtime calls an operator in int8, where it is not ``QLinear`` before the name.
    """

    name: str
    provider: str
    activation: str
    weight: str
    symmetric_activations: bool
    reduce_range: bool
    channel_multiple: int
    int8_ops: frozenset[str]
    passthrough_ops: frozenset[str]
    float_output_ops: frozenset[str] = frozenset()
    absorbed_ops: frozenset[str] = frozenset()
    integer_ops: frozenset[str] = frozenset()
    self_quantizing: frozenset[str] = frozenset()
    int8_followers: frozenset[str] = frozenset()
    measurable: bool = False
    fused_names: tuple[tuple[str, tuple[str, ...]], ...] = ()
    costs: Costs = Costs()

    def fused(self, op: str) -> tuple[str, ...]:
        """The runtime's names for ``op`` in int8."""
        return dict(self.fused_names).get(op, (f"QLinear{op}",))


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
)


@cache
def has_vnni() -> bool:
    """Whether this CPU multiplies bytes without saturating (AVX-VNNI or AVX512-VNNI)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _ort_cpu() -> Target:
    return Target(
        name="ort-cpu",
        provider="CPUExecutionProvider",
        activation="uint8",
        weight="int8",
        symmetric_activations=False,
        reduce_range=not has_vnni(),
        channel_multiple=8,
        int8_ops=_ORT_INT8,
        passthrough_ops=_ORT_PASSTHROUGH,
        float_output_ops=frozenset({"Gemm", "MatMul"}),
        absorbed_ops=frozenset({"Relu", "Clip"}),
        integer_ops=frozenset({"Pad"}),
        self_quantizing=frozenset({"Conv", "ConvTranspose", "Gemm"}),
        int8_followers=frozenset({"MaxPool"}),
        measurable=True,
        fused_names=(
            ("Conv", ("QLinearConv",)),
            ("Gemm", ("QGemm",)),
            ("MatMul", ("QLinearMatMul", "MatMulIntegerToFloat")),
        ),
        costs=_ORT_COSTS,
    )


TARGETS: dict[str, Callable[[], Target]] = {"ort-cpu": _ort_cpu}


def get_target(name: str) -> Target:
    """The target called ``name``. Raises UsageError with the nearest match."""
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]()
