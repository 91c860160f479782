"""What an operator reads and holds: the questions that placement, calibration and rewriting share."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.runtime.target import Target

# Operators whose second input may hold weights, the third a bias.
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})


def is_activation(tensor: gs.Tensor) -> bool:
    """Whether a tensor is computed, and in float32: all others have nothing to quantize."""
    return isinstance(tensor, gs.Variable) and bool(tensor.name) and tensor.dtype == np.float32


def data_inputs(node: gs.Node, target: Target) -> list[gs.Tensor]:
    """The inputs that carry activations or constants of their kind, without weights, biases, shapes and indices."""
    if node.op in target.passthrough_ops or node.op in target.integer_ops:
        return list(node.inputs[:1])
    if has_weights(node):
        return list(node.inputs[:1])
    return [t for t in node.inputs if t.name]


def constant_input(node: gs.Node, index: int) -> np.ndarray | None:
    """The values of an input if it is an initializer (Constant nodes are the fold pass's business)."""
    if index < len(node.inputs) and isinstance(node.inputs[index], gs.Constant):
        return node.inputs[index].values
    return None


def sole_consumer(model: Model, tensor: gs.Tensor) -> gs.Node | None:
    """The one node that reads ``tensor``, if nothing else does (graph outputs and subgraphs included)."""
    if model.is_output(tensor) or tensor.name in model.captured() or len(tensor.outputs) != 1:
        return None
    node = tensor.outputs[0]
    return node if sum(t is tensor for t in node.inputs) == 1 else None


def has_weights(node: gs.Node) -> bool:
    """Whether a node multiplies its data by constant weights."""
    return node.op in WEIGHTED and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant)


def channel_axis(node: gs.Node) -> int:
    """The axis of the output channels in the weights of a Conv, Gemm or MatMul."""
    if node.op == "Conv":
        return 0
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 1


def takes_offset(node: gs.Node) -> bool:
    """Whether an offset can go into the node's bias."""
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    weights = node.op in ("Conv", "Gemm") and isinstance(node.inputs[1], gs.Constant)
    return weights and (not has_bias or isinstance(node.inputs[2], gs.Constant))


def clip_bounds(node: gs.Node) -> tuple[float, float] | None:
    """The interval that a Relu or Clip confines to, if it is constant and holds 0."""
    if node.op == "Relu":
        return 0.0, float("inf")
    bounds = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        present = len(node.inputs) > index and node.inputs[index].name
        value = constant_input(node, index)
        if present and value is None:
            return None
        bounds.append(float(value.reshape(())) if value is not None else default)
    return (bounds[0], bounds[1]) if bounds[0] <= 0 <= bounds[1] else None


def gemm_width(node: gs.Node) -> int:
    """Output columns of a Gemm with constant weights."""
    rows, columns = node.inputs[1].values.shape
    return int(rows if node.attrs.get("transB", 0) else columns)
