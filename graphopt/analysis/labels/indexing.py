"""Rules of the operators that take, join and pad index ranges: Slice, Gather, Split, Concat, Pad."""

from __future__ import annotations

import numpy as np

from graphopt.analysis.labels.builder import Axes
from graphopt.analysis.labels.registry import Unsupported, rule
from graphopt.analysis.labels.scope import NodeScope


def slice_ranges(scope: NodeScope, rank: int) -> list[tuple[int, int, int, int]]:
    """(axis, start, end, step) as a Slice node gives them."""
    starts, ends = scope.ints(1, "starts") or [], scope.ints(2, "ends") or []
    given = scope.ints(3, "axes")
    steps = scope.ints(4) or [1] * len(starts)
    axes = list(range(len(starts))) if given is None else given
    return [(scope.axis(a, rank), s, e, t) for a, s, e, t in zip(axes, starts, ends, steps, strict=True)]


@rule("Slice")
def slice_(scope: NodeScope) -> None:
    axes = scope.axes(0)
    if all(v is None for v in axes):
        scope.out(axes)
        return
    for axis, start, end, step in slice_ranges(scope, len(axes)):
        labels = axes[axis]
        if labels is None:
            continue
        if scope.shape(0)[axis] is None:
            scope.lock(labels, "a Slice runs over an axis that holds the batch as well")
            axes[axis] = None
        else:
            axes[axis] = labels[start:end:step]
    scope.out(axes)


@rule("Gather")
def gather(scope: NodeScope) -> None:
    data, indices = scope.shape(0), scope.shape(1)
    axis = scope.axis(int(scope.attr("axis", 0)), len(data))
    if scope.is_const(0):  # an embedding: the axes that are not looked up are channels that this node makes
        axes: Axes = [None if k == axis or d in (None, 1) else scope.fresh(d) for k, d in enumerate(data)]
        for k, labels in enumerate(axes):
            scope.attach(0, k, labels)
    else:
        axes = scope.axes(0)
    labels = axes[axis]
    picked: Axes = [None] * len(indices)
    if labels is not None:
        values = scope.values(1)
        if data[axis] is None:
            scope.lock(labels, "a Gather picks from an axis that holds the batch as well")
        elif values is None:
            scope.lock(labels, "Gather picks channels that are computed at run time; fold constants first")
        elif values.ndim != 1:  # the others may go, and the indices are counted anew
            scope.lock(labels[values.astype(np.int64)], "Gather picks single channels")
        else:
            picked = [labels[values.astype(np.int64)]]
    if not scope.is_const(1):
        scope.lock_axes(scope.axes(1), "they are used as indices")
    scope.out([*axes[:axis], *picked, *axes[axis + 1 :]])


