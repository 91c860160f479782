"""Operators that do nothing: identities, and what the values of attributes or constant inputs make one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.rewrite import RewritePass, Rule, Workbench
from graphopt.rewrite.bypass import bypass
from graphopt.rewrite.operands import constant_slices
from graphopt.rewrite.shapes import equal_shapes, known, spread

_IDEMPOTENT = ("Relu", "Abs", "Ceil", "Floor", "Round", "Sign")  # doing it again changes nothing
# Operators that have outputs that may be left out, in some version; a test holds this to the standard.
OPTIONAL_OUTPUTS = (
    *("Attention", "BatchNormalization", "Dropout", "GRU", "LSTM", "LayerNormalization", "MaxPool", "RNN"),
    *("SoftmaxCrossEntropyLoss", "Unique"),
)
_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1, "Or": False, "And": True}


@dataclass(frozen=True)
class Eliminate(RewritePass):
    """Remove operators that do nothing: Identity, Dropout, x * 1, x + 0, a Cast to the type that a tensor has already,
    and their like, and whatever nobody reads.

    Graph inputs and outputs keep their names; custom and random operators are left alone.
    """

    name = "eliminate"
    kind = Kind.EXACT
    resumes = True

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (
            Rule("dead_outputs", OPTIONAL_OUTPUTS, drop_dead_outputs),
            Rule("identities", ("Identity",), bypass),
            Rule("dropouts", ("Dropout",), remove_dropout),
            Rule("casts", ("Cast", "CastLike"), remove_cast),
            Rule("single_inputs", ("Concat", "Sum", "Max", "Min", "Mean"), remove_single),
            Rule("neutral_arithmetic", tuple(_NEUTRAL), remove_neutral),
            Rule("transposes", ("Transpose",), remove_transpose),
            Rule("pads", ("Pad",), remove_pad),
            Rule("same_shape", ("Reshape", "Expand", "Tile", "Resize", "Squeeze", "Flatten"), remove_same_shape),
            Rule("slices", ("Slice",), remove_slice),
            Rule("splits", ("Split",), remove_split),
            Rule("repetitions", _IDEMPOTENT, remove_repetition),
        )


def remove_repetition(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a Relu of a Relu, and what else does nothing a second time."""
    # Not by the tensor's own list of writers, which is of the time before the pass.
    return None if bench.standard_producer(node.inputs[0], node.op) is None else bypass(bench, node)


def remove_cast(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a Cast or CastLike to the type that its input already has."""
    source, target = node.inputs[0], node.outputs[0]
    if source.dtype is not None and source.dtype == target.dtype:
        return bypass(bench, node)
    return None


def remove_dropout(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a Dropout that is known to be in inference mode (before opset 12 there is no other)."""
    if len(node.inputs) > 2 and node.inputs[2].name:
        mode = bench.array(node.inputs[2])
        if mode is None or mode.any():
            return "it is in training mode, or may be: its training_mode input is not constant"
    mask = node.outputs[1] if len(node.outputs) > 1 else None
    if mask is not None and mask.name and (bench.readers(mask) or bench.why_bound(mask)):
        return f"its mask output {mask.name!r} is used"
    return bypass(bench, node)


def remove_single(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a Concat, Sum, Max, Min or Mean of one tensor."""
    return bypass(bench, node) if len(node.inputs) == 1 else None


def remove_neutral(bench: Workbench, node: gs.Node) -> str | None:
    """Remove x + 0, x - 0, x * 1, x / 1, x ** 1 and the like, where that does not broadcast x to another shape.

    Of these, only x + 0 could tell: it makes 0 of -0, which is float noise.
    """
    for index in (1, 0) if node.op in ("Add", "Mul", "And", "Or") else (1,):
        value = bench.scalar(node.inputs[index])
        if value is None or value != _NEUTRAL[node.op]:
            continue
        source = node.inputs[1 - index]
        if spread(node.inputs[index], source):
            return bypass(bench, node, source)
    return None


def remove_transpose(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a Transpose that keeps the order of axes."""
    perm = node.attrs.get("perm")
    if perm is not None and list(perm) == sorted(perm):
        return bypass(bench, node)
    return None


def remove_pad(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a Pad by zero elements."""
    amounts = node.attrs.get("pads")
    if amounts is None and len(node.inputs) > 1:
        amounts = bench.array(node.inputs[1])
    if amounts is not None and not np.any(amounts):
        return bypass(bench, node)
    return None


def remove_same_shape(bench: Workbench, node: gs.Node) -> str | None:
    """Remove what could only change a shape and does not, where both shapes are known, by number or by name."""
    if not equal_shapes(node.inputs[0], node.outputs[0]) and not _keeps_places(bench, node):
        return None
    if node.op == "Resize":
        return None if _resizes_in_place(bench, node) else "its sampling moves values, although the shape stays"
    return bypass(bench, node)


def _keeps_places(bench: Workbench, node: gs.Node) -> bool:
    """Whether a Reshape names every dimension that its input has at that place, all but one of them by number."""
    target = bench.array(node.inputs[1]) if node.op == "Reshape" and len(node.inputs) > 1 else None
    shape = node.inputs[0].shape
    if target is None or shape is None or len(target) != len(shape):
        return False
    copies = not node.attrs.get("allowzero", 0)
    return (target == -1).sum() <= 1 and all(
        size == -1 or (size == 0 and copies) or (known(dim) and size == dim)
        for size, dim in zip(target.tolist(), shape, strict=True)
    )


def remove_slice(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a Slice that takes everything there is along each of its axes."""
    bounds, source = constant_slices(bench, node), node.inputs[0]
    if bounds is None:
        return None
    for axis, (start, end, step) in bounds.items():
        size = source.shape[axis] if source.shape is not None and axis < len(source.shape) else None
        # Exporters write the largest integers there are for an open end.
        length = int(size) if size is not None and known(size) else 2**31 - 1
        if step != 1 or end < length or not (start == 0 or (known(size) and start <= -length)):
            return None
    return bypass(bench, node)


def _resizes_in_place(bench: Workbench, node: gs.Node) -> bool:
    """Whether a Resize to the same shape copies each value to its own place."""
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    if node.attrs.get("mode", "nearest") not in ("nearest", "linear"):
        return False
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    place = 1 if bench.model.opset < 11 else 2
    tensor = node.inputs[place] if len(node.inputs) > place else None
    if tensor is None or not tensor.name or tensor.shape == (0,):
        return True  # sizes are given, and equal
    scales = bench.array(tensor)
    return scales is not None and (scales.size == 0 or bool((scales == 1).all()))


def remove_split(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a Split into one part."""
    return bypass(bench, node) if len(node.outputs) == 1 else None


def drop_dead_outputs(bench: Workbench, node: gs.Node) -> str | None:
    """Drop trailing optional outputs that nobody reads (the mask of a Dropout, the indices of a MaxPool)."""
    schema = bench.schema(node) if bench.is_standard(node) else None
    while schema is not None and len(node.outputs) > max(schema.min_output, 1):
        last = node.outputs[-1]
        optional = len(node.outputs) <= len(schema.outputs) and (
            schema.outputs[len(node.outputs) - 1].option.name == "Optional"
        )
        if not optional or (last.name and (bench.readers(last) or bench.why_bound(last))):
            return None
        bench.drop_output(node)
    return None
