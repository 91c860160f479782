"""The criteria that look at weights, and at the statistics that batch normalisation had."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels import Slot
from graphopt.analysis.layers.running import BATCH, Network, fitting
from graphopt.passes.prune.importance import Channels, criterion
from graphopt.passes.prune.weights import Weight, weights

_HELD = 256 << 20  # bytes of intermediate tensors at a time
_BLOCK = 1 << 22  # distances at a time
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@criterion("l2")
def l2(channels: Channels) -> np.ndarray:
    """Energy of a channel's weights."""
    return channels.by_weights(lambda rows: np.einsum("ij,ij->i", rows, rows))


@criterion("l1")
def l1(channels: Channels) -> np.ndarray:
    """Sum of the magnitudes of a channel's weights (Li et al. 2017, "Pruning filters for efficient ConvNets")."""
    return channels.by_weights(lambda rows: np.abs(rows).sum(axis=1))


@criterion("fpgm")
def fpgm(channels: Channels) -> np.ndarray:
    """Sum of the distances of a filter to the layer's other filters: one near their geometric median is replaceable
    (He et al. 2019, "Filter pruning via geometric median")."""
    return channels.by_weights(distances, filters=True)


def distances(rows: np.ndarray) -> np.ndarray:
    """Sum [n] of the Euclidean distances of each of ``rows`` [n, d] to all of them."""
    energy = np.einsum("ij,ij->i", rows, rows)
    step = max(1, _BLOCK // max(1, len(rows)))
    total = np.empty(len(rows))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        square = energy[part, None] + energy[None] - 2.0 * (rows[part] @ rows.T)
        # What rounding leaves of the distance of a row to its like would count as a distance under the root.
        square[square < 1e-12 * np.maximum(energy[part, None], energy[None])] = 0.0
        total[part] = np.sqrt(square).sum(axis=1)
    return total


@criterion("bn", needs_images=True)
def bn(channels: Channels) -> np.ndarray:
    """Scale of a channel's batch normalisation (Liu et al. 2017, "Network slimming").

    What it normalises has unit variance, so its scale is the standard deviation of its output. Where it was folded
    into the layer before it, that standard deviation is measured on the calibration images instead.
    """
    scores = np.zeros(channels.labels.count)
    nodes = channels.model.graph.nodes
    for index, node in enumerate(nodes):
        groups = channels.labels.slots.get(Slot(index, 1, 0))
        if node.op == "BatchNormalization" and groups is not None:
            scores += channels.share(np.abs(np.asarray(node.inputs[1].values, dtype=np.float64)), groups)
    measured = _normalised_layers(channels)
    if measured and channels.images is not None:
        network = Network(channels.model, channels.images, channels.ctx.threads)
        for chunk in fitting(measured.items(), lambda item: _size(nodes[item[0]]), _HELD):
            names = [nodes[index].outputs[0].name for index, _ in chunk]
            found = deviations(network, dict(zip(names, (axis for _, (axis, _) in chunk), strict=True)))
            for name, (_, (_, groups)) in zip(names, chunk, strict=True):
                scores += channels.share(found[name], groups)
    return scores


def _normalised_layers(channels: Channels) -> dict[int, tuple[int, np.ndarray]]:
    """Layers whose output is not normalised by an operator of its own: (channel axis, groups) by node number."""
    found: dict[int, tuple[int, np.ndarray]] = {}
    nodes = channels.model.graph.nodes
    for weight in weights(channels.model, channels.labels):
        node = nodes[weight.node]
        if node.op not in _LAYERS or weight.is_vector or _is_normalised(node):
            continue
        axes = channels.labels.tensors.get(node.outputs[0].name, [])
        axis = 1 if node.op.startswith("Conv") else len(axes) - 1
        if 0 <= axis < len(axes) and _indexes_output(node, weight):
            groups = axes[axis]
            if groups is not None:
                found[weight.node] = (axis, groups)
    return found


def _indexes_output(node: gs.Node, weight: Weight) -> bool:
    """Whether it is the second factor of a layer: what it makes are channels, and not rows."""
    return weight.slot == 1 and (node.op != "MatMul" or weight.values.ndim == 2)


def _is_normalised(node: gs.Node) -> bool:
    readers = node.outputs[0].outputs
    return bool(readers) and all(n.op == "BatchNormalization" for n in readers)


def _size(node: gs.Node) -> int:
    shape = node.outputs[0].shape or [1]
    return 4 * BATCH * int(np.prod([d if isinstance(d, int) else 1 for d in shape[1:]]))


def deviations(network: Network, axes: dict[str, int]) -> dict[str, np.ndarray]:
    """Standard deviation [channels] of each of some tensors, named with their channel axis."""
    count = dict.fromkeys(axes, 0)
    one: dict[str, np.ndarray] = {}
    two: dict[str, np.ndarray] = {}
    for values in network.tensors(list(axes)):
        for name, axis in axes.items():
            rows = np.moveaxis(values[name], axis, -1).reshape(-1, values[name].shape[axis])
            rows = rows.astype(np.float64)
            count[name] += len(rows)
            one[name] = one.get(name, 0.0) + rows.sum(axis=0)
            two[name] = two.get(name, 0.0) + np.einsum("ij,ij->j", rows, rows)
    return {n: np.sqrt(np.maximum(two[n] / count[n] - (one[n] / count[n]) ** 2, 0.0)) for n in axes}
