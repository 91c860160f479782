"""Weights on integers of layers that compute in float: smaller files, the same activations."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.passes.quantize.operators import channel_axis
from graphopt.passes.quantize.ranges import Limits, quantize_weights


def hold(model: Model, nodes: Iterable[gs.Node], four_bits: frozenset[str], per_channel: bool) -> dict[str, Limits]:
    """Put a DequantizeLinear before the weights of ``nodes``, which are Conv, Gemm or MatMul with constant ones.

    Returns how the weights of each are stored, by name. No zero points: they are 0.
    """
    limits = {}
    with model.edit() as graph:
        for node in nodes:
            weight, axis = node.inputs[1], channel_axis(node)
            most = 7 if node.name in four_bits else 127
            limits[node.name] = Limits(most, False, per_channel)
            result = quantize_weights(weight.values, axis, None, None, per_channel=per_channel, most=most)
            scales = result.scales if per_channel else result.scales.reshape(())
            values = model.constant(f"{weight.name}_quantized", result.values)
            out = gs.Variable(model.fresh_name(f"{weight.name}_dequantized"), np.float32, list(weight.shape))
            inputs = [values, model.constant(f"{weight.name}_scale", scales)]
            attrs = {"axis": axis} if per_channel else {}
            name = model.fresh_name(f"{weight.name}_DequantizeLinear")
            at = next(i for i, n in enumerate(graph.nodes) if n is node)
            graph.nodes.insert(at, gs.Node("DequantizeLinear", name, attrs, inputs, [out]))
            node.inputs[1] = out
        graph.cleanup(remove_unused_graph_inputs=False)
    return limits
