"""One walk over a graph in order, before anything is known of who reads what: for rules that look only upward.

Most of what folding removes from a large graph goes here, at a fraction of the cost of the worklist. That looks at what
is left, and says why it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.ir import Model
from graphopt.ir.objects import make_constant
from graphopt.ir.view import subgraphs
from graphopt.pipeline.exactness import RANDOM_OPS
from graphopt.rewrite.index import Schemas, values_of
from graphopt.rewrite.workbench import Step, Workbench


class Sweep:
    """To a rule it is the workbench, with the few methods that a rule may use that is declared as ``forward``.

    Nothing need be looked at again: what is above the node at hand has been, and what is below is still to come.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.counts: Counter[str] = Counter()
        self.stale: list[gs.Node] = []  # whose output shapes may be known better now
        self.told: list[gs.Tensor] = []  # that have become initializers
        self._edits = 0
        self._gone: set[int] = set()
        self._outputs = {t.name for t in model.bare.outputs}

    @classmethod
    def over(cls, model: Model, rules: Mapping[str, Sequence[tuple[str, Step]]]) -> Sweep | None:
        """Apply rules, by operator, to the nodes in order, then remove what nobody reads; None if that changed nothing.

        Graphs with subgraphs or custom operators are left alone, and so are those whose tensors list their readers.
        """
        if not rules or model.linked or not _is_plain(model):
            return None
        sweep = cls(model)
        sweep._apply(rules)
        sweep._remove_dead()
        return sweep if sweep.counts else None

    def _apply(self, rules: Mapping[str, Sequence[tuple[str, Step]]]) -> None:
        bench, outputs = cast(Workbench, self), self._outputs
        nodes = self.model.bare.nodes
        read = {t.name for n in nodes for t in n.inputs}
        for node in nodes:
            steps = rules.get(node.op)
            if steps is None or len(node.outputs) != 1:
                continue
            # What is dead is removed as such, and outputs of the graph keep a node that writes them.
            result = node.outputs[0].name
            if result in outputs or result not in read:
                continue
            for name, step in steps:
                before = self._edits
                step(bench, node)
                if self._edits != before:
                    self.counts[name] += 1
                if id(node) in self._gone:
                    break

    def _remove_dead(self) -> None:
        graph, gone, needed = self.model.bare, self._gone, set(self._outputs)
        kept: list[gs.Node] = []
        dead = 0
        for node in reversed(graph.nodes):
            if id(node) in gone:
                continue
            for tensor in node.outputs:
                if tensor.name in needed and tensor.name:
                    break
            else:
                if node.op not in RANDOM_OPS:
                    dead += 1
                    continue
            kept.append(node)
            needed.update([t.name for t in node.inputs])
        if len(kept) != len(graph.nodes):
            graph.nodes = kept[::-1]
        if dead:
            self.counts["dead_nodes_removed"] += dead

    # --- what rules ask -----------------------------------------------------------------------------------------

    array = staticmethod(values_of)

    def is_output(self, tensor: gs.Tensor) -> bool:
        return tensor.name in self._outputs

    def is_foreign(self, tensor: gs.Tensor) -> bool:
        return False

    def readers(self, tensor: gs.Tensor) -> list[gs.Node]:
        return []

    def push(self, nodes: Iterable[gs.Node]) -> None:
        pass

    # --- and change ---------------------------------------------------------------------------------------------

    def put_input(self, node: gs.Node, index: int, tensor: gs.Tensor) -> None:
        node.inputs[index] = tensor
        self._edits += 1
        self.stale.append(node)

    def make_constant(self, node: gs.Node, values: dict[str, np.ndarray]) -> None:
        (tensor,) = node.outputs
        self.to_initializer(node, values[tensor.name], None)

    def to_initializer(self, node: gs.Node, values: np.ndarray | LazyValues, export_dtype: object) -> None:
        (tensor,) = node.outputs
        make_constant(tensor, values, export_dtype)
        self._gone.add(id(node))
        self._edits += 1
        self.told.append(tensor)


def _is_plain(model: Model) -> bool:
    """Whether a model has standard operators only, and no subgraphs."""
    nodes, schemas = model.bare.nodes, Schemas(model)
    if model.flat != model.revision and any(node.attrs and subgraphs(node) for node in nodes):
        return False
    return all(schemas.knows(op, domain) for op, domain in {(n.op, n.domain) for n in nodes})
