"""The constants that channels index, as numbers: quantized ones dequantized, each with the operator that computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels import Labels
from graphopt.analysis.layers.quantized import dequantized
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
    """Every use of a constant that channels index of which some may go. Scales and zero points are no weights."""
    nodes = model.graph.nodes
    number = {id(node): k for k, node in enumerate(nodes)}
    for place, groups in labels.slots.items():
        node = nodes[place.node]
        if not labels.fixed[groups].all() and (node.op not in _QUANTIZERS or place.slot == 0):
            raw = node.op != "DequantizeLinear"
            values = np.asarray(node.inputs[place.slot].values, dtype=np.float64) if raw else dequantized(node)
            found = _reader(node, place.slot)
            if found is not None:
                yield Weight(values, place.axis, groups, number[id(found[0])], found[1])


def _reader(node: gs.Node, slot: int) -> tuple[gs.Node, int] | None:
    """The operator that computes with what ``node`` reads as input ``slot``, past quantization, and its input."""
    while node.op in _QUANTIZERS:
        made = node.outputs[0]
        if not made.outputs:
            return None
        node = made.outputs[0]
        slot = next(k for k, t in enumerate(node.inputs) if t is made)
    return node, slot


def makes(node: gs.Node, weight: Weight) -> bool:
    """Whether the rows of a weight are filters: those of the channels that ``node`` makes, all applied to one input."""
    if node.op == "Conv":
        return weight.slot == 1 and weight.axis == 0 and (weight.values.shape[1] > 1 or node.attrs.get("group", 1) == 1)
    if node.op == "ConvTranspose":
        return weight.slot == 1 and weight.axis == 1 and int(node.attrs.get("group", 1)) == 1
    if node.op == "Gemm":
        return weight.slot == 1 and weight.axis == (0 if node.attrs.get("transB", 0) else 1)
    return bool(node.op == "MatMul" and weight.axis == weight.values.ndim - (1 if weight.slot == 1 else 2))
