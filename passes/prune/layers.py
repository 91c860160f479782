"""A model's nodes as layers that can be timed alone, at whatever counts of channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels import Family, Labels
from graphopt.ir import Model
from graphopt.ir.view import is_standard
from graphopt.passes.prune.costs import Extents
from graphopt.passes.prune.surgery import rewritten
from graphopt.runtime.layer_latency import Layer, Operand, Step

_FUSED = frozenset("Relu Clip Sigmoid Tanh LeakyRelu HardSigmoid".split())  # into the convolution before
_CONSTANT_VALUES = 64  # integers that a layer may read as part of its description

Sizes = Callable[[np.ndarray], int]  # from kept counts [families] to the size of an axis


@dataclass(frozen=True)
class Stretch:
    """Nodes in a row that the runtime may fuse. ``families`` (numbers) decide their sizes."""

    families: tuple[int, ...]
    steps: tuple[_Step, ...]
    opset: int

    def at(self, kept: np.ndarray) -> Layer:
        """The layer when families keep so many channels: counts [families of the model]."""
        return Layer(tuple(step.at(kept) for step in self.steps), self.opset)


def stretches(model: Model, labels: Labels, families: tuple[Family, ...]) -> list[Stretch]:
    """The nodes of ``model`` whose sizes depend on what ``families`` keep.

    ``model`` must have the nodes that ``labels`` speaks of, and known shapes. What counts channels in its parameters
    (Reshape, Slice, ...) moves data at most, and is left out.
    """
    found = []
    extents = Extents(labels, families)
    number = {id(node): index for index, node in enumerate(model.graph.nodes)}
    fused: set[int] = set()
    for index, node in enumerate(model.graph.nodes):
        if index in fused or not is_standard(node) or (rewritten(node.op) and node.op not in ("Conv", "ConvTranspose")):
            continue
        chain = [index]
        readers = node.outputs[0].outputs
        if node.op == "Conv" and len(readers) == 1 and readers[0].op in _FUSED and not model.is_output(node.outputs[0]):
            chain.append(number[id(readers[0])])
        steps = [step for i in chain if (step := _Step.of(model, labels, extents, i)) is not None]
        mine = tuple(sorted({f for step in steps for f in step.families}))
        if mine and len(steps) == len(chain):
            fused.update(chain)
            found.append(Stretch(mine, tuple(steps), model.opset))
    return found


@dataclass(frozen=True)
class _Step:
    """One node, and how its operands follow what families keep: by operand and axis."""

    node: gs.Node
    attributes: dict[str, object]
    operands: tuple[Operand | None, ...]
    sizes: dict[tuple[int, int], Sizes]
    families: frozenset[int]
    per_group: tuple[int, int] | None

    @classmethod
    def of(cls, model: Model, labels: Labels, extents: Extents, index: int) -> _Step | None:
        """None for a node that cannot be described."""
        node = model.graph.nodes[index]
        operands = [_operand(t) for t in node.inputs]
        if any(o is None and t.name for o, t in zip(operands, node.inputs, strict=True)):
            return None
        if any(isinstance(v, gs.Graph | gs.Constant) or v is None for v in node.attrs.values()):
            return None
        sizes: dict[tuple[int, int], Sizes] = {}
        families: set[int] = set()
        axes = [
            (slot, axis, groups)
            for slot, tensor in enumerate(node.inputs)
            for axis, groups in enumerate(labels.tensors.get(tensor.name, []))
            if groups is not None and not isinstance(tensor, gs.Constant)
        ]
        axes += [(s.slot, s.axis, groups) for s, groups in labels.by_node.get(index, [])]
        for slot, axis, groups in axes:
            times, stay = extents.of(groups)
            if times.any():
                sizes[slot, axis] = _size(times, stay)
                families.update(int(f) for f in np.flatnonzero(times))
        if any(operands[slot] is not None and operands[slot].values is not None for slot, _ in sizes):  # type: ignore[union-attr]
            return None  # its values are numbers of channels or the like
        per_group = None
        groups_ = int(node.attrs.get("group", 1))
        if node.op in ("Conv", "ConvTranspose") and groups_ > 1:
            weight = operands[1].shape  # type: ignore[union-attr]
            per = (weight[1], weight[0] // groups_) if node.op == "Conv" else (weight[0] // groups_, weight[1])
            per_group = per if 1 in per else None
        attributes = {k: _plain(v) for k, v in node.attrs.items()}
        return cls(node, attributes, tuple(operands), sizes, frozenset(families), per_group)

    def at(self, kept: np.ndarray) -> Step:
        """The node when families keep so many channels."""
        operands = []
        for slot, operand in enumerate(self.operands):
            if operand is not None:
                shape = list(operand.shape)
                for axis in range(len(shape)):
                    if (slot, axis) in self.sizes:
                        shape[axis] = self.sizes[slot, axis](kept)
                operand = Operand(operand.dtype, tuple(shape), operand.constant, operand.values)
            operands.append(operand)
        attributes = dict(self.attributes)
        if self.per_group is not None:  # whole groups go: see the rewrite of Conv
            weight = operands[1].shape  # type: ignore[union-attr]
            into, out = self.per_group
            attributes["group"] = weight[0] // (out if self.node.op == "Conv" else into)
        return Step(self.node.op, attributes, tuple(operands), len(self.node.outputs))


def _size(times: np.ndarray, stay: int) -> Sizes:
    return lambda kept: stay + int(times @ kept)


def _operand(tensor: gs.Tensor) -> Operand | None:
    """None where the type or the shape is not known, or it is an input that is left out."""
    if not tensor.name or tensor.shape is None or not isinstance(tensor.dtype, np.dtype | type):
        return None
    if any(not isinstance(d, int | np.integer) for d in tensor.shape):
        return None
    dtype, shape = np.dtype(tensor.dtype), tuple(int(d) for d in tensor.shape)
    if dtype.kind not in "fiub":
        return None
    constant = isinstance(tensor, gs.Constant)
    values = None
    if isinstance(tensor, gs.Constant) and (dtype.kind != "f" or not shape) and int(np.prod(shape)) <= _CONSTANT_VALUES:
        values = tuple(np.asarray(tensor.values).ravel().tolist())
    return Operand(dtype.name, shape, constant, values)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
