"""The layers to refit after channels were removed: those that read others than before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels import Labels
from graphopt.analysis.layers.quantized import cuts_negative
from graphopt.analysis.layers.residual import residual
from graphopt.analysis.layers.sampling import Sampler, sampler_of
from graphopt.ir import Model
from graphopt.pipeline import Context

_ROWS = 49152  # sampled positions per layer over all images, at most
_ALL_ROWS = 1 << 21  # of all layers together, which bounds the time: deep networks take fewer a layer
_FEWEST_ROWS = 12288  # but no fewer than these
_OF_AN_IMAGE = 64  # where there are more: further positions of an image say little new
_LEAST_ROWS = 16  # for each input of an output, however many groups there are
ROW_BYTES = 192 << 20  # of the inputs at these positions: a depthwise layer reads each of them in every group


@dataclass(frozen=True)
class Consumer:
    """A layer to refit: node number, how its rows are sampled, and the tensors that make up its target.

    ``rows``: at most, over all images; ``per_image``: of one of them.
    """

    index: int
    sampler: Sampler
    rows: int
    per_image: int
    target: str
    skip: str | None
    kept: np.ndarray | None
    rectified: bool


def consumers(pruned: Model, labels: Labels, keep: np.ndarray, changed: list[int], images: int) -> list[Consumer]:
    """Layers among the changed nodes that can be refitted, on so many images."""
    nodes = pruned.graph.nodes
    made_by = {t.name: i for i, node in enumerate(nodes) for t in node.outputs}
    samplers = {i: s for i in changed if (s := sampler_of(nodes[i])) is not None}
    most = max(_FEWEST_ROWS, min(_ALL_ROWS // max(1, len(samplers)), _ROWS, _OF_AN_IMAGE * images))
    found = []
    for index, sampler in samplers.items():
        out = nodes[index].outputs[0]
        target, skip = residual(pruned, out, index, made_by)
        axes = labels.tensors.get(target, [])
        at = sampler.channel_axis if sampler.channel_axis >= 0 else len(axes) - 1
        groups = axes[at] if axes else None
        kept = None if groups is None or keep[groups].all() else keep[groups]
        rows = _row_count(sampler.read(nodes[index])[0].shape, most)
        rectified = _rectified(nodes[made_by[target]].outputs[0])
        found.append(Consumer(index, sampler, rows, max(1, rows // max(1, images)), target, skip, kept, rectified))
    return found


def _row_count(shape: tuple[int, ...], most: int) -> int:
    groups, inputs, _ = shape
    return min(most, max(_LEAST_ROWS * inputs, ROW_BYTES // (4 * groups * inputs)))


def _rectified(tensor: gs.Tensor) -> bool:
    """Whether nothing but ReLUs reads a tensor, or what else takes all that is negative alike."""
    return bool(tensor.outputs) and all(cuts_negative(n) for n in tensor.outputs)


def rng_of(ctx: Context, consumer: Consumer, number: int) -> np.random.Generator:
    """Positions are drawn anew for every batch, and alike for the original and the pruned network."""
    return ctx.rng(f"prune.recover.{consumer.index}.{number}")
