"""The quantize pass: int8 by calibration, placed where it pays on the target."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.layers.running import IMAGES, load_images
from graphopt.errors import ModelError, PassError, UsageError
from graphopt.ir import Model
from graphopt.ir.upgrade import upgrade
from graphopt.passes.quantize import pack
from graphopt.passes.quantize.calibrate import calibrate
from graphopt.passes.quantize.equalize import equalize
from graphopt.passes.quantize.fusion import check_fusion
from graphopt.passes.quantize.lowering import lower
from graphopt.passes.quantize.operators import has_weights
from graphopt.passes.quantize.placement import decide
from graphopt.passes.quantize.ranges import Limits
from graphopt.passes.quantize.reconstruct import reconstruct
from graphopt.passes.quantize.rewrite import Rewriter
from graphopt.passes.quantize.weights_only import hold
from graphopt.pipeline import Context, Kind, Pass, PassResult, Skipped, option
from graphopt.pipeline.patterns import matching, unmatched
from graphopt.runtime.session import PROVIDER

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")

_UNFUSED = "quantized, but ONNX Runtime runs it in float between conversions: name it in keep_float to spare those"


@dataclass(frozen=True)
class Quantize(Pass):
    """Run the model in int8: weights and activations, calibrated on images.

    Weights become int8, symmetric, one scale a channel; activations uint8 with the range that they take on the
    calibration images; biases int32. The result is an ONNX file with QuantizeLinear and DequantizeLinear, whose inputs
    and outputs stay float. What the target has no int8 operator for, or where converting back and forth would cost
    more than int8 saves, stays in float and is listed in the report.
    """

    name = "quantize"
    kind = Kind.LOSSY
    requires = ("simplify",)

    calibration: str = option(
        "minmax",
        "How a tensor's range is found: its extremes, or all but rare values",
        choices=("minmax", "percentile"),
    )
    percentile: float = option(99.999, "Values inside the range, in percent (percentile)", min=50.0, max=100.0)
    place: str = option(
        "faster",
        "What runs in int8: what gains time by it, or all that has weights",
        choices=("faster", "smaller"),
    )
    per_channel: bool = option(True, "One weight scale an output channel instead of one a tensor")
    weights: str = option("int8", "Type of the weights; int4 is for size", choices=("int8", "int4"))
    activations: str = option(
        "int8", "Type of what is computed between layers; float leaves it as it is", choices=("int8", "float")
    )
    rounding: str = option(
        "auto",
        "How weights become integers: the nearest, or those that give a layer's outputs back best (auto: for int4)",
        choices=("auto", "nearest", "reconstruct"),
    )
    bias_correction: str = option(
        "auto",
        "Whether biases take up the mean error of rounded weights (fast), or in sequence that of all layers (full)",
        choices=("auto", "none", "fast", "full"),
    )
    equalize: bool = option(False, "Give channels between layers the same range first, where that is exact")
    keep_float: tuple[str, ...] = option((), "Nodes to leave in float, by name or pattern such as */head/*")
    images: int | None = option(None, "Calibration images to use at most (default: all)", min=1)

    def run(self, model: Model, ctx: Context) -> PassResult:
        _refuse_quantized(model)
        _check_patterns(self.keep_float, model)
        if not any(_has_float_weights(n) for n in model.graph.nodes):
            raise _nothing(model)
        if self.weights == "int4" and model.opset < pack.OPSET:
            upgrade(model, pack.OPSET)
        lowered = lower(model, self.keep_float)
        metrics: dict[str, Any] = {"lowered": lowered} if lowered else {}
        uneven: list[Skipped] = []
        if self.equalize:
            metrics["equalized_pairs"], uneven = equalize(model, self.keep_float)
        original = model.copy()
        int4 = self._four_bits(model)
        if self.activations == "float":
            return self._weights_only(model, original, int4, metrics, uneven, ctx)
        plan = decide(model, ctx.target, self.keep_float, all_weights=self.place == "smaller")
        if not any(has_weights(n) for i, n in enumerate(model.graph.nodes) if i in plan.int8):
            ctx.progress.warn("quantize: nothing was quantized; the report says why for each operator")
            return PassResult(
                bool(lowered) or bool(metrics.get("equalized_pairs")),
                {"int8_operators": {}, "lowered": lowered},
                plan.skipped,
            )
        percentile = self.percentile if self.calibration == "percentile" else 100.0
        found = calibrate(model, ctx, plan, percentile, self.images)
        means = {} if self.bias_correction == "none" else found.means
        rewriter = Rewriter(model, ctx.target, plan, found.params, means, self.per_channel, int4)
        rest = [n for n in self._candidates(model) if n.name in int4]
        rewriter.apply()
        limits = {**rewriter.limits, **hold(model, [n for n in rest if has_weights(n)], int4, self.per_channel)}
        metrics |= {
            "int8_operators": {op: len(names) for op, names in sorted(rewriter.planned.items())},
            "calibration_images": min(len(ctx.calibration), self.images or len(ctx.calibration)),
            "calibrated_tensors": len(found.params),
            "synthetic_calibration": bool(ctx.calibration.synthetic),
        }
        if rewriter.widened:
            metrics["channels_widened_for_bias"] = rewriter.widened
        refitted = self._refit(original, model, limits, metrics, ctx)
        if int4:
            metrics["int4_weights"] = pack.pack(model, int4, ctx.target.provider == PROVIDER)
        unfused = _verify(model, ctx, rewriter.planned, metrics)
        return PassResult(True, metrics, plan.skipped + uneven + refitted + unfused)

    def _candidates(self, model: Model) -> list[gs.Node]:
        return [n for n in model.graph.nodes if _has_float_weights(n) and matching(n.name, self.keep_float) is None]

    def _four_bits(self, model: Model) -> frozenset[str]:
        return pack.four_bit_layers(self._candidates(model)) if self.weights == "int4" else frozenset()

    def _weights_only(
        self,
        model: Model,
        original: Model,
        int4: frozenset[str],
        metrics: dict[str, Any],
        skipped: list[Skipped],
        ctx: Context,
    ) -> PassResult:
        limits = hold(model, self._candidates(model), int4, self.per_channel)
        metrics["weights_only"] = len(limits)
        skipped = skipped + self._refit(original, model, limits, metrics, ctx)
        if int4:
            metrics["int4_weights"] = pack.pack(model, int4, False)
        return PassResult(bool(limits), metrics, skipped)

    def _refit(
        self, original: Model, model: Model, limits: Mapping[str, Limits], metrics: dict[str, Any], ctx: Context
    ) -> list[Skipped]:
        """Reconstruction and full bias correction, where asked for."""
        weights = self.rounding == "reconstruct" or (self.rounding == "auto" and self.weights == "int4")
        biases = self.bias_correction == "full" or (self.bias_correction == "auto" and weights)
        if not weights and not biases:
            return []
        images = load_images(original, ctx, min(IMAGES, self.images or IMAGES), "quantize.images")
        found = reconstruct(original, model, limits, images, ctx, weights=weights, biases=biases)
        metrics["reconstruction" if weights else "bias_correction"] = found.metrics()
        return found.skipped


def _verify(model: Model, ctx: Context, planned: dict[str, list[str]], metrics: dict[str, Any]) -> list[Skipped]:
    """Put into ``metrics`` what ONNX Runtime fuses; the planned nodes that it is known to run in float."""
    try:
        fusion = check_fusion(model, ctx.target, planned)
    except Exception as error:
        raise PassError(f"ONNX Runtime does not load the quantized model: {error}") from error
    if fusion is None:
        return []
    metrics["int8_operators_fused"] = fusion.counts
    missing = {op: len(names) - fusion.counts[op] for op, names in sorted(planned.items())}
    missing = {op: count for op, count in missing.items() if count > 0}
    if missing:
        text = ", ".join(f"{count} {op}" for op, count in missing.items())
        ctx.progress.warn(f"quantize: ONNX Runtime runs these in float although they were quantized: {text}")
        metrics["not_fused"] = missing
    operator = {name: op for op, names in planned.items() for name in names}
    return [Skipped(name, operator[name], _UNFUSED) for name in fusion.in_float]


def _has_float_weights(node: gs.Node) -> bool:
    return has_weights(node) and node.inputs[1].dtype == np.float32


def _refuse_quantized(model: Model) -> None:
    found = Counter(
        n.op for g in model.graphs() for n in g.nodes if n.op in _QUANTIZED or n.op.startswith(("QLinear", "QGemm"))
    )
    if found:
        what = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
        raise ModelError(
            f"the model is quantized already: it has {what}", "run the quantize pass on the float model it came from"
        )


def _nothing(model: Model) -> PassError:
    if any(c.dtype == np.float16 for c in model.constants()):
        return PassError("nothing to quantize: the weights are float16", "convert the model to float32 first")
    return PassError(
        "nothing to quantize: the model has no Conv, Gemm or MatMul with constant float32 weights",
        "weights that other nodes compute become constant with the fold pass",
    )


def _check_patterns(patterns: tuple[str, ...], model: Model) -> None:
    names = [n.name for n in model.graph.nodes]
    stray = unmatched(patterns, names)
    if stray is not None:
        near = difflib.get_close_matches(stray, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "inspect lists the nodes"
        raise UsageError(f"keep_float pattern {stray!r} matches no node of the model", hint)


__all__ = ["Quantize"]
