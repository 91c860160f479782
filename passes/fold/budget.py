"""Which constant subgraphs are worth their bytes: decided from shapes, before anything is computed.

A constant subgraph is a connected set of nodes that depend on initializers alone. Folding it stores what other nodes
read of it, and frees the initializers that only it reads. A rule that looks at one subgraph at a time, and not at what
is left of a total, gives the same answers when the pass runs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir.values import nbytes
from graphopt.ir.view import subgraphs
from graphopt.rewrite import Workbench
from graphopt.rewrite.index import plain_dtype

# The largest tensor that is computed, even if only a small part of it stays. Weights may be larger.
WORKING_BYTES = 256 << 20
# Their output size depends on values; it is at most one int64 index per input element and axis.
_DATA_DEPENDENT = frozenset(("Compress", "NonZero", "Unique"))
_NON_DETERMINISTIC = onnx.defs.OpSchema.NodeDeterminism.NonDeterministic
# What these hold is the quantizer's decision; folding them would turn int8 weights back into float32.
_QUANTIZATION = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))
_Sizes = dict[str, int]  # bytes of tensors, by their names


@dataclass
class Plan:
    """Nodes to evaluate, in topological order, and the outputs of theirs that stay as initializers."""

    nodes: list[gs.Node]
    kept: list[gs.Tensor]
    stored: int  # bytes that the kept outputs take at most


def human(size: int) -> str:
    """Bytes in words."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


class Allowance:
    """Bytes that folding one constant subgraph may add: ``least``, or what ``exact`` finds out where that matters."""

    def __init__(self, least: int, exact: Callable[[], int]) -> None:
        self._least, self._exact = least, exact

    def covers(self, growth: int) -> bool:
        return growth <= self._least or growth <= self.bytes

    @cached_property
    def bytes(self) -> int:
        return self._exact()


def plan(bench: Workbench, allowed: Allowance, refused: dict[int, str]) -> Plan:
    """Choose the constant subgraphs to fold. ``refused``: nodes (by id) that could not be computed, and why."""
    now, planned = bench.changes, bench.notes.get("planned")
    if planned is not None and not refused and not any(_is_constant(n, ()) for n in bench.changed_since(planned)):
        return Plan([], [], 0)
    bench.notes["planned"] = None
    sizes: _Sizes = {}
    candidates, left = _candidates(bench, refused, sizes)
    if not candidates:
        bench.notes["planned"] = None if left else now
        return Plan([], [], 0)
    chosen: set[int] = set()
    for part in _components(candidates):
        if allowed.covers(_growth(bench, part, sizes)):
            chosen.update(id(n) for n in part)
            continue
        inflating = [n for n in part if not allowed.covers(_written(n, sizes) - _input_bytes(n))]
        for node in inflating or [n for n in part if _read_outside(bench, n, {id(m) for m in part})]:
            size, most = human(_written(node, sizes)), human(allowed.bytes)
            bench.skip(node, f"folding it would store {size}; at most {most} may be added (option budget)")
        rest = _without(bench, part, inflating) if inflating else []
        for smaller in _components(rest):
            if allowed.covers(_growth(bench, smaller, sizes)):
                chosen.update(id(n) for n in smaller)
    nodes = [n for n in candidates if id(n) in chosen]
    if len(nodes) == len(candidates) and not left and not refused:
        # Once these are folded, another constant node must be one at which something has changed.
        bench.notes["planned"] = now
    for node in nodes:
        bench.unskip(node)
    kept = [t for n in nodes for t in _read_outside(bench, n, chosen)]
    return Plan(nodes, kept, sum([sizes[t.name] for t in kept]))


def _candidates(bench: Workbench, refused: dict[int, str], sizes: _Sizes) -> tuple[list[gs.Node], bool]:
    """Nodes that depend on initializers alone and can be computed in the working memory, and whether some cannot.

    ``sizes`` is filled with those of their outputs.
    """
    found: list[gs.Node] = []
    left = False
    names: set[str] = set()
    for node in bench.nodes():
        if not _is_constant(node, names):
            continue
        reason = refused.get(id(node)) or _why_not(bench, node, sizes)
        if reason:
            bench.skip(node, reason)
            left = True
        else:
            found.append(node)
            names.update(t.name for t in node.outputs if t.name)
    return found, left


def _is_constant(node: gs.Node, names: Collection[str]) -> bool:
    """Whether a node has inputs, and all of them are initializers or among the tensors ``names``."""
    for tensor in node.inputs:
        if not isinstance(tensor, gs.Constant) and tensor.name and tensor.name not in names:
            return False
    return bool(node.inputs)


