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
    out = elements(node.outputs[0])
    if node.op not in WEIGHTED:
        cost = costs.of(node.op)
        return round(out * cost.float_ns + costs.node_ns), round(out * cost.int8_ns + costs.node_ns)
    op, units, taps, odd = _products(node, out, costs.lanes)
    cost = costs.of(op)
    channels = node.inputs[1].values.shape[1] if op == "Conv" else 1
    per_tap = cost.int8_tap_ns * (1 + (costs.few_channels / channels if op == "Conv" else 0))
    float_ns = units * cost.float_ns + out * cost.float_out_ns
    int8_ns = units * cost.int8_ns + out * cost.int8_out_ns + taps * per_tap + odd * cost.int8_odd_ns
    return round(float_ns + costs.node_ns), round(int8_ns + costs.node_ns)


def _products(node: gs.Node, out: int, lanes: int) -> tuple[str, int, int, int]:
    """Kind, multiply-accumulates, taps of the kernel at all positions, and multiply-accumulates beyond full vectors."""
    weight = node.inputs[1]
    if not isinstance(weight, gs.Constant):
        return "product", out * _known(node.inputs[0].shape[-1] if node.inputs[0].shape else None), 0, 0
    shape = weight.values.shape
    if node.op != "Conv":
        rows = out // max(_columns(node), 1)
        return ("vector" if rows <= 1 else node.op), rows * weight.values.size, 0, 0
    macs = out * int(np.prod(shape[1:]))
    area = int(np.prod(shape[2:]))
    taps = area * (out // shape[0]) if area > 1 else 0
    if shape[1] == 1 and shape[0] > 1:
        return "depthwise", macs, taps, macs * (shape[0] % lanes) // shape[0]
    return "Conv", macs, taps, 0


def _columns(node: gs.Node) -> int:
    return gemm_width(node) if node.op == "Gemm" else int(node.inputs[1].values.shape[-1])


def elements(tensor: gs.Tensor) -> int:
    """Elements for one image; open dimensions count as 1, an unknown shape as a middling layer."""
    if tensor.shape is None:
        return 1 << 14
    return int(np.prod([_known(d) for d in tensor.shape], dtype=np.int64))


def _known(dim: object) -> int:
    return dim if isinstance(dim, int) and dim > 0 else 1
