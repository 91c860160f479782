"""Fewer Transposes: what lies between them works on tensors in their other order instead.

Exporters of frameworks that put channels last wrap every convolution in two Transposes. ``region`` finds which
operators around a Transpose could work in either order of axes, ``cut`` which of them should, ``move`` rewrites those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.passes.cancel import join_transposes, transpose_to_reshape
from graphopt.passes.eliminate import remove_transpose
from graphopt.passes.layout.cut import parts
from graphopt.passes.layout.forms import Axes, Form
from graphopt.passes.layout.move import move
from graphopt.passes.layout.region import explore, transposition
from graphopt.rewrite import RewritePass, Rule, Workbench

__all__ = ["Layout"]

# By tensor and form: why what is around it stays, and the ids of the nodes on which that depends.
_Visited = dict[tuple[str, Form], tuple[str, set[int]]]


@dataclass(frozen=True)
class Layout(RewritePass):
    """Remove Transposes by moving the operators between them to the other order of axes: NHWC to NCHW, or any other.

    Elementwise operators, Concat, Split, Pad, Slice, reductions and others that speak of axes are rewritten for the
    new order; constants are transposed once, and weights after a flattening take in its order. A move is made only
    where it leaves fewer Transposes, or as many that move fewer elements. A Transpose that only moves axes of size one
    becomes a Reshape.
    """

    name = "layout"
    kind = Kind.EXACT
    resumes = True

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (
            Rule("transposes_joined", ("Transpose",), join_transposes),
            Rule("transposes_removed", ("Transpose",), remove_transpose),
        )

    def settle(self, bench: Workbench) -> None:
        transposes = [n for n in bench.nodes() if n.op == "Transpose" and bench.is_standard(n)]
        visited, edits = _Visited(), bench.edits
        if bench.resumed is not None and not edits:
            earlier: _Visited = bench.notes.get("visited", {})
            visited.update((key, said) for key, said in earlier.items() if said[1].isdisjoint(bench.resumed))
        said = [(node, _move_around(bench, node, visited)) for node in transposes]
        if bench.edits != edits:
            return
        bench.notes["visited"] = visited
        for node, reason in said:
            if not bench.is_alive(node):
                continue
            transpose_to_reshape(bench, node)
            if node.op == "Reshape":
                bench.counts["reshapes"] += 1
            else:
                bench.skip(node, reason)


def _move_around(bench: Workbench, node: gs.Node, visited: _Visited) -> str:
    """Move what is worth it above and below a Transpose; why it stays, in words, if it does."""
    if not bench.is_alive(node):
        return ""
    perm = transposition(bench, node)
    if perm is None:
        return f"the rank of {node.inputs[0].name!r} is unknown"
    if isinstance(node.inputs[0], gs.Constant):
        return f"it reads the constant {node.inputs[0].name!r}: the pass 'fold' computes it"
    above = _move(bench, node.inputs[0], perm, visited)
    if not bench.is_alive(node) or transposition(bench, node) != perm:
        return ""
    below = _move(bench, node.outputs[0], perm.inverse(), visited)
    return f"it cannot move up: {above}; nor down: {below}"


def _move(bench: Workbench, tensor: gs.Tensor, form: Axes, visited: _Visited) -> str:
    key: tuple[str, Form] = (tensor.name, form)
    if key in visited:
        return visited[key][0]
    region = explore(bench, tensor, form)
    reason = region.why()
    done: set[int] = set()
    for part in parts(bench, region):
        if not part.moved:
            reason = part.reason or reason
        elif not (rewired := part.rewired(bench)) & done:
            done |= rewired
            bench.counts["transposes_saved"] += part.saved
            bench.counts["nodes_moved"] += len(part.moved)
            move(bench, part)
    visited[key] = reason, region.near
    visited.update({(name, kept.form): visited[key] for name, kept in region.tensors.items()})
    return reason