def _why_not(bench: Workbench, node: gs.Node, sizes: _Sizes) -> str:
    """Why a node with constant inputs is not evaluated, in words; empty if it may be, with the sizes of its outputs."""
    if not bench.is_standard(node):
        return "a custom operator is not evaluated, although its inputs are constant"
    if node.op in _QUANTIZATION:
        return "quantized constants stay as they are"
    schema = bench.schema(node)
    if subgraphs(node):
        return "operators with subgraphs are not evaluated, although their inputs are constant"
    if schema is None or schema.node_determinism == _NON_DETERMINISTIC:
        return "it is random, or may be"
    if any(t.name and plain_dtype(t) is None for t in (*node.inputs, *node.outputs)):
        return "the type of an input or output is unknown, or none that numpy has"
    for tensor in node.outputs:
        if not tensor.name:
            continue
        if bench.is_foreign(tensor):
            return bench.why_bound(tensor)
        size = _result_bytes(node, tensor)
        if size is None:
            return "the size of its result is not known before it is computed"
        if size > WORKING_BYTES and size > max(nbytes(c) for c in bench.model.constants()):
            return f"its result of {human(size)} is too large to compute here"
        sizes[tensor.name] = size
    return ""


def _result_bytes(node: gs.Node, tensor: gs.Tensor) -> int | None:
    """Bytes of an output, at most; None if unknown."""
    size = _bytes(tensor)
    if size is None and node.op in _DATA_DEPENDENT and _bytes(node.inputs[0]) is not None:
        shape = node.inputs[0].shape
        size = _volume(shape) * 8 * max(len(shape), 1)
    return size


def _bytes(tensor: gs.Tensor) -> int | None:
    dtype, shape = plain_dtype(tensor), tensor.shape
    if dtype is None or shape is None or not all(isinstance(d, int | np.integer) and d >= 0 for d in shape):
        return None
    return _volume(shape) * dtype.itemsize


def _volume(shape: Sequence[int]) -> int:
    return math.prod(int(d) for d in shape)  # python integers: absurd shapes must not wrap around


def _input_bytes(node: gs.Node) -> int:
    tensors = {t.name: t for t in node.inputs if t.name}
    return sum(nbytes(t) if isinstance(t, gs.Constant) else _bytes(t) or 0 for t in tensors.values())


def _growth(bench: Workbench, part: list[gs.Node], sizes: _Sizes) -> int:
    """Bytes that the file grows by when the nodes of ``part`` are folded; negative when it shrinks."""
    inside = {id(n) for n in part}
    stored = sum([sizes[t.name] for n in part for t in _read_outside(bench, n, inside)])
    read = {t.name: t for n in part for t in n.inputs if isinstance(t, gs.Constant)}
    freed = [t for t in read.values() if inside.issuperset(map(id, bench.readers(t))) and not bench.why_bound(t)]
    return stored - sum(map(nbytes, freed))


def _written(node: gs.Node, sizes: _Sizes) -> int:
    """Bytes of a node's outputs."""
    return sum([sizes[t.name] for t in node.outputs if t.name])


def _read_outside(bench: Workbench, node: gs.Node, inside: set[int]) -> list[gs.Tensor]:
    """Outputs of a node that must stay when the nodes ``inside`` (by id) are folded."""
    return [
        t for t in node.outputs if t.name and (not inside.issuperset(map(id, bench.readers(t))) or bench.why_bound(t))
    ]


def _view(nodes: list[gs.Node]) -> nx.DiGraph:
    """Which of the nodes, by their places, read what others of them write."""
    writer = {t.name: k for k, n in enumerate(nodes) for t in n.outputs if t.name}
    view = nx.DiGraph()
    view.add_edges_from([(writer[t.name], k) for k, n in enumerate(nodes) for t in n.inputs if t.name in writer])
    return view


def _components(nodes: list[gs.Node]) -> list[list[gs.Node]]:
    """Connected sets of nodes, each in the order of ``nodes``."""
    view = _view(nodes)
    connected = [sorted(c) for c in nx.weakly_connected_components(view)]
    found = sorted([*connected, *([k] for k in range(len(nodes)) if k not in view)])
    return [[nodes[k] for k in part] for part in found]


def _without(bench: Workbench, part: list[gs.Node], roots: list[gs.Node]) -> list[gs.Node]:
    """``part`` without ``roots`` and all that depends on them."""
    view = _view(part)
    view.add_nodes_from(range(len(part)))
    ids = {id(n) for n in roots}
    gone: set[int] = set()
    for k in nx.topological_sort(view):
        if id(part[k]) in ids or any(p in gone for p in view.predecessors(k)):
            gone.add(k)
    return [n for k, n in enumerate(part) if k not in gone]
