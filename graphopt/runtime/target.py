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
    """

    float_ns: float
    int8_ns: float


@dataclass(frozen=True)
class Costs:
    """Costs of the operators of a target, by name; ``depthwise`` stands for a Conv with one input channel a group.

    ``convert_ns`` is what QuantizeLinear and DequantizeLinear take an element, ``node_ns`` what any operator takes
    however small its work.
    """

    ops: tuple[tuple[str, OpCost], ...] = ()
    default: OpCost = OpCost(0.3, 0.3)
    convert_ns: float = 0.2
    node_ns: float = 3000.0

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
    fused_names: tuple[tuple[str, tuple[str, ...]], ...] = ()
    costs: Costs = Costs()

    def fused(self, op: str) -> tuple[str, ...]:
        """The runtime's names for ``op`` in int8."""
        return dict(self.fused_names).get(op, (f"QLinear{op}",))


_ORT_INT8 = frozenset("Conv MatMul Gemm Add Mul AveragePool GlobalAveragePool LeakyRelu Sigmoid Softmax Concat".split())
_ORT_PASSTHROUGH = frozenset(
    "MaxPool ReduceMax ReduceMin Resize Reshape Transpose Flatten Squeeze Unsqueeze".split()
).union("Slice Split Gather Expand Tile".split())
# Medians of ONNX Runtime's profiler on an x86 CPU with AVX512-VNNI. In float an activation behind a Conv is fused,
# thus free; a 1x1 Conv is the rule, a depthwise one hardly gains in int8.
_ORT_COSTS = Costs(
    ops=(
        ("Conv", OpCost(0.021, 0.0075)),
        ("depthwise", OpCost(0.05, 0.05)),
        ("Gemm", OpCost(0.05, 0.02)),
        ("MatMul", OpCost(0.03, 0.017)),
        ("Add", OpCost(0.15, 0.25)),
        ("Mul", OpCost(0.25, 0.35)),
        ("HardSigmoid", OpCost(0.05, 0.3)),
        ("Sigmoid", OpCost(0.5, 0.5)),
        ("LeakyRelu", OpCost(0.1, 0.5)),
        ("Softmax", OpCost(1.0, 6.0)),
        ("AveragePool", OpCost(0.5, 0.5)),
        ("GlobalAveragePool", OpCost(1.0, 1.0)),
        ("MaxPool", OpCost(1.0, 0.5)),
    )
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
