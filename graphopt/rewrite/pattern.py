"""Trees of operators to look for, matched from the last operator upward.

A pattern says which operators, read by whom, with which constants. Matching it makes the checks that every fusion
needs: the operators inside a match must have no reader outside of it, be no output of the graph, and be read by no
subgraph or custom operator. A graph that has all the operators and fails on such a check, or on the value of a
constant, is a near match, and the reason comes back in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx_graphsurgeon as gs

from graphopt.rewrite.driver import Rule
from graphopt.rewrite.index import plain_dtype
from graphopt.rewrite.workbench import Workbench

_COMMUTATIVE = frozenset(("Add", "Mul"))
# Exporters write sqrt(2) or 1/6 with as many digits as their own precision gave.
_CLOSE = 1e-5


@dataclass(frozen=True)
class Any:
    """Any tensor; the same name twice means the same tensor."""

    name: str


@dataclass(frozen=True)
class Const:
    """An initializer. With ``value``, one that holds this number and does not broadcast the other operand."""

    name: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Op:
    """The first output of a standard operator, one of ``ops`` (several are written with ``|``).

    ``inputs`` are its inputs from the first on; it may have more. Add and Mul match in either order. ``name`` is under
    which the node is found in the match.
    """

    ops: frozenset[str]
    inputs: tuple[Pattern, ...] = ()
    name: str = ""
    attrs: Mapping[str, object] = field(default_factory=dict)

    def __init__(self, ops: str, *inputs: Pattern, name: str = "", **attrs: object) -> None:
        found = {"ops": frozenset(ops.split("|")), "inputs": inputs, "name": name, "attrs": attrs}
        for key, value in found.items():
            object.__setattr__(self, key, value)

    @property
    def depth(self) -> int:
        return 1 + max((p.depth for p in self.inputs if isinstance(p, Op)), default=0)


Pattern = Any | Const | Op


@dataclass(frozen=True)
class Match:
    """What a pattern's names stand for. ``inside``: the matched nodes but for the root."""

    tensors: Mapping[str, gs.Tensor]
    nodes: Mapping[str, gs.Node]
    inside: tuple[gs.Node, ...]
    problems: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> gs.Tensor:
        return self.tensors[name]


Rewrite = Callable[[Workbench, gs.Node, Match], str | None]


def pattern_rule(name: str, pattern: Op | tuple[Op, ...], rewrite: Rewrite) -> Rule:
    """A rule that rewrites what a pattern (or one of several) matches. ``rewrite(bench, root, match)`` as in Rule."""
    patterns = pattern if isinstance(pattern, tuple) else (pattern,)

    def apply(bench: Workbench, node: gs.Node) -> str | None:
        near = None
        for one in patterns:
            found = match(bench, node, one)
            if isinstance(found, Match):
                return rewrite(bench, node, found)
            near = near or found
        return near and f"nearly {name.replace('_', ' ')}: {near}"

    roots = dict.fromkeys(op for p in patterns for op in sorted(p.ops))
    return Rule(name, tuple(roots), apply, max(p.depth for p in patterns) - 1)


def match(bench: Workbench, root: gs.Node, pattern: Op) -> Match | str | None:
    """Match a pattern whose last operator is ``root``: the match, or why a near match is none, or None."""
    reason: str | None = None
    for found in _node(bench, root, pattern, Match({}, {}, ())):
        problems = found.problems or _not_private(bench, root, found)
        if not problems:
            return found
        reason = reason or problems[0]
    return reason


def _not_private(bench: Workbench, root: gs.Node, found: Match) -> tuple[str, ...]:
    mine = {id(n) for n in (root, *found.inside)}
    for node in found.inside:
        for tensor in node.outputs:
            reason = bench.why_bound(tensor)
            if not reason and any(id(r) not in mine for r in bench.readers(tensor)):
                reason = f"nodes outside of it read {tensor.name!r}"
            if reason:
                return (reason,)
    return ()


def _node(bench: Workbench, node: gs.Node, pattern: Op, so_far: Match) -> Iterator[Match]:
    if node.op not in pattern.ops or not bench.is_standard(node):
        return
    if len(node.inputs) < len(pattern.inputs) or any(node.attrs.get(k) != v for k, v in pattern.attrs.items()):
        return
    nodes = {**so_far.nodes, pattern.name: node} if pattern.name else so_far.nodes
    here = Match(so_far.tensors, nodes, so_far.inside, so_far.problems)
    orders = [list(node.inputs)]
    if node.op in _COMMUTATIVE and len(pattern.inputs) == 2:
        orders.append(orders[0][::-1])
    for order in orders:
        problems = tuple(_broadcasts(order, pattern.inputs))
        yield from _inputs(bench, order, pattern.inputs, replace(here, problems=(*here.problems, *problems)))


def _broadcasts(tensors: list[gs.Tensor], patterns: tuple[Pattern, ...]) -> Iterator[str]:
    """A constant of one element with more axes than the other operand would add axes to the result."""
    for k, pattern in enumerate(patterns[:2]):
        if isinstance(pattern, Const) and pattern.value is not None and isinstance(tensors[k], gs.Constant):
            shape, axes = tensors[1 - k].shape, len(tensors[k].shape)
            if axes and (shape is None or len(shape) < axes):
                yield f"{tensors[k].name!r} has more axes than what it is combined with, or than is known"


def _inputs(
    bench: Workbench, tensors: list[gs.Tensor], patterns: tuple[Pattern, ...], so_far: Match
) -> Iterator[Match]:
    if not patterns:
        yield so_far
        return
    for found in _tensor(bench, tensors[0], patterns[0], so_far):
        yield from _inputs(bench, tensors[1:], patterns[1:], found)


def _tensor(bench: Workbench, tensor: gs.Tensor, pattern: Pattern, so_far: Match) -> Iterator[Match]:
    if isinstance(pattern, Op):
        producer = bench.producer(tensor)
        if producer is None or producer.outputs[0] is not tensor:
            return
        inside = so_far.inside if producer in so_far.inside else (*so_far.inside, producer)
        yield from _node(bench, producer, pattern, Match(so_far.tensors, so_far.nodes, inside, so_far.problems))
        return
    problems = so_far.problems
    if isinstance(pattern, Const):
        if not isinstance(tensor, gs.Constant) or plain_dtype(tensor) is None:
            return
        if pattern.value is not None:
            value = bench.scalar(tensor) if math.prod(tensor.shape) == 1 else None
            if value is None or not math.isclose(value, pattern.value, rel_tol=_CLOSE, abs_tol=0.0):
                shown = "several values" if value is None else f"{value:g}"
                problems = (*problems, f"{tensor.name!r} is {shown}, not {pattern.value:g}")
    name = pattern.name
    if name and name in so_far.tensors and so_far.tensors[name] is not tensor:
        return
    tensors = {**so_far.tensors, name: tensor} if name else so_far.tensors
    yield Match(tensors, so_far.nodes, so_far.inside, problems)
