"""What a quantized model says of itself: scales and ranges, what saturates on images, what runs in int8."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.activations import observe
from graphopt.ir import Model
from graphopt.runtime.optimized import CONVERSIONS, optimized

_MOVING = frozenset("Slice Pad Reshape Transpose Flatten Squeeze Unsqueeze Split Gather Expand Tile Identity".split())
_HEAVY = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})


def describe_quantization(model: Model, ctx: Any, images: int | None = None) -> dict[str, Any] | None:
    """Facts about a model with QuantizeLinear and DequantizeLinear; None for one without.

    ``activations``, ``weights``: entries by tensor. ``runtime``: what ONNX Runtime makes of it on the CPU, or why not;
    what only moves data does so in either type. With ``images``, so many of ``ctx.calibration`` run through the model,
    and activations get the range that they take (``observed``) and the fractions of values below and above what their
    scale covers (``saturated``). Below 0, that is how an activation function such as Relu is done.
    """
    nodes = model.graph.nodes
    if not any(n.op in CONVERSIONS for n in nodes):
        return None
    writers = [n for n in nodes if n.op == "QuantizeLinear" and _constant(n, 1) and not _held(n.inputs[0])]
    activations = {n.inputs[0].name: _activation(n) for n in writers}
    if images and activations:
        _saturation(model, ctx, activations, images)
    weights = [_weights(n) for n in nodes if n.op == "DequantizeLinear" and _stored(n.inputs[0]) and _constant(n, 1)]
    return {
        "activations": list(activations.values()),
        "weights": weights,
        "images": images,
        "runtime": _runtime(model),
    }


def _constant(node: gs.Node, index: int) -> bool:
    return len(node.inputs) > index and isinstance(node.inputs[index], gs.Constant)


def _held(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant)


def _stored(tensor: gs.Tensor) -> gs.Tensor | None:
    """The constant that holds the integers: the tensor itself, or what a Cast widens (int4 to int8)."""
    if not _held(tensor) and len(tensor.inputs) == 1 and tensor.inputs[0].op == "Cast":
        tensor = tensor.inputs[0].inputs[0]
    return tensor if _held(tensor) else None


def _activation(node: gs.Node) -> dict[str, Any]:
    scale = node.inputs[1].values.astype(np.float64).reshape(-1)
    zero = node.inputs[2].values if _constant(node, 2) else np.zeros(scale.shape, np.uint8)
    limits = np.iinfo(zero.dtype)
    offset = zero.astype(np.int64).reshape(-1)
    return {
        "tensor": node.inputs[0].name,
        "dtype": str(zero.dtype),
        "scale": float(scale.max()),
        "zero_point": int(offset[0]),
        "range": [float((scale * (limits.min - offset)).min()), float((scale * (limits.max - offset)).max())],
        "observed": None,
        "saturated": None,
    }


def _weights(node: gs.Node) -> dict[str, Any]:
    tensor, scale = _stored(node.inputs[0]), node.inputs[1].values.astype(np.float64)
    assert tensor is not None
    values = tensor.values
    whole = values.dtype.kind in "iu" or "int" in values.dtype.name  # ml_dtypes' int4 is of no kind of numpy's
    return {
        "tensor": tensor.name,
        "dtype": str(values.dtype),
        "shape": list(values.shape),
        "scales": int(scale.size),
        "axis": node.attrs.get("axis", 1) if scale.size > 1 else None,
        "scale": [float(scale.min()), float(scale.max())] if scale.size else None,
        "largest": int(np.abs(values.astype(np.int64)).max(initial=0)) if whole else None,
        "read_by": sorted({n.op for t in node.outputs for n in t.outputs}),
    }


def _saturation(model: Model, ctx: Any, activations: dict[str, dict[str, Any]], images: int) -> None:
    counts = {name: np.zeros(3) for name in activations}  # below, above, all
    extremes = {name: [np.inf, -np.inf] for name in activations}
    for batch in observe(model, ctx, tuple(activations), images):
        for name, values in batch.items():
            low, high = activations[name]["range"]
            half = activations[name]["scale"] / 2  # rounding reaches as far
            counts[name] += [(values < low - half).sum(), (values > high + half).sum(), values.size]
            ends = extremes[name]
            extremes[name] = [min(ends[0], float(values.min())), max(ends[1], float(values.max()))]
    for name, entry in activations.items():
        below, above, every = counts[name]
        entry["observed"] = extremes[name]
        entry["saturated"] = [float(below / every), float(above / every)] if every else None


def _runtime(model: Model) -> dict[str, Any]:
    try:
        kernels = optimized(model)
    except Exception as error:
        return {
            "int8": {},
            "float": {},
            "moving": {},
            "conversions": 0,
            "layers_in_float": [],
            "error": " ".join(str(error).split()),
        }
    computing = [k for k in kernels if k.op not in CONVERSIONS]
    return {
        "int8": dict(Counter(k.op for k in computing if k.int8).most_common()),
        "float": dict(Counter(k.op for k in computing if not k.int8 and k.op not in _MOVING).most_common()),
        "moving": dict(Counter(k.op for k in computing if k.op in _MOVING).most_common()),
        "conversions": len(kernels) - len(computing),
        "layers_in_float": [k.name for k in computing if k.op in _HEAVY],
        "error": None,
    }
