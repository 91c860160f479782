"""Who writes and reads each tensor of a graph, and what about a tensor or an operator must not be touched."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.ir.values import peek
from graphopt.ir.view import reads, subgraphs

# Types that ONNX Runtime takes from and gives to numpy; others (bfloat16, 8-bit floats, 4-bit integers) are not
# computed with.
_PLAIN = frozenset(
    np.dtype(t)
    for t in (
        *("float16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)


_PLAIN_KINDS = frozenset(map(type, _PLAIN))  # each type has a class of its own
_STANDARD = (None, "", "ai.onnx")


def plain_dtype(tensor: gs.Tensor) -> np.dtype | None:
    """The numpy type of a tensor, or None if it is unknown or numpy has no such type."""
    given = tensor._values.dtype if isinstance(tensor, gs.Constant) else tensor.dtype
    if type(given) is np.dtype or type(given) in _PLAIN_KINDS:
        return given if given in _PLAIN else None
    if given is None or isinstance(given, int):
        return None
    dtype = np.dtype(given)
    return dtype if dtype in _PLAIN else None


# The nodes that read a tensor: the only one, as most tensors have, or some by their ids.
Readers: TypeAlias = gs.Node | dict[int, gs.Node]


def several(found: Readers | None) -> dict[int, gs.Node]:
    """Nodes that read a tensor, by their ids."""
    if type(found) is dict:
        return found
    return {} if found is None else {id(found): found}


def values_of(tensor: gs.Tensor | None) -> np.ndarray | None:
    """Values of an initializer that numpy can compute with; None for anything else."""
    if isinstance(tensor, gs.Constant) and plain_dtype(tensor) is not None:
        return peek(tensor)
    return None


class Schemas:
    """What the ONNX standard says of the operators of a model's opset."""

    def __init__(self, model: Model) -> None:
        self._opset = model.opset
        self._functions = {(f.domain or "", f.name) for f in model.bare.functions}
        self._known: dict[str, onnx.defs.OpSchema | None] = {}

    def knows(self, op: str, domain: str | None) -> bool:
        """Whether an operator is one of the standard, not a custom one or a function."""
        return domain in _STANDARD and (self._known[op] if op in self._known else self.of(op)) is not None

    def of(self, op: str) -> onnx.defs.OpSchema | None:
        """The schema of a standard operator of this name; None if there is none, or a function is called so."""
        try:
            return self._known[op]
        except KeyError:
            self._known[op] = None
            if not self._functions & {("", op), ("ai.onnx", op)}:
                with contextlib.suppress(onnx.defs.SchemaError):
                    self._known[op] = onnx.defs.get_schema(op, self._opset, "")
            return self._known[op]


