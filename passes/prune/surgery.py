"""Remove channels from a model: slice constants, and rewrite what counts channels in attributes and shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels import Labels
from graphopt.errors import PassError
from graphopt.ir import Model, infer_shapes
from graphopt.ir.view import is_standard, reads

Rewrite = Callable[["Edit"], None]
_REWRITES: dict[tuple[str, str], Rewrite] = {}


def remove(model: Model, labels: Labels, keep: np.ndarray) -> None:
    """Remove from ``model`` the groups that ``keep`` [groups] does not hold; ``labels`` must be of this revision.

    A residual branch of which nothing is left goes as a whole, with its biases. Keeping everything changes nothing.
    Raises PassError if shapes do not come out as the labels say.
    """
    if keep.all():
        return
    with model.edit() as graph:
        expected = _expected_shapes(model, labels, keep)
        gone = _cut_branches(model, labels, keep)
        _slice_constants(model, labels, keep, gone)
        before: dict[int, list[gs.Node]] = {}
        behind: dict[int, list[gs.Node]] = {}
        for index, node in enumerate(graph.nodes):
            if index in gone:
                continue
            rewrite = _REWRITES.get(("" if is_standard(node) else node.domain, node.op))
            if rewrite is not None:
                edit = Edit(model, labels, keep, index, node)
                rewrite(edit)
                before[index], behind[index] = edit.before, edit.behind
        gone |= _gather_shuffles(model, labels, keep, gone)
        for k in gone:
            graph.nodes[k].inputs.clear()
            graph.nodes[k].outputs.clear()
        graph.nodes = [
            n
            for k, node in enumerate(graph.nodes)
            if k not in gone
            for n in (*before.get(k, ()), node, *behind.get(k, ()))
        ]
        infer_shapes(model, fresh=True)
        _check_shapes(model, expected)


def _expected_shapes(model: Model, labels: Labels, keep: np.ndarray) -> dict[str, list[int | str | None]]:
    shapes: dict[str, list[int | str | None]] = {}
    for name, tensor in model.graph.tensors().items():
        if not isinstance(tensor, gs.Variable) or tensor.shape is None:
            continue
        axes = labels.tensors.get(name, [None] * len(tensor.shape))
        shapes[name] = [
            d if v is None or not isinstance(d, int) or keep[v].all() else int(keep[v].sum())
            for d, v in zip(tensor.shape, axes, strict=True)
        ]
    return shapes


def _check_shapes(model: Model, expected: dict[str, list[int | str | None]]) -> None:
    for name, tensor in model.graph.tensors().items():
        want = expected.get(name)
        if want is None or not isinstance(tensor, gs.Variable):
            continue
        if tensor.shape is None:
            tensor.shape = want  # beyond the reach of inference, but the labels know
            continue
        for have, need in zip(tensor.shape, want, strict=True):
            if isinstance(have, int) and isinstance(need, int) and have != need:
                raise PassError(f"tensor {name!r} came out as {list(tensor.shape)} instead of {want}")


def _cut_branches(model: Model, labels: Labels, keep: np.ndarray) -> set[int]:
    """Put the other operand in the place of sums that lose one; the numbers of the nodes that nothing needs then."""
    nodes = list(model.graph.nodes)
    gone: set[int] = set()
    for branch in labels.cut(keep):
        gone.update(branch.nodes)
        for index, slot in branch.sums:
            gone.add(index)
            result, stays = nodes[index].outputs[0], nodes[index].inputs[slot]
            for reader in list(result.outputs):
                for k, tensor in enumerate(reader.inputs):
                    if tensor is result:
                        reader.inputs[k] = stays
    if not gone:
        return gone
    observed = {t.name for t in model.graph.outputs} | set(model.captured())
    makers = {t.name: index for index, node in enumerate(nodes) for t in node.outputs}
    number = {id(node): index for index, node in enumerate(nodes)}
    for index in reversed(range(len(nodes))):  # what only they needed
        outputs = [t for t in nodes[index].outputs if t.name]
        needed = any(t.name in observed or any(number.get(id(r)) not in gone for r in t.outputs) for t in outputs)
        if index not in gone and not needed:
            gone.add(index)
    for index, node in enumerate(nodes):
        if index not in gone and any(makers.get(t.name) in gone for t in node.inputs):
            raise PassError(f"both operands of the sum {node.name!r} would go")
    return gone


def _gather_shuffles(model: Model, labels: Labels, keep: np.ndarray, skip: set[int]) -> set[int]:
    """Write a Gather for a shuffle of an axis that loses entries: in between, it would have to stay rectangular.

    Returns the numbers of the nodes that are left over; ``skip``: those of nodes that go anyway.
    """
    nodes = list(model.graph.nodes)
    gone: set[int] = set()
    for shuffle in labels.shuffles:
        if not skip.isdisjoint(shuffle.chain):
            continue
        first, last = nodes[shuffle.chain[0]], nodes[shuffle.chain[-1]]
        axes = labels.tensors[last.outputs[0].name]
        groups = axes[shuffle.axis]
        if groups is None or keep[groups].all():
            continue
        before = np.empty(groups.size, dtype=bool)
        before[shuffle.order] = keep[groups]
        position = np.cumsum(before) - 1
        indices = position[shuffle.order[keep[groups]]]
        last.op, last.attrs = "Gather", {"axis": shuffle.axis}
        last.inputs = [first.inputs[0], model.constant(f"{last.name}_order", indices.astype(np.int64))]
        gone.update(shuffle.chain[:-1])
    return gone


def _slice_constants(model: Model, labels: Labels, keep: np.ndarray, gone: set[int]) -> None:
    """Each constant is sliced once per way in which it is used; uses that differ get their own copy."""
    graph = model.graph
    cuts: dict[tuple[int, int], tuple[tuple[int, bytes], ...]] = {}
    for index, slots in labels.by_node.items():
        if index in gone:
            continue
        for slot, groups in slots:
            kept = keep[groups]
            if not kept.all():
                at = (index, slot.slot)
                cuts[at] = tuple(sorted((*cuts.get(at, ()), (slot.axis, kept.tobytes()))))
    ways = _ways(model, cuts, gone)
    made: dict[tuple[str, tuple[tuple[int, bytes], ...]], gs.Constant] = {}
    for (index, slot), cut in cuts.items():
        old = graph.nodes[index].inputs[slot]
        key = (old.name, cut)
        if key not in made:
            values = np.asarray(old.values)
            for axis, kept in cut:
                values = np.compress(np.frombuffer(kept, dtype=bool), values, axis=axis)
            if len(ways[old.name]) == 1:
                made[key] = gs.Constant(old.name, np.ascontiguousarray(values))
            else:
                made[key] = model.constant(f"{old.name}_kept", values)
        graph.nodes[index].inputs[slot] = made[key]


def _ways(
    model: Model, cuts: dict[tuple[int, int], tuple[tuple[int, bytes], ...]], gone: set[int]
) -> dict[str, set[object]]:
    """By constant name, the different ways in which it is used by nodes that stay; whole (None) counts as one."""
    ways: dict[str, set[object]] = {}
    for index, node in enumerate(model.graph.nodes):
        if index in gone:
            continue
        direct = [t.name for t in node.inputs]
        for slot, name in enumerate(direct):
            ways.setdefault(name, set()).add(cuts.get((index, slot)))
        if node.attrs:
            for name in set(reads(node)) - set(direct):
                ways.setdefault(name, set()).add(None)
    for name in (*model.captured(), *(t.name for t in model.graph.outputs)):
        ways.setdefault(name, set()).add(None)
    return ways


def rewrites(*ops: str, domain: str = "") -> Callable[[Rewrite], Rewrite]:
    """Register what to rewrite in nodes of an operator around which channels were removed.

    The function gets an ``Edit``. Constants are sliced already, by the labels that the operator's rule attached; what
    is left are numbers that count channels. A later registration replaces an earlier one.
    """

    def register(function: Rewrite) -> Rewrite:
        for op in ops:
            _REWRITES[domain, op] = function
        return function

    return register


def rewritten(op: str) -> bool:
    """Whether nodes of an operator count channels outside of their weights."""
    return op in _REWRITES


class Edit:
    """One node to rewrite, with the kept entries of the tensors around it."""

    def __init__(self, model: Model, labels: Labels, keep: np.ndarray, index: int, node: gs.Node) -> None:
        self.model, self.labels, self.keep, self.index, self.node = model, labels, keep, index, node
        self.before: list[gs.Node] = []  # nodes to put before this one
        self.behind: list[gs.Node] = []

    def kept(self, tensor: gs.Tensor) -> list[np.ndarray | None]:
        """By axis, which entries stay (None: all)."""
        axes = self.labels.tensors.get(tensor.name, [])
        masks = [None if v is None else self.keep[v] for v in axes]
        return [None if m is None or m.all() else m for m in masks]

    def kept_in(self) -> list[np.ndarray | None]:
        return self.kept(self.node.inputs[0])

    def kept_out(self, k: int = 0) -> list[np.ndarray | None]:
        return self.kept(self.node.outputs[k])

    def ints(self, slot: int, attr: str | None = None) -> list[int] | None:
        """Constant integers of an input or attribute, as the rules read them."""
        if attr is not None and attr in self.node.attrs:
            return [int(v) for v in self.node.attrs[attr]]
        values = self.values(slot)
        return None if values is None else [int(v) for v in values.ravel()]

    def values(self, slot: int) -> np.ndarray | None:
        """A constant input; None if it is not given or computed at run time (where it names channels, they are
        locked)."""
        if slot >= len(self.node.inputs) or not self.node.inputs[slot].name:
            return None
        tensor = self.node.inputs[slot]
        if isinstance(tensor, gs.Constant):
            return np.asarray(tensor.values)
        source = tensor.inputs[0] if tensor.inputs else None
        if source is None or source.op != "Constant":
            return None
        value = next(iter(source.attrs.values()))
        return np.asarray(value.values if isinstance(value, gs.Constant) else value)

    def put(self, slot: int, attr: str | None, values: list[int], dtype: type = np.int64) -> None:
        """Write integers back where they came from, if they changed."""
        if attr is not None and attr in self.node.attrs:
            self.node.attrs[attr] = values
        elif values != self.ints(slot):
            old, before = self.node.inputs[slot], self.values(slot)
            kind = old.dtype if old.dtype is not None else dtype
            shape = [-1] if before is None or before.ndim == 1 else before.shape
            self.node.inputs[slot] = self.model.constant(f"{old.name}_kept", np.array(values, kind).reshape(shape))
