"""Operators that undo, repeat or continue the one before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.rewrite import RewritePass, Rule, Workbench
from graphopt.rewrite.bypass import bypass
from graphopt.rewrite.index import plain_dtype
from graphopt.rewrite.operands import RESHAPES, constant_axes, constant_slices, permutation
from graphopt.rewrite.shapes import equal_shapes, known, same

_INVOLUTIONS = ("Neg", "Not", "BitwiseNot")
_IDEMPOTENT = ("Relu", "Abs", "Ceil", "Floor", "Round", "Sign")


@dataclass(frozen=True)
class Cancel(RewritePass):
    """Remove operators that undo or repeat the one before, and join those that continue it.

    Transposes in a row become one or none, and so do Reshapes and their like, Casts, Squeezes, Unsqueezes and Slices;
    a Concat takes in those that only it reads.
    """

    name = "cancel"
    kind = Kind.EXACT
    resumes = True

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (
            Rule("transposes", ("Transpose",), join_transposes),
            Rule("reshapes", ("Transpose",), transpose_to_reshape),
            Rule("reshapes", RESHAPES, cancel_reshapes, reach=4),
            Rule("reshapes", ("Reshape", "Flatten"), skip_reshape),
            Rule("axes", ("Squeeze", "Unsqueeze"), join_axes),
            Rule("axes", ("Squeeze",), drop_carried_axes, reach=2),
            Rule("casts", ("Cast",), join_casts),
            Rule("slices", ("Slice",), join_slices),
            Rule("concats", ("Concat",), join_concats),
            Rule("involutions", _INVOLUTIONS, cancel_involution),
            Rule("repetitions", _IDEMPOTENT, drop_repetition),
        )


def join_transposes(bench: Workbench, node: gs.Node) -> str | None:
    """Make one Transpose of two in a row."""
    before = bench.standard_producer(node.inputs[0], "Transpose")
    if before is None:
        return None
    first, perm = permutation(before), permutation(node)
    if first is None or perm is None or len(first) != len(perm):
        return None
    joined = [first[p] for p in perm]
    if joined == sorted(joined):
        return bypass(bench, node, before.inputs[0])
    bench.become(node, "Transpose", [before.inputs[0]], perm=joined)
    return None


def transpose_to_reshape(bench: Workbench, node: gs.Node) -> str | None:
    """Make a Reshape of a Transpose that only moves axes of size 1: it leaves all values in order."""
    perm, shape = permutation(node), node.inputs[0].shape
    if perm is None or shape is None or len(perm) != len(shape):
        return None
    wide = [p for p in perm if not (known(shape[p]) and int(shape[p]) == 1)]
    if wide != sorted(wide) or perm == sorted(perm):
        return None
    target = []
    for place, axis in enumerate(perm):
        if known(shape[axis]):
            target.append(int(shape[axis]))
        else:  # 0 copies the dimension at the same place
            target.append(0 if place == axis else -1)
    if target.count(-1) > 1 or {0, -1} <= set(target):
        return None
    bench.become(
        node, "Reshape", [node.inputs[0], bench.model.constant(f"{node.name}_shape", np.array(target, np.int64))]
    )
    return None


def cancel_reshapes(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a row of Reshapes and their like that ends in the shape it began with."""
    source = node.inputs[0]
    while (before := bench.standard_producer(source, *RESHAPES)) is not None:
        source = before.inputs[0]
        if equal_shapes(source, node.outputs[0]):
            return bypass(bench, node, source)
    return None


def skip_reshape(bench: Workbench, node: gs.Node) -> str | None:
    """Let a Reshape or Flatten read what the one before it reads, if its target means the same there."""
    before = bench.standard_producer(node.inputs[0], *RESHAPES)
    if before is None:
        return None
    source, between = before.inputs[0], node.inputs[0]
    if node.op == "Flatten":
        copied = [0] if node.attrs.get("axis", 1) == 1 else None
    else:
        target = bench.array(node.inputs[1]) if len(node.inputs) > 1 else None
        if target is None:
            return None
        copied = [] if node.attrs.get("allowzero", 0) else [int(i) for i in np.flatnonzero(target == 0)]
    if copied is None or not all(_same_at(source, between, i) for i in copied):
        return None
    bench.set_input(node, 0, source)
    return None


def _same_at(a: gs.Tensor, b: gs.Tensor, axis: int) -> bool:
    return (
        a.shape is not None
        and b.shape is not None
        and axis < min(len(a.shape), len(b.shape))
        and same(a.shape[axis], b.shape[axis])
    )


def join_axes(bench: Workbench, node: gs.Node) -> str | None:
    """Make one Squeeze, or one Unsqueeze, of two in a row."""
    before = bench.standard_producer(node.inputs[0], node.op)
    if before is None:
        return None
    first, second = constant_axes(bench, before), constant_axes(bench, node)
    # The tensor with the most axes: what a Squeeze reads, what an Unsqueeze writes.
    widest = before.inputs[0] if node.op == "Squeeze" else node.outputs[0]
    if first is None or second is None or widest.shape is None:
        return None
    rank = len(widest.shape)
    outer, inner = (first, second) if node.op == "Squeeze" else (second, first)
    gone = [a % rank for a in outer]
    left = [a for a in range(rank) if a not in gone]  # the axes that the middle tensor has
    joined = sorted([*gone, *(left[a % len(left)] for a in inner)])
    if bench.model.opset < 13:
        bench.become(node, node.op, [before.inputs[0]], axes=joined)
    else:
        axes = bench.model.constant(f"{node.name}_axes", np.array(joined, np.int64))
        bench.become(node, node.op, [before.inputs[0], axes])
    return None


