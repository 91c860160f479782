"""Who writes and reads each tensor of a graph, and what about a tensor or an operator must not be touched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt import Model
from graphopt.ir.values import peek
from graphopt.ir.view import is_standard, reads

# Types that ONNX Runtime takes from and gives to numpy; others (bfloat16, 8-bit floats, 4-bit integers) are not
# computed with.
_PLAIN = frozenset(
    np.dtype(t)
    for t in (
        *("float16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)


def plain_dtype(tensor: gs.Tensor) -> np.dtype | None:
    """The numpy type of a tensor, or None if it is unknown or numpy has no such type."""
    if tensor.dtype is None or isinstance(tensor.dtype, int):
        return None
    dtype = np.dtype(tensor.dtype)
    return dtype if dtype in _PLAIN else None


class Index:
    """The main graph of a model, with answers that take no search."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph = model.graph
        self._functions = {(f.domain or "", f.name) for f in model.graph.functions}
        self._schemas: dict[str, onnx.defs.OpSchema | None] = {}
        self._order: list[gs.Node] = list(model.graph.nodes)
        self._instead: dict[int, list[gs.Node]] = {}
        self._alive: dict[int, gs.Node] = {id(n): n for n in self._order}
        self._readers: dict[str, dict[int, gs.Node]] = {}
        self._producer: dict[str, gs.Node] = {}
        self._outputs = {t.name for t in model.graph.outputs}
        self._inputs = {t.name for t in model.graph.inputs}
        self._captured = model.captured()
        self._foreign: set[str] = set()
        for node in self._order:
            for tensor in node.inputs:
                if tensor.name:
                    self._readers.setdefault(tensor.name, {})[id(node)] = node
            for tensor in node.outputs:
                if tensor.name:
                    self._producer[tensor.name] = node
        for graph in model.graphs():
            for node in graph.nodes:
                if not self.is_standard(node):
                    self._foreign.update(reads(node))

    def nodes(self) -> Iterator[gs.Node]:
        """The nodes that are left, in topological order."""
        for original in self._order:
            for node in self._instead.get(id(original), [original]):
                if id(node) in self._alive:
                    yield node

    def readers(self, tensor: gs.Tensor) -> list[gs.Node]:
        """Nodes of the main graph that read ``tensor``, each once."""
        return list(self._readers.get(tensor.name, {}).values())

    def producer(self, tensor: gs.Tensor) -> gs.Node | None:
        return self._producer.get(tensor.name)

    def is_output(self, tensor: gs.Tensor) -> bool:
        return tensor.name in self._outputs

    def is_captured(self, tensor: gs.Tensor) -> bool:
        """Whether a subgraph reads the tensor by its name."""
        return tensor.name in self._captured

    def is_foreign(self, tensor: gs.Tensor) -> bool:
        """Whether a custom operator reads the tensor: what such an operator demands of it is not known."""
        return tensor.name in self._foreign

    def why_bound(self, tensor: gs.Tensor) -> str:
        """Why a tensor's name must stay with its present producer, in words; empty if it need not."""
        if self.is_output(tensor):
            return f"its output {tensor.name!r} is an output of the graph"
        if self.is_captured(tensor):
            return f"a subgraph reads its output {tensor.name!r}"
        if self.is_foreign(tensor):
            return f"a custom operator reads its output {tensor.name!r}"
        return ""

    def is_graph_input(self, tensor: gs.Tensor) -> bool:
        return tensor.name in self._inputs

    def is_standard(self, node: gs.Node) -> bool:
        """Whether the node's meaning is known: an operator of the ONNX standard, not a custom one or a function."""
        return is_standard(node) and self.schema(node) is not None

    def schema(self, node: gs.Node) -> onnx.defs.OpSchema | None:
        if node.op not in self._schemas:
            self._schemas[node.op] = None
            if not self._functions & {("", node.op), ("ai.onnx", node.op)}:
                with contextlib.suppress(onnx.defs.SchemaError):
                    self._schemas[node.op] = onnx.defs.get_schema(node.op, self.model.opset, "")
        return self._schemas[node.op]

    def array(self, tensor: gs.Tensor | None) -> np.ndarray | None:
        """Values of an initializer that numpy can compute with; None for anything else."""
        if isinstance(tensor, gs.Constant) and plain_dtype(tensor) is not None:
            return peek(tensor)
        return None
