"""What the model will run on. Quantization, channel rounding and placement read this record; no pass has an ``if`` of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from graphopt.spec import unknown


@dataclass(frozen=True)
class Target:
    """A place to run.

    ``channel_multiple``: channel counts that are not a multiple of it waste lanes of the vector kernels.
    ``reduce_range``: 7-bit weights, for CPUs whose 8-bit products saturate in 16 bits.
    ``int8_ops``: operators that run in int8 between DequantizeLinear and QuantizeLinear.
    ``passthrough_ops``: operators that only move values, so that input and output must share quantization parameters.
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


_ORT_INT8 = frozenset(
    "Conv MatMul Gemm Add Mul AveragePool GlobalAveragePool LeakyRelu Sigmoid Softmax Concat".split()
)
_ORT_PASSTHROUGH = frozenset(
    "MaxPool Resize Reshape Transpose Flatten Squeeze Unsqueeze Slice Gather Expand Tile ReduceMax ReduceMin Split".split()
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
    )


TARGETS: dict[str, Callable[[], Target]] = {"ort-cpu": _ort_cpu}


def get_target(name: str) -> Target:
    """The target called ``name``. Raises UsageError with the nearest match."""
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]()