def drop_carried_axes(bench: Workbench, node: gs.Node) -> str | None:
    """Transpose without the axes that an Unsqueeze before it adds and a Squeeze after it takes away again."""
    transpose = bench.standard_producer(node.inputs[0], "Transpose")
    before = None if transpose is None else bench.standard_producer(transpose.inputs[0], "Unsqueeze")
    if transpose is None or before is None or bench.why_shared(node.inputs[0]):
        return None
    perm, added, removed = permutation(transpose), constant_axes(bench, before), constant_axes(bench, node)
    if perm is None or added is None or removed is None or bench.why_shared(transpose.inputs[0]):
        return None
    added, removed = ([a % len(perm) for a in axes] for axes in (added, removed))
    if {perm[a] for a in removed} != set(added):
        return None
    left = [p for place, p in enumerate(perm) if place not in removed]
    order = [p - sum(a < p for a in added) for p in left]
    bench.become(node, "Transpose", [before.inputs[0]], perm=order)
    return None


def join_casts(bench: Workbench, node: gs.Node) -> str | None:
    """Cast directly where the type in between holds every value of the first."""
    before = bench.standard_producer(node.inputs[0], "Cast")
    if before is None:
        return None
    first, middle = plain_dtype(before.inputs[0]), plain_dtype(node.inputs[0])
    if first is None or middle is None or not holds(middle, first):
        return None
    if plain_dtype(node.outputs[0]) == first:
        return bypass(bench, node, before.inputs[0])
    bench.set_input(node, 0, before.inputs[0])
    return None


def holds(wide: np.dtype, narrow: np.dtype) -> bool:
    """Whether a type represents every value of another exactly, so that casting there loses nothing."""
    if wide == narrow:
        return True
    if narrow.kind == "b" or wide.kind == "b":
        return narrow.kind == "b"
    if wide.kind == "f" and narrow.kind in "iu":
        return 8 * narrow.itemsize <= np.finfo(wide).nmant
    return bool(np.can_cast(narrow, wide, "safe"))


def join_slices(bench: Workbench, node: gs.Node) -> str | None:
    """Make one Slice of two in a row with constant bounds, on different axes or by steps of one."""
    before = bench.standard_producer(node.inputs[0], "Slice")
    if before is None or bench.model.opset < 10:
        return None
    first, second = constant_slices(bench, before), constant_slices(bench, node)
    if first is None or second is None:
        return None
    joined = dict(first)
    for axis, (start, end, step) in second.items():
        if axis in joined:
            start0, end0, step0 = joined[axis]
            if (step0, step) != (1, 1) or min(start0, end0, start, end) < 0:
                return None
            start, end = start0 + start, min(end0, start0 + end)
        joined[axis] = (start, end, step)
    axes = sorted(joined)
    columns = [[joined[a][k] for a in axes] for k in range(3)]
    rows = [columns[0], columns[1], axes, columns[2]]
    names = ("starts", "ends", "axes", "steps")
    inputs = [bench.model.constant(f"{node.name}_{n}", np.array(r, np.int64)) for n, r in zip(names, rows, strict=True)]
    bench.become(node, "Slice", [before.inputs[0], *inputs])
    return None


def join_concats(bench: Workbench, node: gs.Node) -> str | None:
    """Let a Concat read what the Concats of the same axis before it read, where nothing else reads those."""
    axis, inputs = _concat_axis(node), list[gs.Tensor]()
    for tensor in node.inputs:
        before = bench.standard_producer(tensor, "Concat")
        if axis is None or before is None or _concat_axis(before) != axis or bench.why_shared(tensor):
            inputs.append(tensor)
        else:
            inputs.extend(before.inputs)
    if len(inputs) != len(node.inputs):
        bench.become(node, "Concat", inputs, axis=node.attrs["axis"])
    return None


def _concat_axis(node: gs.Node) -> int | None:
    """The axis of a Concat, not negative; None if it is counted from the end of a rank that is unknown."""
    axis, shape = int(node.attrs["axis"]), node.outputs[0].shape
    return axis if axis >= 0 else None if shape is None else axis + len(shape)


def cancel_involution(bench: Workbench, node: gs.Node) -> str | None:
    """Remove an operator and the same one before it, which undo each other."""
    before = bench.standard_producer(node.inputs[0], node.op)
    return None if before is None else bypass(bench, node, before.inputs[0])


def drop_repetition(bench: Workbench, node: gs.Node) -> str | None:
    """Remove an operator that repeats the one before it to no effect."""
    before = bench.standard_producer(node.inputs[0], node.op)
    return None if before is None else bypass(bench, node)
