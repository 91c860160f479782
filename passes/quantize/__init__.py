"""The quantize pass: int8 by calibration, placed where it pays on the target."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from threadpoolctl import threadpool_limits

from graphopt.analysis.activations import Method
from graphopt.analysis.cost import cost
from graphopt.analysis.judge import Judge
from graphopt.analysis.layers.suited import suited
from graphopt.errors import ModelError, PassError
from graphopt.ir import Model
from graphopt.ir.upgrade import upgrade
from graphopt.passes.quantize.assemble import Assembler, Built, Recipe
from graphopt.passes.quantize.bounded import Search
from graphopt.passes.quantize.calibrate import calibrate
from graphopt.passes.quantize.dequantize import dequantize
from graphopt.passes.quantize.equalize import equalize
from graphopt.passes.quantize.exclude import patterns, resolve
from graphopt.passes.quantize.fusion import verify
from graphopt.passes.quantize.islands import place, time_against
from graphopt.passes.quantize.lowering import lower
from graphopt.passes.quantize.operators import has_weights
from graphopt.passes.quantize.pack import OPSET, four_bit_layers
from graphopt.passes.quantize.pixels import enter
from graphopt.passes.quantize.placement import Plan
from graphopt.passes.quantize.sensitivity import Sensitivity, sensitivities
from graphopt.pipeline import Context, Kind, Pass, PassResult, Skipped, option
from graphopt.pipeline.patterns import matching
from graphopt.runtime.optimized import CONVERSIONS, on_integers

_SPARE = 0.95  # of the time in float: below it, there is time for an operator that makes images lossless
_SLOWER = (
    "with the layers that max_drop restores, the whole model was measured to be slower in int8 than in float: a larger "
    "max_drop restores fewer"
)


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
        "mse",
        "How a range is found: extremes, their mean over images, all but rare values, least divergence or error",
        choices=("minmax", "average", "percentile", "entropy", "mse"),
    )
    percentile: float = option(99.999, "Values inside the range, in percent (percentile)", min=50.0, max=100.0)
    place: str = option(
        "faster",
        "What runs in int8: what gains time as measured, or by estimate alone, or all that has weights",
        choices=("faster", "estimated", "smaller"),
    )
    per_channel: bool = option(True, "One weight scale an output channel instead of one a tensor")
    weights: str = option("int8", "Type of the weights; int4 is for size", choices=("int8", "int4"))
    activations: str = option(
        "int8", "Type of what is computed between layers; float leaves it as it is", choices=("int8", "float")
    )
    rounding: str = option(
        "auto",
        "How weights become integers: the nearest, those whose errors make up for each other on a layer's inputs "
        "(auto: for int8), or those that give a layer's outputs back best (auto: for int4)",
        choices=("auto", "nearest", "compensate", "reconstruct"),
    )
    bias_correction: str = option(
        "auto",
        "Whether biases take up the mean error of rounded weights (fast), or in sequence that of all layers (full)",
        choices=("auto", "none", "fast", "full"),
    )
    equalize: bool = option(False, "Give channels between layers the same range first, where that is exact")
    max_drop: float | None = option(
        None, "Points of top-1 (without labels: of changed predictions) that may be lost on held-out images", min=0.0
    )
    deadline: float | None = option(None, "Seconds after which max_drop takes the best that it found", min=0.0)
    sensitivity: bool = option(False, "Measure what quantizing each layer alone does to the model")
    requantize: bool = option(False, "Make a quantized model float first, instead of refusing it")
    keep_float: tuple[str, ...] = option(
        (), "Nodes to leave in float: names or patterns (*/head/*), op:Softmax, first, last:2 (of those with weights)"
    )
    images: int | None = option(None, "Calibration images to use at most (default: all)", min=1)

    @property
    def needs_held_out(self) -> bool:
        return self.max_drop is not None or self.sensitivity

    @property
    def to_int8(self) -> bool:
        return self.activations != "float"

    def run(self, model: Model, ctx: Context) -> PassResult:
        # Sums come out alike on every machine, and threads that share few cores do not wait for each other.
        with threadpool_limits(ctx.threads, user_api="blas"):
            return self._resolve(model, ctx)

    def _resolve(self, model: Model, ctx: Context) -> PassResult:
        metrics: dict[str, Any] = {}
        if self.requantize and _quantized(model):
            metrics["dequantized"] = dequantize(model)
        _refuse_quantized(model)
        kept = resolve(self.keep_float, model)
        if kept:
            metrics["keep_float"] = kept
            return replace(self, keep_float=patterns(kept))._run(model, ctx, metrics)
        return self._run(model, ctx, metrics)

    def _run(self, model: Model, ctx: Context, metrics: dict[str, Any]) -> PassResult:
        if not any(_has_float_weights(n) for n in model.graph.nodes):
            raise _nothing(model)
        before = model.copy()
        if self.weights == "int4" and model.opset < OPSET:
            upgrade(model, OPSET)
        lowered = lower(model, self.keep_float)
        metrics |= {"lowered": lowered} if lowered else {}
        skipped: list[Skipped] = []
        if self.equalize:
            metrics["equalized_pairs"], skipped = equalize(model, self.keep_float)
        if ctx.calibration.synthetic:
            ctx = replace(ctx, calibration=suited(ctx))
            metrics["synthetic_images"] = ctx.calibration.description
        judge: Judge | None = None
        if self.max_drop is not None:
            judge, ctx = Judge.of(ctx, cost(model).macs, model.copy())
        assembler = self._assembler(before, model, ctx, metrics, skipped)
        if not assembler.candidates:
            ctx.progress.warn("quantize: nothing was quantized; the report says why for each operator")
            if "time_against_float" in metrics:
                model.replace_with(before)  # as it came, it is faster
                changed = "dequantized" in metrics
                return PassResult(changed, {**metrics, "int8_operators": {}, "lowered": {}}, skipped)
            changed = bool(lowered) or bool(metrics.get("equalized_pairs")) or "dequantized" in metrics
            return PassResult(changed, {**metrics, "int8_operators": {}, "lowered": lowered}, skipped)
        built = self._choose(assembler, judge, metrics, skipped)
        if judge is not None and "time_against_float" in metrics:
            metrics["time_against_float"] = ratio = time_against(before, built.model, ctx)
            if ratio > 1 and not assembler.recipe.four_bits:
                ctx.progress.warn(
                    "quantize: what max_drop leaves in int8 is slower than in float: the model stays float"
                )
                metrics["max_drop"] |= {"restored": assembler.candidates, "slower": True}
                metrics["max_drop"] |= {"met": True, "drop_points": 0.0, "drop_points_upper95": 0.0}
                skipped += [
                    Skipped(n.name, n.op, _SLOWER)
                    for n in assembler.original.graph.nodes
                    if n.name in set(assembler.candidates) - {s.node for s in skipped}
                ]
                model.replace_with(before)
                return PassResult("dequantized" in metrics, {**metrics, "int8_operators": {}, "lowered": {}}, skipped)
        check = verify(built, ctx)
        if check.in_float and judge is None:
            built = assembler.build(in_float=frozenset(check.in_float))
            metrics["repaired"] = sorted(check.in_float)
            skipped += check.skipped(repaired=True)
            check = verify(built, ctx)
        model.replace_with(built.model)
        metrics["int8_operators"] = {op: len(names) for op, names in sorted(built.planned.items())}
        metrics |= built.metrics | check.metrics()
        return PassResult(True, metrics, skipped + built.skipped + check.skipped())

    def _assembler(
        self, before: Model, model: Model, ctx: Context, metrics: dict[str, Any], skipped: list[Skipped]
    ) -> Assembler:
        """Place and calibrate."""
        layers = [n for n in model.graph.nodes if _has_float_weights(n) and matching(n.name, self.keep_float) is None]
        weights = self.rounding == "reconstruct" or (self.rounding == "auto" and self.weights == "int4")
        recipe = Recipe(
            frozenset(n.name for n in layers),
            four_bit_layers(layers) if self.weights == "int4" else frozenset(),
            self.per_channel,
            refit_weights=weights,
            refit_biases=self.bias_correction == "full" or (self.bias_correction == "auto" and weights),
            compensated=self.rounding == "compensate" or (self.rounding == "auto" and not weights),
            images=self.images,
        )
        if self.activations == "float":
            return Assembler(model.copy(), ctx, Plan(), recipe)
        plan, times = place(before, model, ctx, self.place, self.keep_float, self.per_channel)
        metrics |= times
        skipped.extend(plan.skipped)
        if not any(has_weights(n) for i, n in enumerate(model.graph.nodes) if i in plan.int8):
            return Assembler(model.copy(), ctx, Plan(), replace(recipe, layers=recipe.four_bits))
        entry = enter(model, ctx, plan, times.get("time_against_float", 0.0) < _SPARE)
        plan = entry.plan
        skipped.extend(entry.skipped)
        method: Method = self.calibration  # type: ignore[assignment]
        found = calibrate(model, ctx, plan, self.percentile, self.images, method, entry.ranges)
        metrics |= {
            "calibration_images": min(len(ctx.calibration), self.images or len(ctx.calibration)),
            "calibrated_tensors": len(found.params),
            "synthetic_calibration": bool(ctx.calibration.synthetic),
            "lossless_input": bool(entry.ranges),
        }
        means = {} if self.bias_correction == "none" else found.means
        return Assembler(model.copy(), ctx, plan, recipe, found.params, means)

    def _choose(
        self, assembler: Assembler, judge: Judge | None, metrics: dict[str, Any], skipped: list[Skipped]
    ) -> Built:
        """The model with all layers quantized, or with as many as ``max_drop`` lets."""
        ranked: list[Sensitivity] = []
        if judge is not None and self.max_drop is not None:
            search = Search(assembler, judge, self.max_drop, self.deadline)
            built, ranked = search.run(), search.ranked
            metrics["max_drop"] = search.metrics()
            skipped.extend(search.skipped())
            for note in search.notes():
                assembler.ctx.progress.warn(f"quantize: {note}")
        else:
            built = assembler.build()
        if self.sensitivity:
            ctx = assembler.ctx
            images = judge.images if judge is not None else ctx.held_out or ctx.calibration
            ranked = ranked or sensitivities(assembler, built.model, images)
            metrics["sensitivity"] = [s.report() for s in ranked]
        return built


def _has_float_weights(node: gs.Node) -> bool:
    return has_weights(node) and node.inputs[1].dtype == np.float32


def _quantized(model: Model) -> Counter[str]:
    """How many operators on integers a model has, by kind."""
    return Counter(n.op for g in model.graphs() for n in g.nodes if n.op in CONVERSIONS or on_integers(n.op))


def _refuse_quantized(model: Model) -> None:
    found = _quantized(model)
    if found:
        what = ", ".join(f"{count} {op}" for op, count in sorted(found.items()))
        raise ModelError(
            f"the model is quantized already: it has {what}",
            "run the quantize pass on the float model it came from, or ask for requantize=true, which makes it float "
            "first as far as its integers tell",
        )


def _nothing(model: Model) -> PassError:
    if any(c.dtype == np.float16 for c in model.constants()):
        return PassError("nothing to quantize: the weights are float16", "convert the model to float32 first")
    return PassError(
        "nothing to quantize: the model has no Conv, Gemm or MatMul with constant float32 weights",
        "weights that other nodes compute become constant with the fold pass",
    )


__all__ = ["Quantize"]
