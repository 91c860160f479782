"""A graph under local rewriting: which nodes wait to be looked at, and the changes that rules make.

onnx-graphsurgeon keeps producer and consumer lists up to date by searching them, which is quadratic for a tensor
with thousands of readers. The workbench keeps its own index, edits the node lists beneath, and restores
graphsurgeon's lists once, in ``finish``.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt import Model, Skipped
from graphopt.ir import infer_shapes
from graphopt.passes.fold.index import Index

Rule = Callable[["Workbench", gs.Node], None]


class Workbench(Index):
    """The main graph of a model, prepared for rules that rewrite one node at a time."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.changed = False
        self.counts: Counter[str] = Counter()
        self._skipped: dict[int, Skipped] = {}
        self._pending: deque[gs.Node] = deque(self._order)
        self._queued = {id(n) for n in self._order}
        self._unsaid = False  # whether the graph changed since shapes were last inferred

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
        self.push(instead)

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
