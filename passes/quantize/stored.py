"""Integers and scales of a quantized layer, read and written."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.layers.quantized import dequantizer
from graphopt.ir import Model
from graphopt.passes.quantize.refit_layers import Layer


def scales_of(node: gs.Node, shape: tuple[int, ...]) -> np.ndarray:
    """Scales of a layer's weight [groups, 1, outputs]."""
    source = dequantizer(node.inputs[1])
    assert source is not None
    scale = np.asarray(source.inputs[1].values, np.float64)
    groups, _, outputs = shape
    return np.asarray(np.broadcast_to(scale.reshape(-1), groups * outputs).reshape(groups, 1, outputs))


def input_scale(node: gs.Node) -> float | None:
    """Scale of what a layer reads; None where it reads floats."""
    source = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if source is None or source.op != "DequantizeLinear":
        return None
    return float(np.asarray(source.inputs[1].values).reshape(-1)[0])


def store(model: Model, layer: Layer, scale: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
    node, entry = layer.node, input_scale(layer.node)
    source = dequantizer(node.inputs[1])
    assert source is not None
    old = np.asarray(source.inputs[1].values)
    kept = scale.reshape(-1)[: max(old.size, 1)].reshape(old.shape).astype(np.float32)
    source.inputs[1].values = kept
    if node.op != "MatMul" and entry is not None:
        kept_bias = np.asarray(np.float32(entry) * kept, np.float32)  # not a scalar where there is one scale
        if len(node.inputs) < 3 and bias.any() and layer.limits.float_bias:
            node.inputs.append(model.constant(f"{node.name}_bias", bias.reshape(-1).astype(np.float32)))
        elif len(node.inputs) < 3 and bias.any():
            _new_bias(model, node, kept_bias, bias.size)
        elif len(node.inputs) > 2 and (stored := dequantizer(node.inputs[2])) is not None:
            stored.inputs[1].values = kept_bias
    layer.sampler.write(model, node, weight, bias)


def _new_bias(model: Model, node: gs.Node, scale: np.ndarray, channels: int) -> None:
    """A bias of zeros on integers, for a layer that has none."""
    name = f"{node.name}_bias"
    inputs = [
        model.constant(f"{name}_quantized", np.zeros(channels, np.int32)),
        model.constant(f"{name}_scale", scale),
        model.constant(f"{name}_zero_point", np.zeros(scale.shape, np.int32)),
    ]
    out = gs.Variable(model.fresh_name(f"{name}_dequantized"), np.float32, [channels])
    attrs = {"axis": 0} if scale.ndim else {}
    at = next(i for i, n in enumerate(model.graph.nodes) if n is node)
    dequantize = gs.Node("DequantizeLinear", model.fresh_name(f"{name}_DequantizeLinear"), attrs, inputs, [out])
    model.graph.nodes.insert(at, dequantize)
    node.inputs = [*node.inputs[:2], out]
