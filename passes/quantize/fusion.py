"""Whether ONNX Runtime runs in int8 what was meant to: read off the model as it optimizes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphopt.errors import PassError
from graphopt.ir import Model
from graphopt.passes.quantize.assemble import Built
from graphopt.pipeline import Context, Skipped
from graphopt.runtime.optimized import optimized
from graphopt.runtime.session import PROVIDER
from graphopt.runtime.target import Target

_UNFUSED = "quantized, but ONNX Runtime runs it in float between conversions: name it in keep_float to spare those"
_REPAIRED = "ONNX Runtime would have run it in float between conversions, so these were taken out again"


@dataclass(frozen=True)
class Fusion:
    """How many operators of each planned kind run in int8, and the operators of planned nodes that stayed float, by
    name. ``planned``: counts by operator."""

    planned: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    in_float: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> dict[str, int]:
        """How many of a kind do not run in int8."""
        return {op: n - self.counts[op] for op, n in self.planned.items() if op in self.counts and n > self.counts[op]}

    def metrics(self) -> dict[str, Any]:
        """For the report; empty if the runtime was not asked."""
        if not self.counts:
            return {}
        found: dict[str, Any] = {"int8_operators_fused": self.counts}
        return found | {"not_fused": self.missing} if self.missing else found

    def skipped(self, repaired: bool = False) -> list[Skipped]:
        """The nodes that stayed float, and why."""
        return [Skipped(name, op, _REPAIRED if repaired else _UNFUSED) for name, op in self.in_float.items()]


def verify(built: Built, ctx: Context) -> Fusion:
    """Compare what is planned with what ONNX Runtime makes of it, and warn of a difference.

    Raises PassError if it does not load the model.
    """
    try:
        found = check_fusion(built.model, ctx.target, built.planned)
    except Exception as error:
        raise PassError(f"ONNX Runtime does not load the quantized model: {error}") from error
    if found.missing:
        text = ", ".join(f"{count} {op}" for op, count in found.missing.items())
        ctx.progress.warn(f"quantize: ONNX Runtime runs these in float although they were quantized: {text}")
    return found


def check_fusion(model: Model, target: Target, planned: Mapping[str, Sequence[str]]) -> Fusion:
    """Compare ``planned`` (node names by operator) with what ONNX Runtime does; empty if the target is not its CPU.

    Raises ONNX Runtime's exception if it does not load the model.
    """
    if target.provider != PROVIDER:
        return Fusion()
    nodes = optimized(model)
    found = Counter(n.op for n in nodes)
    counts = {op: sum(found[name] for name in target.fused(op)) for op in sorted(planned)}
    kinds = {n.name: n.op for n in nodes}
    in_float = {n: op for op in sorted(planned) for n in planned[op] if kinds.get(n) in (op, f"Fused{op}")}
    return Fusion({op: len(names) for op, names in sorted(planned.items())}, counts, in_float)