class Index:
    """One graph of a model (the main one unless said), with answers that take no search."""

    def __init__(self, model: Model, graph: gs.Graph | None = None) -> None:
        self.model = model
        self.graph = model.bare if graph is None else graph
        self._schemas = Schemas(model)
        # The order of nodes: each original one has a slot, and nodes that take its place share it.
        self._base: list[gs.Node] = self.graph.nodes
        self._slot: dict[int, int] = {id(n): k for k, n in enumerate(self._base)}
        self._shared: dict[int, list[gs.Node]] = {}  # slots of more than one node, some of them gone
        self._alive: dict[int, gs.Node] = {id(n): n for n in self._base}
        self._moved = False  # whether the graph's own list of nodes is no longer theirs
        self._by_op: dict[str, dict[int, gs.Node]] = {}
        self._readers: dict[str, Readers] = {}
        self._producer: dict[str, gs.Node] = {}
        self._outputs = {t.name for t in self.graph.outputs}
        self._inputs = {t.name for t in self.graph.inputs}
        self._foreign: set[str] = set()
        flat = self.graph is model.bare and model.flat == model.revision
        self.has_subgraphs = not flat and any(node.attrs and subgraphs(node) for node in self.graph.nodes)
        if not self.has_subgraphs and self.graph is model.bare:
            model.flat = model.revision
        self._captured = set(_read_elsewhere(model, self.graph))
        by_op, readers, producer = self._by_op, self._readers, self._producer
        for key, node in self._alive.items():
            same = by_op.get(node.op)
            if same is None:
                by_op[node.op] = {key: node}
            else:
                same[key] = node
            for tensor in node.inputs:
                name = tensor.name
                known = readers.get(name)
                if known is None:
                    if name:
                        readers[name] = node
                elif type(known) is dict:
                    known[key] = node
                elif known is not node:
                    readers[name] = {id(known): known, key: node}
            for tensor in node.outputs:
                if tensor.name:
                    producer[tensor.name] = node
        # Nodes whose outputs nobody may be reading: those that nobody does, and some more.
        self._idle = {
            key: n
            for key, n in self._alive.items()
            if (len(n.outputs) != 1 or n.outputs[0].name not in readers) and not self.is_read(n)
        }
        for other in model.bare_graphs() if self.has_subgraphs or self.graph is not model.bare else (self.graph,):
            for node in other.nodes:
                if not self.is_standard(node):
                    self._foreign.update(reads(node))

    def nodes(self) -> Iterator[gs.Node]:
        """The nodes that are left, in topological order."""
        if not self._moved:
            yield from self.graph.nodes
            return
        alive, shared = self._alive, self._shared
        for node in self._base:
            if shared and (there := shared.get(self._slot[id(node)])) is not None:
                yield from [n for n in there if id(n) in alive]
            elif id(node) in alive:
                yield node

    def position(self, node: gs.Node) -> tuple[int, int]:
        """Where a node stands in the order, to be compared with that of another."""
        slot = self._slot[id(node)]
        there = self._shared.get(slot)
        return slot, 0 if there is None else next(k for k, n in enumerate(there) if n is node)

    def in_order(self, nodes: dict[int, gs.Node]) -> list[gs.Node]:
        """Nodes, given by their ids, in the order in which they stand."""
        if self._shared:
            return sorted(nodes.values(), key=self.position)
        return [nodes[key] for key in sorted(nodes, key=self._slot.__getitem__)]

    def is_alive(self, node: gs.Node) -> bool:
        return id(node) in self._alive

    def readers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Nodes of the graph that read ``tensor``, each once."""
        found = self._readers.get(tensor.name)
        if type(found) is dict:
            return list(found.values())
        return [] if found is None else [found]

    def is_read(self, node: gs.Node) -> bool:
        """Whether some node of the graph reads an output of ``node``."""
        readers = self._readers
        for tensor in node.outputs:  # noqa: SIM110 - asked for every node that is looked at
            if tensor.name and readers.get(tensor.name):
                return True
        return False

    def producer(self, tensor: gs.Tensor) -> gs.Node | None:
        return self._producer.get(tensor.name)

    def standard_producer(self, tensor: gs.Tensor, *ops: str) -> gs.Node | None:
        """The producer of a tensor if it is a standard operator called one of ``ops``."""
        node = self._producer.get(tensor.name)
        return node if node is not None and node.op in ops and self.is_standard(node) else None

    def is_output(self, tensor: gs.Tensor) -> bool:
        return tensor.name in self._outputs

    def is_captured(self, tensor: gs.Tensor) -> bool:
        """Whether another graph of the model (a subgraph, say) reads the tensor by its name."""
        return tensor.name in self._captured

    def is_foreign(self, tensor: gs.Tensor) -> bool:
        """Whether a custom operator reads the tensor: what such an operator demands of it is not known."""
        return tensor.name in self._foreign

    def why_bound(self, tensor: gs.Tensor) -> str:
        """Why a tensor's name must stay with its present producer, in words; empty if it need not."""
        name = tensor.name
        if name in self._outputs:
            return f"its output {name!r} is an output of the graph"
        if name in self._captured:
            return f"a subgraph reads its output {name!r}"
        if name in self._foreign:
            return f"a custom operator reads its output {name!r}"
        return ""

    def why_shared(self, tensor: gs.Tensor) -> str:
        """Why the one reader of a tensor may not take its producer in, in words; empty if it may."""
        reason = self.why_bound(tensor)
        if not reason and len(several(self._readers.get(tensor.name))) > 1:
            reason = f"other nodes read {tensor.name!r} as well"
        return reason

    def is_graph_input(self, tensor: gs.Tensor) -> bool:
        return tensor.name in self._inputs

    def is_standard(self, node: gs.Node) -> bool:
        """Whether the node's meaning is known: an operator of the ONNX standard, not a custom one or a function."""
        return self._schemas.knows(node.op, node.domain)

    def has_op(self, op: str) -> bool:
        """Whether the model's opset has a standard operator of this name."""
        return self._schemas.of(op) is not None

    def schema(self, node: gs.Node) -> onnx.defs.OpSchema | None:
        return self._schemas.of(node.op)

    def array(self, tensor: gs.Tensor | None) -> np.ndarray | None:
        """Values of an initializer that numpy can compute with; None for anything else."""
        return values_of(tensor)

    def scalar(self, tensor: gs.Tensor | None) -> float | None:
        """The value of an initializer that has one element, or the same in all of a few; None for anything else."""
        if not isinstance(tensor, gs.Constant) or plain_dtype(tensor) is None or math.prod(tensor.shape) > 65536:
            return None
        flat = peek(tensor).reshape(-1)
        # The last one alone tells most of those that hold several numbers.
        if not flat.size or flat[0] != flat[-1] or not (flat == flat[0]).all():
            return None
        return flat[0].item()


def _read_elsewhere(model: Model, graph: gs.Graph) -> frozenset[str]:
    """Names that graphs other than ``graph`` read. Two branches may use one name for two tensors: no harm done."""
    if graph is model.bare:
        return model.captured()
    names: set[str] = set()
    for other in model.bare_graphs():
        if other is not graph:
            names.update(t.name for n in other.nodes for t in n.inputs)
            names.update(t.name for t in other.outputs)
    return frozenset(names)
