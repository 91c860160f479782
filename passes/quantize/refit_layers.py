"""The layers of a quantized model that are refitted to the float model, and what each should compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.layers.residual import residual
from graphopt.analysis.layers.running import Images, Network
from graphopt.analysis.layers.sampling import Sampler, obstacle, sampler_of
from graphopt.analysis.layers.targets import targets_of
from graphopt.ir import Model
from graphopt.passes.quantize.ranges import Limits
from graphopt.pipeline import Context, Skipped

_ROWS = 12288  # sampled positions of a layer over all images
_LEAST_ROWS = 16  # for each input of an output
_ROW_BYTES = 192 << 20  # of a layer's inputs at these positions


@dataclass
class Reconstruction:
    """What came of it: relative squared error of layer outputs before and after, by node name."""

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def improved(self) -> int:
        return sum(after < before for before, after in self.errors.values())

    def metrics(self) -> dict[str, float | int]:
        """For the report."""
        before, after = np.mean(list(self.errors.values()), axis=0) if self.errors else (0.0, 0.0)
        return {
            "layers": len(self.errors),
            "improved": self.improved,
            "relative_error_before": float(f"{before:.4g}"),
            "relative_error_after": float(f"{after:.4g}"),
        }


@dataclass(frozen=True)
class Layer:
    name: str
    node: gs.Node
    source: gs.Node
    sampler: Sampler
    limits: Limits
    target: str
    skip: str | None
    per_image: int
    rows: int

    def rng(self, ctx: Context, number: int) -> np.random.Generator:
        """Positions are drawn anew for every batch, and alike for both models."""
        return ctx.rng(f"quantize.rows.{self.name}.{number}")


def layers_of(
    original: Model, quantized: Model, limits: Mapping[str, Limits], images: Images, skipped: list[Skipped]
) -> Iterator[Layer]:
    source = {n.name: (i, n) for i, n in enumerate(original.graph.nodes)}
    made_by = {t.name: i for i, node in enumerate(original.graph.nodes) for t in node.outputs}
    present = quantized.graph.tensors()
    for node in quantized.graph.nodes:
        if node.name not in limits:
            continue
        index, twin = source[node.name]
        sampler, why = sampler_of(twin), obstacle(twin) or obstacle(node) or _rows_missing(twin)
        if sampler is None or why:
            skipped.append(Skipped(node.name, node.op, f"its weights are rounded to nearest, not refitted: {why}"))
            continue
        target, skip = residual(original, twin.outputs[0], index, made_by)
        if skip is not None and skip not in present:
            target, skip = twin.outputs[0].name, None
        groups, inputs, _ = sampler.read(twin)[0].shape
        rows = min(max(_ROWS, _LEAST_ROWS * inputs), max(1, _ROW_BYTES // (4 * groups * inputs)))
        per_image = -(-rows // max(1, images.count))
        yield Layer(node.name, node, twin, sampler, limits[node.name], target, skip, per_image, rows)


def _rows_missing(node: gs.Node) -> str:
    shape = node.inputs[0].shape
    return "what it reads has no axis of images" if shape is not None and len(shape) < 2 else ""


def original_outputs(network: Network, layers: list[Layer], ctx: Context) -> Iterator[list[np.ndarray]]:
    """Float outputs of each layer at its sampled positions, by batch: [rows, channels]."""
    found = targets_of(network, layers, lambda layer, number: layer.rng(ctx, number))
    for layer, rows in zip(layers, found, strict=True):
        yield [y + np.float32(layer.limits.offset) for y in rows]
