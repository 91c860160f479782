"""If operators whose condition is known before the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.rewrite import RewritePass, Rule, Workbench
from graphopt.rewrite.operands import scalar_bounds


@dataclass(frozen=True)
class Branches(RewritePass):
    """Replace an If whose condition is constant by the branch that it takes."""

    name = "branches"
    kind = Kind.EXACT
    resumes = True

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (Rule("branches_taken", ("If",), take_branch), Rule("range_bounds", ("Range",), scalar_bounds))


def take_branch(bench: Workbench, node: gs.Node) -> str | None:
    """Put the nodes of the branch that a constant condition takes in the place of an If."""
    value = bench.array(node.inputs[0])
    if value is None or value.size != 1:
        return None
    taken = node.attrs["then_branch" if value.reshape(-1)[0] else "else_branch"]
    for output in node.outputs:
        if bench.is_foreign(output):
            return bench.why_bound(output)
    bench.splice(node, taken)
    return None
