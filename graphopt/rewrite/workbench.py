"""A graph under local rewriting: which nodes wait to be looked at, and the changes that rules make.

onnx-graphsurgeon keeps producer and consumer lists up to date by searching them, which is quadratic for a tensor
with thousands of readers. The workbench keeps its own index, edits the node lists beneath, and restores
graphsurgeon's lists once, in ``finish``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.ir import Model, infer_shapes
from graphopt.ir.node_shapes import VALUES_BELOW, infer_node
from graphopt.ir.objects import link, make_constant, new_variable
from graphopt.ir.values import nbytes
from graphopt.ir.view import all_graphs, reads, subgraphs, tensors
from graphopt.pipeline.base import Skipped
from graphopt.rewrite.index import several
from graphopt.rewrite.shapes import known
from graphopt.rewrite.worklist import Worklist

Step = Callable[["Workbench", gs.Node], str | None]


class Workbench(Worklist):
    """A graph of a model, prepared for rules that rewrite one node at a time.

    ``reach`` is how many operators above its root a rule looks at: when a node changes, so many levels of its
    readers are looked at again.
    """

    def __init__(self, model: Model, graph: gs.Graph | None = None, reach: int = 2) -> None:
        super().__init__(model, graph)
        self.begin(reach)

    @classmethod
    def of(cls, model: Model, graph: gs.Graph) -> Workbench:
        """A workbench for one pass. That of the pass before serves again where the model is as it left it."""
        kept = cls.kept(model)
        if kept is not None and kept.graph is graph:
            return kept
        bench = cls(model, graph)
        if graph is model.bare and not bench.has_subgraphs:
            model.workbench = bench
        return bench

    @staticmethod
    def kept(model: Model) -> Workbench | None:
        """The workbench of a model without subgraphs, if the model is as the last pass on it left it."""
        kept = model.workbench
        return kept if isinstance(kept, Workbench) and kept._revision == model.revision else None

    def begin(self, reach: int, wanted: Collection[str] | None = None) -> None:
        """Start the work of a pass. ``wanted``: the operators that its rules start at, if not all."""
        self.clear(reach, wanted)
        self.changed = False
        self.edits = 0
        self.counts: Counter[str] = Counter()
        self.rule: object = None  # what is at work: reasons belong to it, and it takes only its own back
        self._listed = self.model.linked  # whether tensors list who reads and writes them, which is kept in step then
        self._touched: dict[int, gs.Tensor] = {}  # whose readers or producer changed, in a graph where they are listed
        self._stale: dict[int, gs.Node] = {}  # whose output shapes may be known better now
        self._revision = self.model.revision

    def take_over_from(self, counts: Counter[str], stale: Iterable[gs.Node], told: Iterable[gs.Tensor]) -> None:
        """Go on from a ``Sweep``: what it has done, nodes that it changed, and variables that are constants now."""
        self.changed = True
        self.edits += 1
        self.counts.update(counts)
        self._stale.update((id(n), n) for n in stale if id(n) in self._alive)
        for tensor in told:
            for reader in self.readers(tensor):
                if _tells_shapes(tensor, reader):
                    self._stale[id(reader)] = reader

    # --- the work ---------------------------------------------------------------------------------------------

    def drain(self, rules: dict[str, list[tuple[str, Step]]], always: list[tuple[str, Step]]) -> None:
        """Apply rules until no node waits: ``always`` to every node, ``rules`` by operator to standard ones.

        The first of ``always`` is for nodes whose outputs nobody reads.
        """
        idle, every = always[:1], always[1:]
        todo_of: dict[tuple[str, str | None], list[tuple[str, Step]]] = {}
        alive, pending, queued, skipped = self._alive, self._pending, self._queued, self._skipped
        is_read = self.is_read
        while pending:
            node = pending.popleft()
            key = id(node)
            queued.discard(key)
            if key not in alive:
                continue
            kind = node.op, node.domain
            todo = todo_of.get(kind)
            if todo is None:
                todo = todo_of[kind] = [*every, *(rules.get(node.op, ()) if self.is_standard(node) else ())]
            if key in skipped or (key in self._idle and not is_read(node)):
                todo = [*idle, *todo]
            for name, step in todo:
                before, self.rule, op = self.edits, step, node.op
                reason = step(self, node)
                if self.edits != before:
                    self.counts[name] += 1
                if reason or skipped:
                    if key not in alive or node.op != op:
                        skipped.pop(key, None)
                    elif reason:
                        self.skip(node, reason)
                    elif key in skipped:
                        self.unskip(node)
                if key not in alive:
                    break

    # --- changes --------------------------------------------------------------------------------------------

    def set_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Make input ``index`` of a node read ``tensor``."""
        old = node.inputs[index]
        if old is not tensor:
            list.__setitem__(node.inputs, index, tensor)
            if all(t is not old for t in node.inputs):
                self._unread(old, node)
            self._read(tensor, node)
        self.push_below(node)
        self._mark(node if isinstance(tensor, gs.Constant) or _known(old) != _known(tensor) else None)

    def put_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Like ``set_input``, for an optional input that the node may not have yet."""
        while len(node.inputs) < index:
            list.append(node.inputs, new_variable(""))
        if index < len(node.inputs):
            self.set_input(node, index, tensor)
            return
        list.append(node.inputs, tensor)
        self._read(tensor, node)
        self.push_below(node)
        self._mark(node)

    def replace_reads(self, old: gs.Tensor, new: gs.Tensor) -> None:
        """Make every node of the graph that reads ``old`` read ``new``."""
        name = old.name
        readers = self._readers
        found = readers.pop(name, None)
        if not found:
            return
        tells = isinstance(new, gs.Constant) or _known(old) != _known(new)
        self._touched.update({id(old): old, id(new): new})
        moved, there = several(found), readers.get(new.name)
        if not there:
            readers[new.name] = found
        else:
            together = several(there)
            together.update(moved)
            readers[new.name] = together
        producer = self._producer.get(name)
        if producer is not None:  # it may be dead now
            self._look(producer)
            self._idle[id(producer)] = producer
        for node in moved.values():
            for index, tensor in enumerate(node.inputs):
                if tensor.name == name:
                    list.__setitem__(node.inputs, index, new)
            self.push_below(node)
            self._mark(node if tells else None)

    def set_output(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        """Make output ``index`` of a node write ``tensor``, whose former producer the caller removes."""
        old = node.outputs[index]
        self._producer.pop(old.name, None)
        list.__setitem__(node.outputs, index, tensor)
        self._producer[tensor.name] = node
        self._touched.update({id(old): old, id(tensor): tensor})
        self._idle[id(node)] = node
        self.push_below(node)
        self._mark(node)

    def set_outputs(self, node: gs.Node, tensors: Sequence[gs.Tensor]) -> None:
        """Make a node write these tensors, its own among them, whose former producers are removed."""
        list.clear(node.outputs)
        list.extend(node.outputs, tensors)
        self._idle[id(node)] = node
        for tensor in tensors:
            self._producer[tensor.name] = node
            self._touched[id(tensor)] = tensor
        self.push_below(node)
        self._mark(node)

    def become(self, node: gs.Node, op: str, inputs: Sequence[gs.Tensor], **attrs: object) -> None:
        """Turn a node into another operator with the same outputs, at the same place and of the same name."""
        old = list(node.inputs)
        list.clear(node.inputs)
        list.extend(node.inputs, inputs)
        self._by_op.get(node.op, {}).pop(id(node), None)
        self._by_op.setdefault(op, {})[id(node)] = node
        node.op, node.attrs, node.domain = op, dict(attrs), None
        kept = {t.name for t in inputs}
        for tensor in old:
            if tensor.name not in kept:
                self._unread(tensor, node)
        for tensor in inputs:
            self._read(tensor, node)
        self.push_below(node)
        self._mark(node)

    def emit(
        self, op: str, inputs: Sequence[gs.Tensor], before: gs.Node, stem: str = "", **attrs: object
    ) -> gs.Variable:
        """Insert a node before another one and return its output, of fresh name, with inferred type and shape."""
        name = self.model.fresh_name(stem or f"{before.name}_{op.lower()}")
        output = new_variable(self.model.fresh_name(f"{name}_out"))
        node = gs.Node(op, name, dict(attrs))
        list.extend(node.inputs, inputs)
        list.append(node.outputs, output)
        self._insert(node, before)
        infer_node(self.model, node)
        return output

    def drop_output(self, node: gs.Node) -> None:
        """Drop the last output of a node, which nobody reads."""
        tensor = list.pop(node.outputs)
        self._producer.pop(tensor.name, None)
        self._idle[id(node)] = node
        self._touched[id(tensor)] = tensor
        self._look(node)
        self._mark(node)

    def splice(self, node: gs.Node, body: gs.Graph) -> None:
        """Put the nodes of a subgraph of ``node``, which takes no inputs, in its place; its outputs become the node's.

        What the subgraph defines gets fresh names: another branch may use the same ones.
        """
        self._share_outer(body)
        inner = {id(t): t for n in body.nodes for t in n.outputs if t.name}
        inner |= {id(t): t for n in body.nodes for t in n.inputs if t.name in self.model.header.inner_initializers}
        for tensor in inner.values():
            tensor.name = self.model.fresh_name(tensor.name)
        produced = {id(t): (n, k) for n in body.nodes for k, t in enumerate(n.outputs) if t.name}
        renamed: dict[int, gs.Tensor] = {}
        for target, source in zip(node.outputs, body.outputs, strict=True):
            if not target.name:
                continue
            if id(source) in produced:
                producer, k = produced.pop(id(source))
                for reader in [n for g in all_graphs(body) for n in g.nodes]:
                    for index, tensor in enumerate(reader.inputs):
                        if tensor is source:
                            list.__setitem__(reader.inputs, index, target)
                list.__setitem__(producer.outputs, k, target)
                renamed[id(source)] = target
                if not self.is_output(target):
                    target.dtype = target.dtype or source.dtype
                    target.shape = source.shape if target.shape is None else target.shape
            else:  # an initializer, an outer tensor, or what is an output already
                alias = gs.Node("Identity", f"{node.name}_identity")
                list.append(alias.inputs, renamed.get(id(source), source))
                list.append(alias.outputs, target)
                body.nodes.append(alias)
        outputs = {t.name for t in node.outputs}
        self.remove(node)
        self._alive[id(node)] = node  # only to stand for its place
        for inserted in list(body.nodes):
            inserted.name = self.model.fresh_name(inserted.name)
            self._insert(inserted, node)
        del self._alive[id(node)]
        for name in outputs:
            self.push(several(self._readers.get(name)).values())

    def _share_outer(self, body: gs.Graph) -> None:
        """Let a subgraph read initializers of this graph by this graph's tensors, not by copies of its own."""
        own = {t.name for n in body.nodes for t in n.outputs} | self.model.header.inner_initializers
        ours = {n: t for n, t in tensors(self.graph).items() if isinstance(t, gs.Constant) and n not in own}
        for node in body.nodes:
            for index, tensor in enumerate(node.inputs):
                if tensor.name in ours:
                    list.__setitem__(node.inputs, index, ours[tensor.name])

    def release(self, node: gs.Node, index: int) -> None:
        """Give an output of a node that is about to be removed another name, so that its name is free."""
        old = node.outputs[index]
        new = gs.Variable(self.model.fresh_name(f"{node.name}_unused"), dtype=old.dtype, shape=old.shape)
        self.set_output(node, index, new)

    def insert_after(self, node: gs.Node, after: gs.Node) -> None:
        """Insert a node that is ready, with its inputs and outputs, right behind another one."""
        self._insert(node, after, 1)

    def _insert(self, node: gs.Node, at: gs.Node, offset: int = 0) -> None:
        slot = self._slot[id(at)]
        there = self._shared.setdefault(slot, [at])
        there.insert(next(k for k, n in enumerate(there) if n is at) + offset, node)
        self._slot[id(node)] = slot
        self._alive[id(node)] = node
        self._by_op.setdefault(node.op, {})[id(node)] = node
        self._idle[id(node)] = node
        self._moved = True
        if node.attrs and (inner := subgraphs(node)):
            self.model.flat = None
            self._captured.update(name for sub in inner for name in _names_read(sub))
        for tensor in node.inputs:
            self._read(tensor, node)
        for tensor in node.outputs:
            if tensor.name:
                self._producer[tensor.name] = node
                self._touched[id(tensor)] = tensor
        self._look(node)
        self._mark(node)

    def remove(self, node: gs.Node) -> None:
        key = id(node)
        del self._alive[key]
        self._journal.append(node)
        self._by_op[node.op].pop(key, None)
        self._idle.pop(key, None)
        self._skipped.pop(key, None)
        self._moved = self.changed = True
        self.edits += 1
        producer, readers = self._producer, self._readers
        for tensor in node.inputs:
            if tensor.name in readers:
                self._unread(tensor, node)
        for tensor in node.outputs:
            if producer.get(tensor.name) is node:
                del producer[tensor.name]
                if self._listed:
                    self._touched[id(tensor)] = tensor

    def make_constant(self, node: gs.Node, values: dict[str, np.ndarray]) -> None:
        """Replace a node by the values of its outputs: initializers, or a Constant node for a graph output."""
        name = node.name
        for tensor in list(node.outputs):
            if tensor.name not in values:
                continue
            array = values[tensor.name]
            if self.is_output(tensor):
                new = gs.Node("Constant", name, {"value": gs.Constant(f"{tensor.name}_value", array)})
                name = self.model.fresh_name(node.name)
                list.append(new.outputs, tensor)
                self._insert(new, node)
            else:
                self._own(tensor)
                make_constant(tensor, array)
            self._push_readers(tensor)
        self.remove(node)

    def to_initializer(self, node: gs.Node, values: np.ndarray | LazyValues, export_dtype: object) -> None:
        """Turn the output of a Constant node into an initializer of the same name."""
        tensor = node.outputs[0]
        self.remove(node)
        self._own(tensor)
        make_constant(tensor, values, export_dtype)
        self._push_readers(tensor)

    def new_values(self, constant: gs.Constant, array: np.ndarray, stem: str) -> gs.Constant:
        """An initializer with these values, for one of the readers of ``constant``.

        It is ``constant`` itself if nothing else reads that, so that weights keep their names.
        """
        readers = self.readers(constant)
        reads = sum(t.name == constant.name for node in readers for t in node.inputs)
        if reads > 1 or self.why_bound(constant):
            return self.model.constant(stem, array)
        constant._export_dtype = None
        constant.data_location = None
        constant.values = array
        self._mark()
        return constant

    def put_values(self, node: gs.Node, index: int, array: np.ndarray, stem: str) -> None:
        """Make input ``index`` of a node an initializer with these values: the one that it has, where it may change."""
        old = node.inputs[index] if index < len(node.inputs) else None
        given = isinstance(old, gs.Constant)
        self.put_input(node, index, self.new_values(old, array, stem) if given else self.model.constant(stem, array))

    def take_over(self, node: gs.Node, last: gs.Node) -> None:
        """Let a node write the output of ``last``, which reads its own and is removed."""
        target = last.outputs[0]
        self.remove(last)
        self.set_output(node, 0, target)

    def skip(self, node: gs.Node, reason: str) -> None:
        """Record that a node was considered and left alone; a later reason replaces an earlier one."""
        key = id(node)
        said = self._skipped.get(key)
        if said is None:
            self._skipped[key] = {id(self.rule): reason}
        else:
            said[id(self.rule)] = reason

    def unskip(self, node: gs.Node) -> None:
        """Forget what the rule at work said of a node."""
        if id(node) in self._skipped:
            self._skipped[id(node)].pop(id(self.rule), None)

    # --- finishing ------------------------------------------------------------------------------------------

    def skipped(self) -> list[Skipped]:
        """What was left alone, in the order of nodes: one reason a node, the first rule's."""
        said = [key for key, reasons in self._skipped.items() if reasons and key in self._alive]
        said.sort(key=lambda key: self.position(self._alive[key]))
        nodes = [self._alive[key] for key in said]
        return [Skipped(n.name, n.op, next(iter(self._skipped[id(n)].values()))) for n in nodes]

    def infer_shapes(self) -> None:
        """Infer shapes below what changed, as far as they were unknown, and look again where that told something."""
        if self.has_subgraphs or self.graph is not self.model.bare:
            self._infer_all()
            return
        heap = [(self.position(n), id(n)) for n in self._stale.values() if id(n) in self._alive]
        heapify(heap)
        self._stale = {}
        last = None
        while heap:
            place, key = heappop(heap)
            node = self._alive.get(key)
            if node is None or place == last or all(_complete(t) for t in node.outputs):
                continue
            last = place
            before = [_known(t) for t in node.outputs]
            infer_node(self.model, node)
            for tensor, was in zip(node.outputs, before, strict=True):
                if _known(tensor) != was:
                    self._journal.extend([node, *self.readers(tensor)])
                    self.push([node, *self.readers(tensor)])
                    for reader in self.readers(tensor):
                        heappush(heap, (self.position(reader), id(reader)))

    def _infer_all(self) -> None:
        if not self._stale:
            return
        self._stale = {}
        self.graph.nodes = list(self.nodes())
        before = {name: _known(t) for name, t in tensors(self.graph).items()}
        infer_shapes(self.model)
        for name, tensor in tensors(self.graph).items():
            if before.get(name) != _known(tensor):
                producer = self._producer.get(name)
                self.push(self.readers(tensor) if producer is None else [producer, *self.readers(tensor)])

    def finish(self) -> None:
        """Write the result back into the graph: node order, and graphsurgeon's producer and consumer lists."""
        if not self.changed:
            return
        if self._moved:
            self.graph.nodes = list(self.nodes())
            self._moved, self._base = False, self.graph.nodes
            if self._shared:
                self._shared = {}
                self._slot = {id(n): k for k, n in enumerate(self._base)}
        if self.has_subgraphs or self.graph is not self.model.bare:
            self._link_all()
        elif self.model.linked and not self._listed:  # somebody has asked meanwhile
            link(self.graph)
        elif self.model.linked:
            producers, readers, clear = self._producer, self._readers, list.clear
            for tensor in self._touched.values():
                name, writers, reading = tensor.name, tensor.inputs, tensor.outputs
                clear(writers)
                clear(reading)
                producer = producers.get(name)
                if producer is not None:
                    list.append(writers, producer)
                for reader in several(readers.get(name)).values():
                    for read in reader.inputs:
                        if read is tensor:
                            list.append(reading, reader)
        flat = self.model.flat == self.model.revision
        self.model.touch()
        self._revision = self.model.revision
        if flat:
            self.model.flat = self._revision

    def _link_all(self) -> None:
        graphs = list(self.model.bare_graphs())
        for graph in graphs:
            for tensor in tensors(graph).values():
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

    def _own(self, tensor: gs.Tensor) -> None:
        """Remember in which scope an initializer is written."""
        if self.graph is not self.model.bare:
            self.model.header.inner_initializers.add(tensor.name)

    def _read(self, tensor: gs.Tensor, node: gs.Node) -> None:
        name = tensor.name
        if name:
            there = self._readers.get(name)
            if there is None:
                self._readers[name] = node
            elif type(there) is dict:
                there[id(node)] = node
            elif there is not node:
                self._readers[name] = {id(there): there, id(node): node}
            if self._listed:
                self._touched[id(tensor)] = tensor

    def _unread(self, tensor: gs.Tensor, node: gs.Node) -> None:
        name = tensor.name
        if self._listed:
            self._touched[id(tensor)] = tensor
        left = self._readers.get(name)
        if type(left) is dict:
            left.pop(id(node), None)
        elif left is node:
            del self._readers[name]
            left = None
        # The producer may be dead now, and the last reader may now have the tensor to itself.
        producer = self._producer.get(name)
        if producer is not None:
            self._look(producer)
            if not left:
                self._idle[id(producer)] = producer
        if left and len(rest := several(left)) == 1:
            self.push_below(*rest.values())

    def _push_readers(self, tensor: gs.Tensor) -> None:
        """Look again at what reads a tensor, of which more is known now."""
        for reader in self.readers(tensor):
            self.push_below(reader)
            if _tells_shapes(tensor, reader):
                self._stale[id(reader)] = reader

    def _mark(self, node: gs.Node | None = None) -> None:
        """Note a change, and the node whose outputs it may concern."""
        self.changed = True
        self.edits += 1
        if node is not None:
            self._stale[id(node)] = node


