"""``graphopt inspect``: what is in a model, and what each pass would do to a copy of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.analysis.cost import CostAnalysis
from graphopt.analysis.labels import ChannelLabels, held_back, why_not
from graphopt.analysis.quantization import describe_quantization
from graphopt.driver.config import Settings
from graphopt.driver.inputs import prepare
from graphopt.errors import GraphoptError
from graphopt.ir import Model, load
from graphopt.pipeline import Context, Pass, Pipeline, Registry, format_pipeline
from graphopt.pipeline.manager import PassManager
from graphopt.progress import Progress
from graphopt.report.build import record
from graphopt.runtime.target import get_target

_SATURATION_IMAGES = 64
_IMAGES = 8  # enough for a pass to run; what it would measure on them is not shown


def inspect_model(
    path: Path, passes: str | None, settings: Settings, load_passes: tuple[Path, ...], progress: Progress
) -> dict[str, Any]:
    """Facts about a model. Passes run on copies, with a few synthetic images; the file is not touched."""
    registry = Registry()
    for file in load_passes:
        registry.load_file(file)
    tries = [passes] if passes else _everything(registry)
    pipelines = [registry.build(text) for text in tries]
    model = load(path)
    cost = CostAnalysis().compute(model, None)
    few = replace(settings, data=None, calibration_data=None, calibration_images=_IMAGES)
    inputs = prepare(model, few)
    target = replace(get_target(settings.target or "ort-cpu"), measurable=False)  # nothing is timed for a look
    ctx = Context(target, inputs.calibration, model, progress=progress)
    tensors = model.graph.tensors().values()
    return {
        "schema": "graphopt.inspect/1",
        "model": {
            "path": str(path),
            "sha256": model.source.sha256 if model.source else None,
            "bytes": path.stat().st_size,
            "opset": model.opset,
            "domains": {d or "ai.onnx": v for d, v in model.header.opsets.items()},
            "metadata": dict(model.metadata),
            "inputs": [_port(t) for t in model.inputs],
            "outputs": [_port(t) for t in model.outputs],
            "layout": inputs.input.layout,
        },
        "nodes": sum(len(g.nodes) for g in model.graphs()),
        "ops": dict(Counter(n.op for g in model.graphs() for n in g.nodes).most_common()),
        "params": cost.params,
        "macs": cost.macs,
        "unknown_shapes": sum(isinstance(t, gs.Variable) and t.shape is None for t in tensors),
        "layers": [
            {"node": name, "op": c.op, "macs": c.macs, "params": c.params}
            for name, c in sorted(cost.by_node.items(), key=lambda item: -(item[1].macs or 0))
            if c.macs or c.params
        ],
        "quantization": _quantization(model, settings, ctx),
        "channels": _channels(model, registry, ctx),
        "passes": [_try(steps, model, ctx) for steps in pipelines],
    }


def _quantization(model: Model, settings: Settings, ctx: Context) -> dict[str, Any] | None:
    """What a quantized model holds and what runs in int8; with data, what saturates on some images of it."""
    if settings.data is None:
        return describe_quantization(model, ctx)
    images = settings.evaluation_images or _SATURATION_IMAGES
    source = prepare(model, replace(settings, calibration_data=settings.data, data=None, calibration_images=images))
    there = Context(ctx.target, source.calibration, model, progress=ctx.progress)
    return describe_quantization(model, there, len(source.calibration))


def _everything(registry: Registry) -> list[str]:
    """Every pipeline, and every pass that is in none."""
    pipelines = [registry.pipeline(name) for name in registry.pipelines()]
    covered = {step.name for pipeline in pipelines for step in pipeline.passes}
    return [*(p.name for p in pipelines), *(n for n in registry.names() if n not in covered)]


def _channels(model: Model, registry: Registry, ctx: Context) -> dict[str, Any]:
    """Channels that can be removed together, and those that must stay, as pruning would see them: folded first."""
    folded = model.copy()
    PassManager(registry.build("simplify")).run(folded, ctx)
    labels, cost = ctx.analysis(ChannelLabels(), folded), ctx.analysis(CostAnalysis(), folded)
    return {
        "families": [
            {
                "producers": list(family.producers),
                "channels": int(family.groups.size),
                "used_by": sorted({labels.names[slot.node] for slot in family.slots} - set(family.producers)),
            }
            for family in labels.families
        ],
        "locked": [
            {"node": x.node, "op": x.op, "reason": x.reason, "channels": x.channels, "macs_held_back": x.macs}
            for x in why_not(labels, cost)
        ],
        "macs": cost.macs,
        "macs_held_back": held_back(labels, cost),
    }


def _try(steps: list[Pass | Pipeline], model: Model, ctx: Context) -> dict[str, Any]:
    manager = PassManager(steps)
    entry: dict[str, Any] = {"pipeline": format_pipeline(steps), "error": None}
    try:
        manager.run(model.copy(), ctx)
    except GraphoptError as error:
        entry["error"] = {"message": error.message, "hint": error.hint}
    entry["passes"] = [record(r) for r in manager.records]
    return entry


def _port(tensor: gs.Tensor) -> dict[str, Any]:
    shape = None if tensor.shape is None else list(tensor.shape)
    return {"name": tensor.name, "shape": shape, "dtype": str(tensor.dtype)}
