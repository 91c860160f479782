"""Cross-layer equalization (Nagel et al. 2019, "Data-Free Quantization"): exact, and before anything is quantized.

What scales a channel of one layer and the matching input of the next by the inverse factor changes nothing between
them that is positively homogeneous, f(s x) = s f(x) for s > 0: ReLU and LeakyReLU are, poolings are, a Clip at 6,
HardSwish and Sigmoid are not. The factors give both layers' channels the same range, so that one scale for a tensor
of activations, or for an output of the second layer, serves all channels alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.ir.view import is_standard
from graphopt.passes.quantize.operators import channel_axis, sole_consumer
from graphopt.pipeline import Skipped
from graphopt.pipeline.patterns import matching

_HOMOGENEOUS = frozenset("Relu LeakyRelu PRelu MaxPool AveragePool GlobalAveragePool GlobalMaxPool Identity".split())
_SWEEPS = 30
_SETTLED = 1e-3  # factors this near to 1 change no range
_WIDEST = 1e3  # a factor is at most this, and at least its inverse


@dataclass
class _Pair:
    """Two layers with weights [outputs, inputs of a group, taps], alike in the channels between them."""

    first: gs.Node
    second: gs.Node
    groups: int


def equalize(model: Model, keep_float: tuple[str, ...] = ()) -> tuple[int, list[Skipped]]:
    """Equalize ``model`` in place; how many pairs of layers were, and why other layers were not."""
    pairs: list[_Pair] = []
    skipped: list[Skipped] = []
    for node in model.graph.nodes:
        if not _has_rows(node):
            continue
        found = _follow(model, node)
        if not isinstance(found, str) and matching(found.first.name, keep_float) is not None:
            found = "it stays in float"
        if isinstance(found, str):
            skipped.append(Skipped(node.name, node.op, f"not equalized with the layer after it: {found}"))
        else:
            pairs.append(found)
    weights = {id(n): _Weights.of(n) for pair in pairs for n in (pair.first, pair.second)}
    for _ in range(_SWEEPS):
        changes = [_balance(weights[id(p.first)], weights[id(p.second)], p.groups) for p in pairs]
        if max(changes, default=0.0) < _SETTLED:
            break
    with model.edit():
        for node in {id(n): n for pair in pairs for n in (pair.first, pair.second)}.values():
            weights[id(node)].store(model, node)
    return len(pairs), skipped


@dataclass
class _Weights:
    """``matrix`` [outputs, inputs of a group, taps] and ``bias`` [outputs] of a layer, in double precision."""

    matrix: np.ndarray
    bias: np.ndarray | None

    @classmethod
    def of(cls, node: gs.Node) -> _Weights:
        rows = np.moveaxis(np.asarray(node.inputs[1].values, np.float64), channel_axis(node), 0)
        bias = None
        if len(node.inputs) > 2 and node.inputs[2].name:
            bias = np.broadcast_to(np.asarray(node.inputs[2].values, np.float64).reshape(-1), len(rows)).copy()
        return cls(rows.reshape(*rows.shape[:2], -1).copy(), bias)

    def store(self, model: Model, node: gs.Node) -> None:
        axis, old = channel_axis(node), node.inputs[1]
        rows = self.matrix.reshape(np.moveaxis(old.values, axis, 0).shape)
        node.inputs[1] = model.constant(f"{old.name}_equalized", np.moveaxis(rows, 0, axis).astype(np.float32))
        if self.bias is not None:
            node.inputs[2] = model.constant(f"{node.inputs[2].name}_equalized", self.bias.astype(np.float32))


def _balance(first: _Weights, second: _Weights, groups: int) -> float:
    """One step: equal ranges on both sides of each channel. How far the factors were from 1."""
    out = np.abs(first.matrix).max(axis=(1, 2))
    by_group = np.abs(second.matrix).max(axis=2).reshape(groups, -1, second.matrix.shape[1])
    into = by_group.max(axis=1).reshape(-1)
    live = (out > 0) & (into > 0)
    factor = np.ones(out.shape)
    np.divide(out, into, out=factor, where=live)
    factor = np.clip(np.sqrt(factor), 1 / _WIDEST, _WIDEST)
    first.matrix /= factor[:, None, None]
    if first.bias is not None:
        first.bias /= factor
    per_group = factor.reshape(groups, 1, -1, 1)
    shape = (groups, -1, *second.matrix.shape[1:])
    second.matrix = (second.matrix.reshape(shape) * per_group).reshape(second.matrix.shape)
    return float(np.abs(factor - 1).max())


def _has_rows(node: gs.Node) -> bool:
    """Whether a layer's weight and bias are constants of its own rows."""
    if node.op not in ("Conv", "Gemm") or not is_standard(node) or len(node.inputs) < 2:
        return False
    return all(isinstance(t, gs.Constant) and t.dtype == np.float32 for t in node.inputs[1:] if t.name)


def _follow(model: Model, first: gs.Node) -> _Pair | str:
    """The layer that reads what ``first`` computes, behind nothing that factors do not pass; or why there is none."""
    tensor = first.outputs[0]
    while True:
        if model.is_output(tensor):
            return "it computes an output of the model"
        reader = sole_consumer(model, tensor)
        if reader is None:
            return "several operators read what it computes" if len(tensor.outputs) > 1 else "nothing else reads it"
        if reader.inputs[0] is not tensor and reader.op in ("Conv", "Gemm"):
            return "what it computes serves as a weight"
        if _has_rows(reader):
            return _paired(first, reader)
        flat = reader.op == "Flatten" and reader.attrs.get("axis", 1) == 1 and _pixel(tensor)
        if not is_standard(reader) or not (flat or reader.op in _HOMOGENEOUS):
            return f"{reader.op} behind it does not pass a positive factor through by channel"
        if reader.op == "PRelu" and reader.inputs[0] is not tensor:
            return "what it computes is the slope of a PRelu"
        if len(reader.outputs) > 1:
            return "an operator behind it has several outputs"
        tensor = reader.outputs[0]


def _pixel(tensor: gs.Tensor) -> bool:
    return tensor.shape is not None and len(tensor.shape) > 1 and all(d == 1 for d in tensor.shape[2:])


def _paired(first: gs.Node, second: gs.Node) -> _Pair | str:
    groups = int(second.attrs.get("group", 1)) if second.op == "Conv" else 1
    if second.op == "Gemm" and second.attrs.get("transA", 0):
        return "the Gemm behind it transposes its data"
    bias = first.inputs[2].values if len(first.inputs) > 2 and first.inputs[2].name else None
    if bias is not None and bias.ndim > 1 and len(bias) > 1:
        return "its bias differs by row"
    channels = first.inputs[1].values.shape[channel_axis(first)]
    shape = np.moveaxis(second.inputs[1].values, channel_axis(second), 0).shape
    if channels != groups * shape[1]:
        return "the layer behind it reads its channels in another order"
    return _Pair(first, second, groups)
