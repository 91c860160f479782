"""Images enter int8 without loss: the 256 levels of their pixels become the 256 integers.

What a model reads is pixel * factor + offset. Quantized to the range that its values take, it is rounded once more, by
up to half a level, at the place where that does the most harm: all that follows sees the same error. One factor and one
offset that is a multiple of it need no more than the right scale and zero point. Where they differ by channel (the mean
and deviation of ImageNet), a float Conv of 1x1 brings the image back to its pixels, and the layers behind it take
factor and offset into their weights. What they pad with stands for the number 0, which is not pixel 0: a channel that
is 255 wherever the image is and 0 where it is padded carries the offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.data.loader import Batches
from graphopt.ir import Model
from graphopt.ir.view import is_standard
from graphopt.passes.quantize.operators import constant_input, data_inputs, has_weights, takes_offset
from graphopt.passes.quantize.placement import Plan
from graphopt.pipeline import Context, Skipped

_TOP = 255.0
_CLOSE = 1e-3  # of a level
_ROUNDED = "the levels of its image are rounded once more to enter int8: "


@dataclass
class Entry:
    """The plan for the model as it was changed, and ranges by tensor name that are known without calibration."""

    plan: Plan
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def enter(model: Model, ctx: Context, plan: Plan, spare: bool = True) -> Entry:
    """Let the images reach the int8 layers of ``plan`` in ``model`` losslessly; ``model`` may get one operator more.

    ``spare``: whether there is time for it. What hinders it is in ``skipped``; images of more than 256 levels, and
    layers that read no image, are not mentioned.
    """
    images, target = ctx.calibration, ctx.target
    if not isinstance(images, Batches) or target.activation != "uint8" or target.symmetric_activations:
        return Entry(plan)
    levels, image = images.levels(), next((t for t in model.graph.inputs if t.name == images.input.name), None)
    if levels is None or image is None or image.dtype != np.float32:
        return Entry(plan)
    (factor, offset), nodes = levels, list(model.graph.nodes)
    there = [i for i, n in enumerate(nodes) if any(t is image for t in n.inputs) and _converts(n, factor)]
    if there:  # by this pass, before the model was made float again
        plan.int8.difference_update(there)
        kept = [Skipped(nodes[i].name, nodes[i].op, "it brings images back to their pixels") for i in there]
        return Entry(plan, {nodes[i].outputs[0].name: (0.0, _TOP) for i in there}, kept)
    readers = [nodes[i] for i in sorted(plan.int8) if any(t is image for t in data_inputs(nodes[i], target))]
    if not readers:
        return Entry(plan)
    zero = -offset / factor
    if np.ptp(factor) <= 1e-6 * factor[0] and np.abs(zero - np.clip(np.rint(zero[0]), 0, _TOP)).max() < _CLOSE:
        return Entry(plan, {image.name: (float(offset[0]), float(offset[0] + _TOP * factor[0]))})
    hindered = [reason for n in readers if (reason := _hindered(n, images))]
    if not spare:
        hindered.append("int8 gains too little to pay for the operator that would spare them that")
    if hindered:
        return Entry(plan, {}, [Skipped(n.name, n.op, _ROUNDED + hindered[0]) for n in readers])
    name = _convert(model, image, readers, factor, offset)
    absorbed = {i + 1: root + 1 for i, root in plan.absorbed.items()}  # the new operator stands first
    return Entry(Plan({i + 1 for i in plan.int8}, absorbed, plan.skipped), {name: (0.0, _TOP)})


def _hindered(node: gs.Node, images: Batches) -> str | None:
    if images.input.layout != "nchw":
        return "its channels are not on the second axis, where a Conv has them"
    if not (node.op == "Conv" and is_standard(node) and has_weights(node) and node.attrs.get("group", 1) == 1):
        return "only a Conv without groups, with constant weights, takes the normalization of pixels into its weights"
    return None if takes_offset(node) else "its bias is not constant"


def _converts(node: gs.Node, factor: np.ndarray) -> bool:
    """Whether a node brings an image back to its pixels already."""
    weight = constant_input(node, 1)
    if node.op != "Conv" or weight is None or weight.shape[1:] != (len(factor), 1, 1) or len(weight) < len(factor):
        return False
    unit = np.eye(len(weight), len(factor))
    return bool(np.allclose(weight[:, :, 0, 0] * factor, unit, atol=1e-5))


def _convert(model: Model, image: gs.Tensor, readers: list[gs.Node], factor: np.ndarray, offset: np.ndarray) -> str:
    """Put the operator in and change the layers behind it; the name of the tensor of pixels."""
    channels = len(factor)
    marked = any(_pads(n) for n in readers)
    matrix = np.zeros((channels + marked, channels, 1, 1))
    matrix[range(channels), range(channels)] = 1 / factor[:, None, None]
    shift = np.concatenate([-offset / factor, [_TOP] * marked])
    shape = None if image.shape is None else [image.shape[0], channels + marked, *image.shape[2:]]
    with model.edit() as graph:
        pixels = gs.Variable(model.fresh_name(f"{image.name}_pixels"), np.float32, shape)
        inputs = [
            image,
            model.constant(f"{pixels.name}_weight", matrix.astype(np.float32)),
            model.constant(f"{pixels.name}_bias", shift.astype(np.float32)),
        ]
        graph.nodes.insert(
            0, gs.Node("Conv", model.fresh_name(pixels.name), {"kernel_shape": [1, 1]}, inputs, [pixels])
        )
        for node in readers:
            _take_in(model, node, factor, offset, marked)
            node.inputs[0] = pixels
    return str(pixels.name)


def _take_in(model: Model, node: gs.Node, factor: np.ndarray, offset: np.ndarray, marked: bool) -> None:
    """Weights [outputs, channels, *taps] for pixels, and for the channel that marks where the image is."""
    old = node.inputs[1]
    weight = np.asarray(old.values, np.float64)
    constant = np.einsum("oc...,c->o...", weight, offset)
    parts = [np.einsum("oc...,c->oc...", weight, factor)]
    if marked:
        parts.append(constant[:, None] / _TOP)
    else:
        bias = constant_input(node, 2)
        total = constant.reshape(len(weight), -1).sum(axis=1) + (0.0 if bias is None else bias)
        node.inputs = [*node.inputs[:2], model.constant(f"{node.name}_bias", total.astype(np.float32))]
    node.inputs[1] = model.constant(f"{old.name}_pixels", np.concatenate(parts, axis=1).astype(np.float32))


def _pads(node: gs.Node) -> bool:
    return any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
