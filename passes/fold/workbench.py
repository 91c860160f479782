"""A graph under local rewriting: who reads what, which nodes wait to be looked at, and what must not be touched.

onnx-graphsurgeon keeps producer and consumer lists up to date by searching them, which is quadratic for a tensor
with thousands of readers. The workbench keeps its own index, edits the node lists beneath, and restores
graphsurgeon's lists once, in ``finish``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt import Model, Skipped
from graphopt.ir import infer_shapes
from graphopt.ir.view import reads

Rule = Callable[["Workbench", gs.Node], None]

_STANDARD_DOMAINS = (None, "", "ai.onnx")
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


def peek(constant: gs.Constant) -> np.ndarray:
    """The values of an initializer, left as lazy as they were: reading must not change how it is written."""
    values = constant._values
    return values.load() if isinstance(values, LazyValues) else values


class Workbench:
    """The main graph of a model, prepared for rules that rewrite one node at a time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.graph = model.graph
        self.changed = False
        self.counts: Counter[str] = Counter()
        self._functions = {(f.domain or "", f.name) for f in model.graph.functions}
        self._schemas: dict[str, onnx.defs.OpSchema | None] = {}
        self._skipped: dict[int, Skipped] = {}
        self._order: list[gs.Node] = list(model.graph.nodes)
        self._instead: dict[int, list[gs.Node]] = {}
        self._alive: dict[int, gs.Node] = {id(n): n for n in self._order}
        self._readers: dict[str, dict[int, gs.Node]] = {}
        self._producer: dict[str, gs.Node] = {}
        self._pending: deque[gs.Node] = deque(self._order)
        self._queued = {id(n) for n in self._order}
        self._unsaid = False  # whether the graph changed since shapes were last inferred
        self._outputs = {t.name for t in model.graph.outputs}
        self._inputs = {t.name for t in model.graph.inputs}
        self._captured = model.captured()
        self._foreign: set[str] = set()
        for node in self._order:
            self._index(node)
            if not self.is_standard(node):
                self._foreign.update(reads(node))

    # --- questions ------------------------------------------------------------------------------------------

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
        return node.domain in _STANDARD_DOMAINS and self.schema(node) is not None

    def schema(self, node: gs.Node) -> onnx.defs.OpSchema | None:
        if node.op not in self._schemas:
            self._schemas[node.op] = None
            if not self._functions & {("", node.op), ("ai.onnx", node.op)}:
                try:
                    self._schemas[node.op] = onnx.defs.get_schema(node.op, self.model.opset, "")
                except onnx.defs.SchemaError:
                    pass
        return self._schemas[node.op]

    def array(self, tensor: gs.Tensor | None) -> np.ndarray | None:
        """Values of an initializer that numpy can compute with; None for anything else."""
        if isinstance(tensor, gs.Constant) and plain_dtype(tensor) is not None:
            return peek(tensor)
        return None

    # --- the worklist ---------------------------------------------------------------------------------------

    def push(self, nodes: Iterable[gs.Node | None]) -> None:
        """Look at these nodes (again)."""
        for node in nodes:
            if node is not None and id(node) in self._alive and id(node) not in self._queued:
                self._queued.add(id(node))
                self._pending.append(node)

    def drain(self, rules: dict[str, tuple[Rule, ...]], always: tuple[Rule, ...]) -> None:
        """Apply rules until no node waits: ``always`` to every node, ``rules`` by operator to standard ones."""
        while self._pending:
            node = self._pending.popleft()
            self._queued.discard(id(node))
            todo = always + (rules.get(node.op, ()) if self.is_standard(node) else ())
            for rule in todo:
                if id(node) not in self._alive:
                    break
                rule(self, node)

    @property
    def idle(self) -> bool:
        return not self._pending

    # --- changes --------------------------------------------------------------------------------------------

    def set_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Make input ``index`` of a node read ``tensor``."""
        old = node.inputs[index]
        list.__setitem__(node.inputs, index, tensor)
        if all(t is not old for t in node.inputs):
            self._unread(old, node)
        if tensor.name:
            self._readers.setdefault(tensor.name, {})[id(node)] = node
        self.push([node])
        self._mark()

    def put_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Like ``set_input``, for an optional input that the node may not have yet."""
        while len(node.inputs) <= index:
            list.append(node.inputs, gs.Variable.empty())
        self.set_input(node, index, tensor)

    def replace_reads(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Make every node of the main graph that reads ``old`` read ``new``."""
        for node in self.readers(old):
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    self.set_input(node, index, new)

    def set_output(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Make output ``index`` of a node write ``tensor``, whose former producer the caller removes."""
        self._producer.pop(node.outputs[index].name, None)
        list.__setitem__(node.outputs, index, tensor)
        self._producer[tensor.name] = node
        self.push([node, *self.readers(tensor)])
        self._mark()

    def remove(self, node: gs.Node) -> None:
        del self._alive[id(node)]
        self._skipped.pop(id(node), None)
        for tensor in node.inputs:
            self._unread(tensor, node)
        for tensor in node.outputs:
            if self._producer.get(tensor.name) is node:
                del self._producer[tensor.name]
        self._mark()

    def make_constant(self, node: gs.Node, values: dict[str, np.ndarray]) -> None:
        """Replace a node by the values of its outputs: initializers, or a Constant node for a graph output."""
        instead: list[gs.Node] = []
        for tensor in list(node.outputs):
            if tensor.name not in values:
                continue
            array = values[tensor.name]
            if self.is_output(tensor):
                name = node.name if not instead else self.model.fresh_name(node.name)
                attrs = {"value": gs.Constant(f"{tensor.name}_value", array)}
                instead.append(gs.Node("Constant", name, attrs))
                list.append(instead[-1].outputs, tensor)
            else:
                tensor.to_constant(array)
            self._push_around(tensor)
        self.remove(node)
        for new in instead:
            self._alive[id(new)] = new
            self._producer[new.outputs[0].name] = new
        self._instead[id(node)] = instead

    def to_initializer(self, node: gs.Node, values: np.ndarray | LazyValues, export_dtype: object) -> None:
        """Turn the output of a Constant node into an initializer of the same name."""
        tensor = node.outputs[0]
        self.remove(node)
        tensor.to_constant(values, export_dtype=export_dtype)
        self._push_around(tensor)

    def new_values(self, constant: gs.Constant, array: np.ndarray, stem: str) -> gs.Constant:
        """An initializer with these values, for one of the readers of ``constant``.

        It is ``constant`` itself if nothing else reads that, so that weights keep their names.
        """
        if len(self.readers(constant)) > 1 or self.why_bound(constant):
            return self.model.constant(stem, array)
        constant._export_dtype = None
        constant.data_location = None
        constant.values = array
        self._mark()
        return constant

    def skip(self, node: gs.Node, reason: str) -> None:
        """Record that a node was considered and left alone; a later reason replaces an earlier one."""
        self._skipped[id(node)] = Skipped(node.name, node.op, reason)

    def unskip(self, node: gs.Node) -> None:
        self._skipped.pop(id(node), None)

    # --- finishing ------------------------------------------------------------------------------------------

    def skipped(self) -> list[Skipped]:
        return [self._skipped[id(n)] for n in self.nodes() if id(n) in self._skipped]

    def infer_shapes(self) -> bool:
        """Infer shapes if anything changed since the last time, and look again at nodes whose input gained one."""
        if not self._unsaid:
            return False
        self._unsaid = False
        self.graph.nodes = list(self.nodes())
        before = {name: _known(t) for name, t in self.graph.tensors().items()}
        infer_shapes(self.model)
        for name, tensor in self.graph.tensors().items():
            if before.get(name) != _known(tensor):
                self.push([self._producer.get(name), *self.readers(tensor)])
        return True

    def finish(self) -> None:
        """Write the result back into the graph: node order, and graphsurgeon's producer and consumer lists."""
        if not self.changed:
            return
        self.graph.nodes = list(self.nodes())
        graphs = list(self.model.graphs())
        for graph in graphs:
            for tensor in graph.tensors().values():
                list.clear(tensor.inputs)
                list.clear(tensor.outputs)
        for graph in graphs:
            for node in graph.nodes:
                for tensor in node.inputs:
                    if tensor.name:
                        list.append(tensor.outputs, node)
                for tensor in node.outputs:
                    if tensor.name:
                        list.append(tensor.inputs, node)
        self.model.touch()

    def _index(self, node: gs.Node) -> None:
        for tensor in node.inputs:
            if tensor.name:
                self._readers.setdefault(tensor.name, {})[id(node)] = node
        for tensor in node.outputs:
            if tensor.name:
                self._producer[tensor.name] = node

    def _unread(self, tensor: gs.Tensor, node: gs.Node) -> None:
        left = self._readers.get(tensor.name, {})
        left.pop(id(node), None)
        # The producer may be dead now, and the last reader may now have the tensor to itself.
        self.push([self._producer.get(tensor.name), *(left.values() if len(left) == 1 else ())])

    def _push_around(self, tensor: gs.Tensor) -> None:
        """Look at the readers of a tensor, and at theirs: rules match a node together with the one before it."""
        for reader in self.readers(tensor):
            self.push([reader])
            for output in reader.outputs:
                self.push(self.readers(output))

    def _mark(self) -> None:
        self.changed = self._unsaid = True


def _known(tensor: gs.Tensor) -> tuple[object, ...]:
    return (str(tensor.dtype), None if tensor.shape is None else tuple(tensor.shape))