def equal_parts(size: int, count: int) -> list[int]:
    """The sizes of a Split that gives none: equal, but for the last."""
    each = -(-size // count)
    return [min(each, size - each * k) for k in range(count)]


@rule("Split")
def split(scope: NodeScope) -> None:
    axes = scope.axes(0)
    axis = scope.axis(int(scope.attr("axis", 0)), len(axes))
    labels = axes[axis]
    if labels is None:
        for k in range(len(scope.node.outputs)):
            scope.out(axes, k)
        return
    sizes = scope.ints(1, "split") or equal_parts(labels.size, len(scope.node.outputs))
    if scope.shape(0)[axis] is None:
        raise Unsupported("a Split of an axis that holds the batch as well is not followed")
    if sum(sizes) != labels.size:
        raise Unsupported(f"the sizes of its parts add up to {sum(sizes)}, not to {labels.size}")
    for k, part in enumerate(np.split(labels, np.cumsum(sizes)[:-1])):
        scope.out([*axes[:axis], part, *axes[axis + 1 :]], k)


@rule("Concat")
def concat(scope: NodeScope) -> None:
    """Label vectors are joined; a part without labels counts as channels that all stay."""
    slots = list(range(len(scope.node.inputs)))
    parts = [scope.axes(s) for s in slots]
    rank = len(parts[0])
    axis = scope.axis(int(scope.attr("axis", 0)), rank)
    result: Axes = [None] * rank
    for k in range(rank):
        if k == axis:
            continue
        labelled = [s for s in slots if not scope.is_const(s)]
        if labelled:
            first = parts[labelled[0]][k]
            for s in labelled[1:]:
                first = scope.tie(first, parts[s][k], "it is joined to a tensor whose channels cannot change")
            for s in slots:
                if scope.is_const(s):
                    scope.attach(s, k, first)
            result[k] = first
    if any(p[axis] is not None for p in parts):
        if scope.out_shape()[axis] is None:
            raise Unsupported("joining along an axis that holds the batch as well is not followed")
        joined = []
        for s in slots:
            labels = parts[s][axis]
            if labels is None:
                size = scope.shape(s)[axis]
                if size is None:
                    raise Unsupported("the size of one of its parts is not known")
                labels = scope.hidden(size)
                if scope.is_const(s):
                    scope.attach(s, axis, labels)
                else:
                    scope.lock(labels, "it is joined to channels that cannot change")
            joined.append(labels)
        result[axis] = np.concatenate(joined)
    scope.out(result)


@rule("Pad")
def pad(scope: NodeScope) -> None:
    """Padded channels are new channels of constant value; the others pass through."""
    axes = scope.axes(0)
    if all(v is None for v in axes):
        scope.out(axes)
        return
    rank = len(axes)
    pads = scope.ints(1, "pads") or []
    given = scope.ints(3)
    at = list(range(rank)) if given is None else [scope.axis(k, rank) for k in given]
    for k, axis in enumerate(at):
        before, after, labels = pads[k], pads[k + len(at)], axes[axis]
        if labels is None or not (before or after):
            continue
        if (
            scope.shape(0)[axis] is None
            or before < 0
            or after < 0
            or scope.attr("mode", "constant") not in ("constant", b"constant")
        ):
            scope.lock(labels, "Pad crops or mirrors the channels")
            axes[axis] = None
        else:
            axes[axis] = np.concatenate([scope.hidden(before), labels, scope.hidden(after)])
    scope.out(axes)


@rule("Shape", "Size")
def shape(scope: NodeScope) -> None:
    """Reading sizes is harmless as long as the channel count is not among those that are used."""
    axes = scope.axes(0)
    used = set(range(len(axes)))
    if scope.op == "Shape":
        used = _entries_read(scope, len(axes))
    for k in sorted(used):
        scope.lock(axes[k], "their number is read at run time; fold constants first")
    scope.out([None] if scope.op == "Shape" else [])


def _entries_read(scope: NodeScope, rank: int) -> set[int]:
    first, last, _ = slice(scope.attr("start", 0), scope.attr("end", None)).indices(rank)
    entries = np.arange(rank)[first:last]
    read: set[int] = set()
    tensor = scope.node.outputs[0]
    todo = [tensor]
    while todo:
        tensor = todo.pop()
        if not tensor.outputs:
            return set(entries.tolist())  # a graph output, or read by a subgraph
        for node in tensor.outputs:
            inner = NodeScope(scope.builder, scope.index, node)
            try:
                if node.op in ("Cast", "Identity"):
                    todo.append(node.outputs[0])
                elif node.op == "Expand" and tensor is scope.node.outputs[0] and first == 0 and last == rank:
                    continue  # its rule sees to it
                elif node.op == "Gather" and node.inputs[0] is tensor:
                    read.update(np.ravel(entries[np.asarray(inner.ints(1), np.int64)]).tolist())
                elif node.op == "Slice" and node.inputs[0] is tensor:
                    for _, start, end, step in slice_ranges(inner, 1):
                        read.update(entries[start:end:step].tolist())
                else:
                    return set(entries.tolist())
            except Unsupported:
                return set(entries.tolist())
    return read
