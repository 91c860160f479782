"""Weights of 4 bits in the file: two in a byte."""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.analysis.layers.quantized import dequantizer
from graphopt.ir import Model

OPSET = 21  # the first with int4 in Cast and DequantizeLinear
_SHARE = 0.05  # of all weights: what the smallest layers hold together and keep at 8 bits


def four_bit_layers(nodes: Iterable[gs.Node]) -> frozenset[str]:
    """Names of the layers whose weights are worth packing: all but the smallest, that hold a twentieth together.

    First and last layers, and depthwise ones, which lose most by it, are among those as a rule.
    """
    ranked = sorted(nodes, key=lambda n: int(n.inputs[1].values.size))
    sizes = np.cumsum([int(n.inputs[1].values.size) for n in ranked])
    return frozenset(n.name for n, size in zip(ranked, sizes, strict=True) if size > _SHARE * sizes[-1])


def pack(model: Model, names: frozenset[str], widen: bool) -> int:
    """Store the int8 weights of the named nodes as int4; they must fit. Returns how many tensors were packed.

    ``widen``: before layers on integers stands a Cast to int8, which ONNX Runtime computes when it loads the model, so
    that its int8 kernels take the weights; it has none for int4.
    """
    packed = 0
    with model.edit() as graph:
        for node in list(graph.nodes):
            source = dequantizer(node.inputs[1]) if node.name in names else None
            if source is None or source.inputs[0].dtype != np.int8:
                continue
            held = source.inputs[0]
            small = gs.Constant(model.fresh_name(f"{held.name}_4"), held.values.astype(ml_dtypes.int4))
            entry = node.inputs[0].inputs
            if widen and entry and entry[0].op == "DequantizeLinear":
                wide = gs.Variable(model.fresh_name(held.name), np.int8, list(held.shape))
                cast = gs.Node("Cast", model.fresh_name(f"{held.name}_Cast"), {"to": TensorProto.INT8}, [small], [wide])
                graph.nodes.insert(next(i for i, n in enumerate(graph.nodes) if n is source), cast)
                source.inputs[0] = wide
            else:
                source.inputs = [small, source.inputs[1]]  # without a zero point, which would be int4 as well
            packed += 1
        graph.cleanup(remove_unused_graph_inputs=False)
    return packed
