"""Why an operator cannot, or had better not, run in int8: in words, and the same for all in the same case."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.ir.view import is_standard
from graphopt.passes.quantize.estimate import times
from graphopt.passes.quantize.operators import (
    WEIGHTED,
    constant_input,
    gemm_width,
    has_weights,
    is_activation,
)
from graphopt.pipeline.patterns import matching
from graphopt.rewrite.operands import is_row
from graphopt.runtime.target import Target


def blocked(node: gs.Node, target: Target, keep_float: tuple[str, ...]) -> str | None:
    """Why a node cannot run in int8, in words; None if it can."""
    pattern = matching(node.name, keep_float)
    if pattern is not None:
        return f"kept in float as asked (keep_float has {pattern!r})"
    if not is_standard(node):
        return f"operators of domain {node.domain!r} are not known: only standard operators are quantized"
    if node.op == "HardSigmoid" and "Add" in target.int8_ops and not target.symmetric_activations:
        return None if node.attrs.get("alpha", 0.2) > 0 else "its slope is not positive"
    if node.op in target.passthrough_ops:
        return _moving_blocked(node)
    if node.op in target.integer_ops:
        return _pad_blocked(node)
    if node.op in target.absorbed_ops:
        return "no int8 operator stands before it, for it alone, whose saturation could do its work"
    if node.op not in target.int8_ops:
        return f"{target.name} has no int8 kernel for {node.op}; an operator out of " + (
            "its list (" + ", ".join(sorted(target.int8_ops)) + ") would be quantized"
        )
    if any(t.dtype != np.float32 for t in node.inputs if t.name):
        return "it reads values that are not float32: convert the model to float32 first"
    if not all(np.isfinite(t.values).all() for t in node.inputs if isinstance(t, gs.Constant)):
        return "its constants are not all finite: no scale covers them"
    if node.op in WEIGHTED:
        return _weights_blocked(node)
    if node.op == "AveragePool" and any(d != 1 for d in node.attrs.get("dilations", ())):
        return f"{target.name} has no int8 kernel for AveragePool with dilations"
    if not any(is_activation(t) for t in node.inputs):
        return "it reads constants only: fold it first"
    return None


def _moving_blocked(node: gs.Node) -> str | None:
    if not is_activation(node.inputs[0]):
        return "its data is constant: fold it first"
    if node.op == "Resize" and node.attrs.get("mode", "nearest") not in ("nearest", "linear", b"nearest", b"linear"):
        return "cubic interpolation goes beyond the range of its input: use linear or nearest"
    if node.op == "Resize" and node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "it fills in a value that may lie outside the range of its input: crop with Slice"
    if node.op == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].name:
        return "it also returns where the maxima are: drop that output"
    return None


def _weights_blocked(node: gs.Node) -> str | None:
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if not is_activation(node.inputs[0]):
        return "its data is constant and its weights are not: swap the operands"
    if not isinstance(weight, gs.Constant):
        return None if node.op == "MatMul" else "its weights are computed while it runs: they must be constant"
    if node.op == "MatMul":
        return None if weight.values.ndim == 2 else "its constant operand is not a matrix"
    if bias is not None and bias.name and not isinstance(bias, gs.Constant):
        return "its bias is computed while it runs: it must be constant"
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return "it transposes its data (transA=1): put a Transpose before it"
        if bias is not None and bias.name and not is_row(bias.values, gemm_width(node)):
            return "its bias differs by row: it must be one row"
    return None


def _pad_blocked(node: gs.Node) -> str | None:
    if not is_activation(node.inputs[0]):
        return "its data is constant: fold it first"
    value = constant_input(node, 2)
    given = len(node.inputs) > 2 and node.inputs[2].name
    if node.attrs.get("mode", "constant") in ("constant", b"constant") and given:
        if value is None:
            return "its padding value is computed while it runs: it must be constant"
        if value.any():
            return "it pads with a value other than 0: only zeros are sure to be in the quantized range"
    return None


def too_dear(model: Model, node: gs.Node, target: Target) -> str:
    """Why the cut left a node in float; the same words for all nodes in the same case, so that reports can group."""
    float_ns, int8_ns = times(model, node, target)
    why = (
        "it would be no faster in int8 than in float"
        if int8_ns >= float_ns
        else "int8 would save less time than converting its tensors to int8 and back takes"
    )
    remedy = "place=smaller does it anyway" if has_weights(node) else "it would follow neighbours in int8"
    return f"by estimate from the cost table of {target.name} (not measured), {why}; {remedy}"
