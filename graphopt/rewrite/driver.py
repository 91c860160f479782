"""A pass made of rules: each looks at one node, and the worklist brings it the nodes that changed."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.ir.view import all_graphs, subgraphs
from graphopt.pipeline.base import Pass, PassResult, Skipped
from graphopt.pipeline.context import Context
from graphopt.pipeline.exactness import RANDOM_OPS
from graphopt.rewrite.sweep import Sweep
from graphopt.rewrite.workbench import Step, Workbench


@dataclass(frozen=True)
class Rule:
    """One rewrite: what it is counted as, the operators it starts from (none: every node), and what it does.

    ``apply(bench, node)`` changes the graph through the bench, or leaves it alone. Its answer is None, or, when a node
    was nearly what the rule looks for, the reason in words why it was left alone. ``reach``: how many operators above
    the node it looks at. ``forward``: whether it looks at nothing but the node and what is above it, and asks of the
    bench no more than ``Sweep`` has, so that a first walk may apply it.
    """

    name: str
    ops: tuple[str, ...]
    apply: Step
    reach: int = 1
    forward: bool = False


class RewritePass(Pass):
    """A pass whose ``rules`` run to a fixpoint over the main graph and every subgraph; dead nodes go with them."""

    counts_changes = True
    # Whether what its rules and ``settle`` decide depends on no more than their state and what is within their reach of
    # the node at hand. Run again, it then looks only where something has changed, with the rules that it had.
    resumes: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "run" in vars(cls):
            cls.counts_changes = False

    @abstractmethod
    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        """The rules of one run. They may share state, which then lasts for that run."""

    def settle(self, bench: Workbench) -> None:
        """Called when no rule has work left; what it changes wakes the rules again."""

    def run(self, model: Model, ctx: Context) -> PassResult:
        counts: Counter[str] = Counter()
        changed, skipped = False, list[Skipped]()
        again = True
        while again:
            again, skipped = False, []
            # Subgraphs first: what they no longer read can then go.
            graphs = [model.bare] if Workbench.kept(model) is not None else list(model.bare_graphs())
            for graph in reversed(graphs):
                bench = self._run_on(model, graph, ctx)
                counts.update(bench.counts)
                skipped = [*bench.skipped(), *skipped]
                changed |= bench.changed
                again |= bench.changed and len(graphs) > 1
        return PassResult(changed, {key: n for key, n in sorted(counts.items()) if n}, skipped)

    def _run_on(self, model: Model, graph: gs.Graph, ctx: Context) -> Workbench:
        if not self.resumes:
            graph = model.graph if graph is model.bare else graph  # rules may ask tensors who reads and writes them
        kept = Workbench.kept(model)
        memory = kept.recall(self, ctx) if self.resumes and kept is not None and kept.graph is graph else None
        table = _Table(self.rules(model, ctx)) if memory is None else memory.table
        sweep = Sweep.over(model, table.forward) if kept is None and graph is model.bare else None
        bench = Workbench.of(model, graph)
        bench.begin(table.reach, table.wanted)
        if sweep is not None:
            bench.take_over_from(sweep.counts, sweep.stale, sweep.told)
        if memory is None:
            bench.push_all()
        else:
            bench.resume(memory)
        try:
            while True:
                bench.drain(table.by_op, table.always)
                bench.rule = self
                self.settle(bench)
                if bench.idle:
                    break
        finally:
            bench.finish()
        if self.resumes:
            bench.remember(self, ctx, table)
        return bench


class _Table:
    """The rules of one run, by the operators that they start at."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.reach = max(r.reach for r in rules)
        self.by_op: dict[str, list[tuple[str, Step]]] = {}
        self.forward: dict[str, list[tuple[str, Step]]] = {}
        self.always: list[tuple[str, Step]] = [("dead_nodes_removed", remove_dead)]
        for rule in rules:
            for op in rule.ops:
                self.by_op.setdefault(op, []).append((rule.name, rule.apply))
                if rule.forward:
                    self.forward.setdefault(op, []).append((rule.name, rule.apply))
            if not rule.ops:
                self.always.append((rule.name, rule.apply))
        self.wanted = self.by_op.keys() if len(self.always) == 1 else None


def remove_dead(bench: Workbench, node: gs.Node) -> str | None:
    """Remove a node none of whose outputs is read, captured by a subgraph, or an output of the graph.

    Random ones stay: each draws from one stream of numbers, and without it the others would draw differently.
    """
    if bench.is_read(node):
        return None
    for tensor in node.outputs:
        if tensor.name and (bench.is_output(tensor) or bench.is_captured(tensor)):
            return None
    inside = [n for top in subgraphs(node) for sub in all_graphs(top) for n in sub.nodes] if node.attrs else []
    if not _may_go(bench, node) or (inside and not all(_may_go(bench, n) for n in inside)):
        return "nothing reads its outputs, but it is a custom or random operator"
    bench.remove(node)
    return None


def _may_go(bench: Workbench, node: gs.Node) -> bool:
    return bench.is_standard(node) and node.op not in RANDOM_OPS


__all__ = ["RewritePass", "Rule", "remove_dead"]
