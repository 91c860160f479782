"""What the executor makes one step of: quantize-dequantize pairs, and convolutions with frozen batch norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs
import torch


@dataclass
class Pairs:
    """QuantizeLinear nodes by id, with what the DequantizeLinear after each writes; the ids of those."""

    first: dict[int, str] = field(default_factory=dict)
    second: set[int] = field(default_factory=set)


@dataclass
class Folded:
    """Ids of batch norms that are gone; by the id of a convolution, its new weight, bias and output."""

    norms: set[int] = field(default_factory=set)
    convolutions: dict[int, tuple[str, str, str]] = field(default_factory=dict)


def pairs(nodes: list[gs.Node], known: Mapping[str, object], kept: set[str]) -> Pairs:
    """QuantizeLinear whose one reader is a DequantizeLinear of the same single scale and zero point."""
    found = Pairs()
    for node in nodes:
        if node.op != "QuantizeLinear" or node.outputs[0].name in kept or len(node.outputs[0].outputs) != 1:
            continue
        reader = node.outputs[0].outputs[0]
        parameters = [[t.name for t in n.inputs[1:] if t.name] for n in (node, reader)]
        if reader.op != "DequantizeLinear" or parameters[0] != parameters[1] or not set(parameters[0]) <= set(known):
            continue
        scale = node.inputs[1]
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        single = isinstance(scale, gs.Constant) and all(d == 1 for d in scale.shape)
        if single and (zero is None or not zero.name or isinstance(zero, gs.Constant)):
            found.first[id(node)] = reader.outputs[0].name
            found.second.add(id(reader))
    return found


def fold_norms(nodes: list[gs.Node], known: dict[str, torch.Tensor], kept: set[str]) -> Folded:
    """Batch norms that a convolution before them takes over; its new weights are put into ``known``."""
    folded = Folded()
    for norm in nodes:
        if norm.op != "BatchNormalization" or not norm.inputs[0].inputs or len(norm.outputs) > 1:
            continue
        conv, between = norm.inputs[0].inputs[0], norm.inputs[0]
        constant = all(t.name in known for t in [*norm.inputs[1:], *conv.inputs[1:]])
        if conv.op != "Conv" or not constant or len(between.outputs) != 1 or between.name in kept:
            continue
        scale, bias, mean, var = (known[t.name].double() for t in norm.inputs[1:5])
        weight = known[conv.inputs[1].name]
        gain = scale / torch.sqrt(var + norm.attrs.get("epsilon", 1e-5))
        old = known[conv.inputs[2].name].double() if len(conv.inputs) > 2 and conv.inputs[2].name else 0.0
        stem = norm.outputs[0].name
        wide = weight.double() * gain.reshape(-1, *[1] * (weight.dim() - 1))
        memory = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
        known[f"{stem}\0weight"] = wide.to(weight.dtype).contiguous(memory_format=memory)
        known[f"{stem}\0bias"] = ((old - mean) * gain + bias).to(weight.dtype)
        folded.norms.add(id(norm))
        folded.convolutions[id(conv)] = (f"{stem}\0weight", f"{stem}\0bias", stem)
    return folded
