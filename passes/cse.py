"""Common subexpressions: nodes that compute the same from the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.ir.values import identity
from graphopt.ir.view import subgraphs
from graphopt.pipeline.exactness import RANDOM_OPS
from graphopt.rewrite import RewritePass, Rule, Workbench


@dataclass(frozen=True)
class CommonSubexpressions(RewritePass):
    """Compute once what several nodes compute from the same inputs with the same attributes.

    Random and custom operators and those with subgraphs are left alone, and so are two nodes that both write outputs of
    the graph.
    """

    name = "cse"
    kind = Kind.EXACT
    resumes = True

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (Rule("repeated_nodes", (), _Seen().merge, reach=1),)


@dataclass
class _Seen:
    """Nodes met so far, by what they compute."""

    nodes: dict[tuple[object, ...], gs.Node] = field(default_factory=dict)

    def merge(self, bench: Workbench, node: gs.Node) -> str | None:
        if not bench.is_standard(node) or node.op in RANDOM_OPS or (node.attrs and subgraphs(node)):
            return None
        key = _key(node)
        twin = self.nodes.get(key)
        if twin is None or twin is node or not bench.is_alive(twin) or _key(twin) != key:
            self.nodes[key] = node
            return None
        first, second = sorted((twin, node), key=bench.position)
        reason = _merge(bench, first, second)
        if not reason:
            self.nodes[key] = first
        return reason


def _key(node: gs.Node) -> tuple[object, ...]:
    return (
        node.op,
        tuple([t.name for t in node.inputs]),
        tuple(sorted([(k, _value(v)) for k, v in node.attrs.items()])) if node.attrs else (),
        tuple([bool(t.name) for t in node.outputs]),
    )


def _value(attribute: object) -> str:
    if isinstance(attribute, gs.Constant):
        return str(identity(attribute._values))
    return repr(attribute)


def _merge(bench: Workbench, first: gs.Node, second: gs.Node) -> str | None:
    """Let the readers of ``second`` read ``first``, which stands before it; or say why not."""
    for ours, theirs in zip(first.outputs, second.outputs, strict=True):
        reason = bench.why_bound(theirs)
        if reason and not (bench.is_output(theirs) and not bench.why_bound(ours) and not bench.is_captured(theirs)):
            return f"it computes what {first.name!r} does, but {reason}"
    for k, (ours, theirs) in enumerate(zip(first.outputs, second.outputs, strict=True)):
        if not theirs.name:
            continue
        if bench.is_output(theirs):
            # The first one takes over the name of the graph output.
            bench.release(second, k)
            bench.replace_reads(ours, theirs)
            bench.set_output(first, k, theirs)
        else:
            bench.replace_reads(theirs, ours)
    bench.remove(second)
    return None