def _names_read(graph: gs.Graph) -> set[str]:
    return {name for node in graph.nodes for name in reads(node)} | {t.name for t in graph.outputs}


def _tells_shapes(tensor: gs.Tensor, reader: gs.Node) -> bool:
    """Whether a reader's inference may use the values of a tensor: those of small integer constants, as a rule."""
    if not isinstance(tensor, gs.Constant):
        return True
    kind = np.dtype(tensor.dtype).kind if tensor.dtype is not None and not isinstance(tensor.dtype, int) else "V"
    return (kind in "iub" or reader.op in ("Resize", "Upsample", "Range")) and nbytes(tensor) <= VALUES_BELOW


def _complete(tensor: gs.Tensor) -> bool:
    """Whether inference could add nothing to what is known of a tensor."""
    if not tensor.name or not isinstance(tensor, gs.Variable):
        return True
    shape = tensor.shape
    if tensor.dtype is None or shape is None:
        return False
    for dim in shape:  # noqa: SIM110 - asked for every node that has changed
        if not (known(dim) or (isinstance(dim, str) and dim)):
            return False
    return True


def _known(tensor: gs.Tensor) -> tuple[object, ...]:
    dtype, shape = tensor.dtype, tensor.shape
    kind = dtype if dtype is None or isinstance(dtype, int) else np.dtype(dtype).num + 1000
    return (kind, None if shape is None else tuple(shape))
