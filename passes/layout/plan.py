"""What it means for one operator to work on tensors that are kept in another form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.layout.forms import Axes, Form, rank_of
from graphopt.rewrite import Workbench

Change = Callable[[Workbench, gs.Node], None]


class Anchor(NamedTuple):
    """The tensor of a node whose form is known: its input or output ``index``."""

    is_input: bool
    index: int
    form: Form


@dataclass
class Plan:
    """The forms of a node's inputs and outputs (None: as they are), and how its attributes and constants change.

    ``change`` runs after the inputs and outputs in other forms are in place.
    """

    ins: list[Form | None]
    outs: list[Form | None]
    change: Change | None = None

    def __post_init__(self) -> None:
        self.ins = [None if f is None or f.trivial else f for f in self.ins]
        self.outs = [None if f is None or f.trivial else f for f in self.outs]


def plain(node: gs.Node, first: Form | None, out: Form | None, change: Change | None = None) -> Plan:
    """A plan in which the first input has a form and all outputs have one."""
    return Plan([first, *[None] * (len(node.inputs) - 1)], [out] * len(node.outputs), change)


def why_unfit(bench: Workbench, node: gs.Node, plan: Plan) -> str | None:
    """What is not known of a node's tensors that its plan needs, in words."""
    for tensor, form in zip([*node.inputs, *node.outputs], [*plan.ins, *plan.outs], strict=True):
        if form is None or not tensor.name:
            continue
        if isinstance(tensor, gs.Constant):
            if bench.array(tensor) is None or bench.is_graph_input(tensor):
                return f"the values of {tensor.name!r} cannot be reordered"
            if len(tensor.shape) > form.rank:
                return f"the rank of {tensor.name!r} is not that of the others"
        elif rank_of(tensor) is None:
            return f"the rank of {tensor.name!r} is unknown"
        elif rank_of(tensor) != form.rank:
            return f"the rank of {tensor.name!r} is not that of the others"
    return None


def axis_of(node: gs.Node, default: int, rank: int) -> int:
    return int(node.attrs.get("axis", default)) % rank


def attribute(name: str, value: object) -> Change:
    def change(bench: Workbench, node: gs.Node) -> None:
        node.attrs[name] = value

    return change


def vector(bench: Workbench, node: gs.Node, index: int, name: str) -> tuple[np.ndarray | None, bool]:
    """A list of numbers given as attribute or as constant input ``index``, and whether it is known or left out."""
    if name in node.attrs:
        return np.asarray(node.attrs[name]), True
    if len(node.inputs) <= index or not node.inputs[index].name:
        return None, True
    array = bench.array(node.inputs[index])
    return (None, False) if array is None else (array.reshape(-1), True)


def put_vector(index: int, name: str, values: Sequence[object] | np.ndarray, like: np.ndarray | None = None) -> Change:
    """Write a list of numbers where ``vector`` reads it; ``like`` gives its type if it is an input."""
    array = np.asarray(values, dtype=np.int64 if like is None else like.dtype)

    def change(bench: Workbench, node: gs.Node) -> None:
        schema = bench.schema(node)
        if name in node.attrs or (schema is not None and name in schema.attributes):
            node.attrs[name] = array.tolist()
        else:
            bench.put_input(node, index, bench.model.constant(f"{node.name}_{name}", array))

    return change


def reordered(form: Axes, values: np.ndarray) -> np.ndarray:
    """One number an axis, for the kept tensor."""
    return values[list(form.perm)]
