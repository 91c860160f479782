"""Residual branches that go as a whole: all that a family's channels feed is added to something that can do without."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.cost import Shape
from graphopt.analysis.labels.result import Branch, Labels
from graphopt.ir import Model
from graphopt.ir.view import is_standard


def with_branches(labels: Labels, model: Model, shapes: tuple[dict[str, Shape], ...]) -> Labels:
    """The same labels, whose families know the branch that goes with all of their channels.

    ``shapes``: of tensors, for some batch sizes.
    """
    carried = _carried(labels)
    walk = _Walk(model, shapes)
    families = tuple(replace(f, branch=walk.branch(carried.get(k))) for k, f in enumerate(labels.families))
    return replace(labels, families=families)


def _carried(labels: Labels) -> dict[int, set[str]]:
    """By family number, the tensors that are empty without it. Families that share an axis with others have none."""
    member = np.full(labels.count, -1, dtype=np.int64)
    for number, family in enumerate(labels.families):
        member[family.groups] = number
    found: dict[int, set[str]] = {}
    shared: set[int] = set()
    for name, axes in labels.tensors.items():
        for groups in axes:
            if groups is None:
                continue
            families = np.unique(member[groups]).tolist()
            if len(families) > 1:
                shared.update(families)
            else:
                found.setdefault(families[0], set()).add(name)
    return {number: names for number, names in found.items() if number >= 0 and number not in shared}


class _Walk:
    """Follows what is empty, and what is computed from nothing else, to the sums where it ends."""

    def __init__(self, model: Model, shapes: tuple[dict[str, Shape], ...]) -> None:
        self.shapes = shapes
        self.nodes = list(model.graph.nodes)
        self.number = {id(node): index for index, node in enumerate(self.nodes)}
        self.tensors = model.graph.tensors()
        self.observed = {t.name for t in model.outputs} | set(model.captured())

    def branch(self, empty: set[str] | None) -> Branch | None:
        """What goes with the tensors ``empty``; None if something else than a sum would notice."""
        if not empty or not self.observed.isdisjoint(empty):
            return None
        gone: set[str] = set(empty)
        nodes: set[int] = set()
        sums: list[tuple[int, int]] = []
        queue = [self.number[id(w)] for name in empty for w in self.tensors[name].inputs]
        queue += self._readers(empty)
        heapq.heapify(queue)  # in graph order, so that all that a node reads is known before it
        while queue:
            index = heapq.heappop(queue)
            if index in nodes or (sums and sums[-1][0] == index):
                continue
            node = self.nodes[index]
            outputs = [t.name for t in node.outputs if t.name]
            values = [t for t in node.inputs if t.name and not isinstance(t, gs.Constant)]
            if empty.issuperset(outputs) or all(t.name in gone for t in values):
                if not self.observed.isdisjoint(outputs):
                    return None
                nodes.add(index)
                gone.update(outputs)
                for reader in self._readers(outputs):
                    heapq.heappush(queue, reader)
                continue
            slot = self._staying(node, gone)
            if slot is None:
                return None
            sums.append((index, slot))
        return Branch(tuple(sorted(nodes)), tuple(sums)) if sums else None

    def _readers(self, names: set[str] | list[str]) -> list[int]:
        return [self.number[id(r)] for name in names for r in self.tensors[name].outputs]

    def _staying(self, node: gs.Node, gone: set[str]) -> int | None:
        """The input of a sum that stays, and alone has the shape of the whole."""
        if node.op != "Add" or not is_standard(node) or node.outputs[0].name in self.observed:
            return None
        slots = [k for k, t in enumerate(node.inputs) if t.name not in gone and not isinstance(t, gs.Constant)]
        if len(slots) != 1 or isinstance(node.inputs[1 - slots[0]], gs.Constant):
            return None
        names = [t.name for t in (*node.inputs, *node.outputs)]
        alike = all(shapes.get(names[0]) == shapes.get(n) is not None for shapes in self.shapes for n in names[1:])
        return slots[0] if alike else None
