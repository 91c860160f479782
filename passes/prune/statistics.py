"""What the layers that sum over channels read on calibration images: second moments, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels import Family, Labels
from graphopt.analysis.layers.moments import Moments
from graphopt.analysis.layers.residual import residual
from graphopt.analysis.layers.running import BATCH, Network, fitting
from graphopt.analysis.layers.sampling import Sampler, sampler_of
from graphopt.ir import Model
from graphopt.pipeline import Context

_ROWS = 8192  # sampled positions of a layer over all images
_HELD = 256 << 20  # bytes of intermediate tensors and moments at a time


@dataclass(frozen=True)
class Reader:
    """A layer that sums over channels of which some may go, and what it reads.

    ``columns`` [inputs]: the group that each input of an output belongs to (alike in all groups of a convolution).
    ``weight`` [groups, inputs, outputs] and ``bias`` [groups, outputs]; ``mean`` [groups, inputs] and ``gram``
    [groups, inputs, inputs] are the inputs' mean and covariance. ``variance`` is the sum of the variances of what it
    computes, or of the residual sum that this is added to. ``rows``: how many they were taken over.
    """

    node: int
    sampler: Sampler
    columns: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    gram: np.ndarray
    variance: float
    rows: int


@dataclass(frozen=True)
class _Layer:
    index: int
    node: gs.Node
    sampler: Sampler
    columns: np.ndarray
    target: str
    weight: np.ndarray
    bias: np.ndarray

    @property
    def source(self) -> str:
        return str(self.node.inputs[0].name)


def readers(
    model: Model, labels: Labels, families: tuple[Family, ...], network: Network, ctx: Context
) -> Iterator[Reader]:
    """The readers of the families' channels. ``network`` runs once for as many as fit in memory."""
    per_image = max(1, _ROWS // max(1, network.images.count))
    for chunk in _chunks(model, _layers(model, labels, families)):
        moments = [Moments.empty(layer.weight.shape) for layer in chunk]
        names = list(dict.fromkeys(name for layer in chunk for name in (layer.source, layer.target)))
        for number, values in enumerate(network.tensors(names)):
            for layer, into in zip(chunk, moments, strict=True):
                # Two generators that are alike: inputs and outputs are taken at the same positions.
                key = f"prune.statistics.{layer.index}.{number}"
                x = layer.sampler.inputs(layer.node, values[layer.source], ctx.rng(key), per_image)
                into.add(x, layer.sampler.outputs(values[layer.target], ctx.rng(key), per_image))
        for layer, found in zip(chunk, moments, strict=True):
            yield _reader(layer, found)


def _reader(layer: _Layer, found: Moments) -> Reader:
    n = max(1, found.rows)
    mean = found.x / n
    gram = found.xx / n - np.einsum("gi,gj->gij", mean, mean)
    variance = float((found.yy / n - (found.y / n) ** 2).sum())
    return Reader(
        layer.index, layer.sampler, layer.columns, layer.weight, layer.bias, mean, gram, max(variance, 1e-12), n
    )


def _layers(model: Model, labels: Labels, families: tuple[Family, ...]) -> list[_Layer]:
    free = np.zeros(labels.count, dtype=bool)
    for family in families:
        free[family.groups] = True
    nodes = model.graph.nodes
    made_by = {t.name: i for i, node in enumerate(nodes) for t in node.outputs}
    found = []
    for contraction in labels.contractions:
        node = nodes[contraction.node]
        sampler = sampler_of(node)
        if sampler is None or len(contraction.inputs) != 1:
            continue
        slot, axis, groups = contraction.inputs[0]
        rank = len(labels.tensors[node.inputs[slot].name])
        if slot != 0 or axis != sampler.channel_axis % rank or not free[groups].any():
            continue
        weight, bias = sampler.read(node)
        per_group = groups[: groups.size // len(weight)]  # all groups of a convolution keep the same positions
        columns = np.repeat(per_group, weight.shape[1] // per_group.size)
        target, _ = residual(model, node.outputs[0], contraction.node, made_by)
        found.append(_Layer(contraction.node, node, sampler, columns, target, weight, bias))
    return sorted(found, key=lambda layer: layer.index)


def _chunks(model: Model, layers: list[_Layer]) -> Iterator[list[_Layer]]:
    """Runs of layers that fit in memory together: their tensors for one batch, and their moments."""
    tensors = model.graph.tensors()

    def size(layer: _Layer) -> int:
        shapes = [tensors[name].shape or [1] for name in (layer.source, layer.target)]
        volume = sum(int(np.prod([d if isinstance(d, int) else 1 for d in shape[1:]])) for shape in shapes)
        groups, inputs, _ = layer.weight.shape
        return 4 * BATCH * volume + 8 * groups * inputs * inputs

    return fitting(layers, size, _HELD)
