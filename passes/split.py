"""Slices that together take all of a tensor, as one Split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.rewrite import RewritePass, Rule, Workbench
from graphopt.rewrite.operands import constant_slices
from graphopt.rewrite.shapes import known


@dataclass(frozen=True)
class JoinSlices(RewritePass):
    """Make one Split of Slices that cut a tensor along one axis into parts, leaving nothing out and without overlap."""

    name = "split"
    kind = Kind.EXACT
    resumes = True
    requires = ("fold",)  # bounds must be initializers

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (Rule("slices_joined", ("Slice",), join),)


def join(bench: Workbench, node: gs.Node) -> str | None:
    """Replace a Slice and the other Slices of the same tensor by a Split, if they are its parts."""
    cut = _cut(bench, node)
    source = node.inputs[0]
    if cut is None or not isinstance(source, gs.Variable):
        return None
    axis = cut[0]
    parts: list[tuple[int, int, gs.Node]] = []
    for reader in bench.readers(source):
        other = _cut(bench, reader) if reader.op == "Slice" and bench.is_standard(reader) else None
        if other is not None and other[0] == axis and reader.inputs[0] is source:
            parts.append((other[1], other[2], reader))
    parts.sort(key=lambda part: part[:2])
    size = int(source.shape[axis])
    ends = [0, *(end for _, end, _ in parts)]
    if len(parts) < 2 or [start for start, _, _ in parts] != ends[:-1] or ends[-1] != size:
        return None
    foreign = next((r for _, _, r in parts if bench.is_foreign(r.outputs[0])), None)
    if foreign is not None:
        return f"it is part of a Split, but {bench.why_bound(foreign.outputs[0])}"
    _replace(bench, [part[2] for part in parts], axis, [end - start for start, end, _ in parts])
    return None


def _cut(bench: Workbench, node: gs.Node) -> tuple[int, int, int] | None:
    """Axis, start and end of a Slice along one axis of known size by steps of one; None for any other."""
    bounds, shape = constant_slices(bench, node), node.inputs[0].shape
    if bounds is None or shape is None or len(bounds) != 1:
        return None
    ((axis, (start, end, step)),) = bounds.items()
    if axis >= len(shape) or not known(shape[axis]) or step != 1:
        return None
    size = int(shape[axis])
    start, end = (min(max(i + size if i < 0 else i, 0), size) for i in (start, end))
    return (axis, start, end) if start < end else None


def _replace(bench: Workbench, slices: list[gs.Node], axis: int, sizes: list[int]) -> None:
    source, outputs = slices[0].inputs[0], [s.outputs[0] for s in slices]
    first = min(slices, key=bench.position)
    for node in slices:
        if node is not first:
            bench.remove(node)
    if bench.model.opset < 13:
        bench.become(first, "Split", [source], axis=axis, split=sizes)
    else:
        lengths = bench.model.constant(f"{first.name}_split", np.array(sizes, np.int64))
        bench.become(first, "Split", [source, lengths], axis=axis)
    bench.set_outputs(first, outputs)
