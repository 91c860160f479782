"""What the model will run on.

Quantization, channel rounding and placement read this record; no pass has an ``if`` of its own.
"""

from __future__ import annotations

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
    ``relayout``: so many conversions more where one of ``Target.joining_ops`` reads images from float.
    """

    ops: tuple[tuple[str, OpCost], ...] = ()
    default: OpCost = OpCost(0.3, 0.3)
    convert_ns: float = 0.2
    node_ns: float = 3000.0
    lanes: int = 16
    few_channels: float = 4.0
    relayout: float = 0.0

    def of(self, op: str) -> OpCost:
        return dict(self.ops).get(op, self.default)


@dataclass(frozen=True)
class Target:
    """A place to run.

    ``channel_multiple``: channel counts that are not a multiple of it waste lanes of the vector kernels;
    ``int8_channel_multiple``: of the int8 ones.
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
    ``joining_ops``: int8 operators that keep the layout of images from float, while that of a convolution is another:
    all that such a sum is added to changes it back and forth.
    ``fused_behind``: float operators that the runtime makes part of an int8 operator before them.
    ``float_bias``: biases stay float32; the runtime takes no other.
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
    int8_channel_multiple: int
    int8_ops: frozenset[str]
    passthrough_ops: frozenset[str]
    float_output_ops: frozenset[str] = frozenset()
    absorbed_ops: frozenset[str] = frozenset()
    integer_ops: frozenset[str] = frozenset()
    self_quantizing: frozenset[str] = frozenset()
    int8_followers: frozenset[str] = frozenset()
    joining_ops: frozenset[str] = frozenset()
    fused_behind: frozenset[str] = frozenset()
    float_bias: bool = False
    measurable: bool = False
    fused_names: tuple[tuple[str, tuple[str, ...]], ...] = ()
    costs: Costs = Costs()

    def fused(self, op: str) -> tuple[str, ...]:
        """The runtime's names for ``op`` in int8."""
        return dict(self.fused_names).get(op, (f"QLinear{op}",))


@cache
def has_vnni() -> bool:
    """Whether this CPU multiplies bytes without saturating (AVX-VNNI or AVX512-VNNI)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def get_target(name: str) -> Target:
    """The target called ``name``. Raises UsageError with the nearest match."""
    from graphopt.runtime.targets import TARGETS

    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]()
