"""How long an operator takes by the target's cost table, in float and in int8."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.passes.quantize.operators import WEIGHTED, gemm_width, sole_consumer, takes_offset
from graphopt.runtime.target import Target


def times(model: Model, node: gs.Node, target: Target) -> tuple[int, int]:
    """Nanoseconds in float and in int8, at batch 1."""
    costs = target.costs
    if node.op == "HardSigmoid" and node.inputs[0].inputs:
        alone = sole_consumer(model, node.inputs[0]) is node
        if alone and takes_offset(node.inputs[0].inputs[0]):
            return round(elements(node.outputs[0]) * costs.of(node.op).float_ns), 0  # see Rewriter._hard_sigmoids
    units, op = elements(node.outputs[0]), node.op
    if op in WEIGHTED:
        weight = node.inputs[1]
        if isinstance(weight, gs.Constant):
            if op == "Conv":
                units *= int(np.prod(weight.values.shape[1:]))
                op = "depthwise" if weight.values.shape[1] == 1 and weight.values.shape[0] > 1 else op
            else:
                units = units // max(_columns(node), 1) * weight.values.size
        else:
            units *= _known(node.inputs[0].shape[-1] if node.inputs[0].shape else None)
    cost = costs.of(op)
    return round(units * cost.float_ns + costs.node_ns), round(units * cost.int8_ns + costs.node_ns)


def _columns(node: gs.Node) -> int:
    return gemm_width(node) if node.op == "Gemm" else int(node.inputs[1].values.shape[-1])


def elements(tensor: gs.Tensor) -> int:
    """Elements for one image; open dimensions count as 1, an unknown shape as a middling layer."""
    if tensor.shape is None:
        return 1 << 14
    return int(np.prod([_known(d) for d in tensor.shape], dtype=np.int64))


def _known(dim: object) -> int:
    return dim if isinstance(dim, int) and dim > 0 else 1
