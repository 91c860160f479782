"""The constants that channels index, as numbers: quantized ones dequantized, each with the operator that computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels import Labels
from graphopt.ir import Model

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Weight:
    """One use of a constant: its ``values``, and ``groups`` [values.shape[axis]] along ``axis``.

    ``node`` is the number of the operator that computes with it, which reads it as input number ``slot``.
    """

    values: np.ndarray
    axis: int
    groups: np.ndarray
    node: int
    slot: int

    @property
    def rows(self) -> np.ndarray:
        """[channels, weights of that channel]."""
        return np.moveaxis(self.values, self.axis, 0).reshape(self.values.shape[self.axis], -1)

    @property
    def is_vector(self) -> bool:
        """Whether it holds one number a channel, as biases do."""
        return sum(d > 1 for d in self.values.shape) <= 1 and self.rows.shape[1] <= 1


def weights(model: Model, labels: Labels) -> Iterator[Weight]:
    """Every use of a constant that channels index. Scales and zero points are no weights of their own."""
    nodes = model.graph.nodes
    number = {id(node): k for k, node in enumerate(nodes)}
    for place, groups in labels.slots.items():
        node = nodes[place.node]
        if node.op not in _QUANTIZERS:
            values = np.asarray(node.inputs[place.slot].values, dtype=np.float64)
            yield Weight(values, place.axis, groups, place.node, place.slot)
        elif node.op == "DequantizeLinear" and place.slot == 0 and node.outputs[0].outputs:
            reader = node.outputs[0].outputs[0]
            slot = next(k for k, t in enumerate(reader.inputs) if t is node.outputs[0])
            yield Weight(dequantized(node), place.axis, groups, number[id(reader)], slot)


def dequantized(node: gs.Node) -> np.ndarray:
    """What a DequantizeLinear of constants gives, in double precision."""
    values = np.asarray(node.inputs[0].values, dtype=np.float64)
    scale, zero = scales(node)
    return np.asarray((values - zero) * scale)


def scales(node: gs.Node) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear, shaped to go with its input."""
    rank = len(node.inputs[0].shape)
    scale = np.asarray(node.inputs[1].values, dtype=np.float64)
    given = len(node.inputs) > 2 and node.inputs[2].name
    zero = np.asarray(node.inputs[2].values, dtype=np.float64) if given else np.zeros_like(scale)
    if scale.size == 1:
        return scale.reshape(()), zero.reshape(())
    view = [1] * rank
    view[int(node.attrs.get("axis", 1)) % rank if rank > 1 else 0] = -1
    return scale.reshape(view), zero.reshape(view)


def makes(node: gs.Node, weight: Weight) -> bool:
    """Whether the rows of a weight are filters: those of the channels that ``node`` makes, all applied to one input."""
    if node.op == "Conv":
        return weight.slot == 1 and weight.axis == 0 and (weight.values.shape[1] > 1 or node.attrs.get("group", 1) == 1)
    if node.op == "ConvTranspose":
        return weight.slot == 1 and weight.axis == 1 and int(node.attrs.get("group", 1)) == 1
    if node.op == "Gemm":
        return weight.slot == 1 and weight.axis == (0 if node.attrs.get("transB", 0) else 1)
    return bool(node.op == "MatMul" and weight.axis == weight.values.ndim - (1 if weight.slot == 1 else 2))
