"""Trees of operators to look for, matched from the last operator upward.

A pattern says which operators, read by whom, with which constants. Matching it makes the checks that every fusion
needs: the operators inside a match must have no reader outside of it, be no output of the graph, and be read by no
subgraph or custom operator. A graph that has all the operators and fails on such a check, or on the value of a
constant, is a near match, and the reason comes back in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.rewrite.driver import Rule
from graphopt.rewrite.index import plain_dtype
from graphopt.rewrite.workbench import Workbench

_COMMUTATIVE = frozenset(("Add", "Mul", "Max", "Min"))
# Exporters write sqrt(2) or 1/6 with as many digits as their own precision gave.
_CLOSE = 1e-5

Where = Callable[[Workbench, gs.Node], str | None]


@dataclass(frozen=True)
class Any:
    """Any tensor; the same name twice means the same tensor."""

    name: str


@dataclass(frozen=True)
class Const:
    """An initializer. With ``value``, one that holds this number; with ``scalar``, one that holds a single number.

    Either way it then does not broadcast the other operand.
    """

    name: str = ""
    value: float | None = None
    scalar: bool = False

    @property
    def single(self) -> bool:
        return self.scalar or self.value is not None


@dataclass(frozen=True)
class Op:
    """The first output of a standard operator, one of ``ops`` (several are written with ``|``).

    ``inputs`` are its inputs from the first on; it may have more. Add, Mul, Max and Min of two match in either order.
    ``name`` is under which the node is found in the match. ``where(bench, node)`` answers None, or why a node that is
    right in all else makes the match a near one only.
    """

    ops: frozenset[str]
    inputs: tuple[Pattern, ...] = ()
    name: str = ""
    where: Where | None = None
    attrs: Mapping[str, object] = field(default_factory=dict)

    def __init__(self, ops: str, *inputs: Pattern, name: str = "", where: Where | None = None, **attrs: object) -> None:
        found = {"ops": frozenset(ops.split("|")), "inputs": inputs, "name": name, "where": where, "attrs": attrs}
        for key, value in found.items():
            object.__setattr__(self, key, value)

    @cached_property
    def above(self) -> tuple[frozenset[str] | None, ...]:
        """For each input the operators of which one must write it; None where it may be anything."""
        return tuple(map(_writers, self.inputs))


@dataclass(frozen=True)
class Either:
    """What one of several patterns matches; the first that does counts."""

    options: tuple[Pattern, ...]

    def __init__(self, *options: Pattern) -> None:
        object.__setattr__(self, "options", options)


Pattern = Any | Const | Op | Either


def _writers(pattern: Pattern) -> frozenset[str] | None:
    if isinstance(pattern, Op):
        return pattern.ops
    kinds = [_writers(p) for p in pattern.options] if isinstance(pattern, Either) else [None]
    return None if None in kinds else frozenset().union(*filter(None, kinds))


def depth(pattern: Pattern) -> int:
    """How many operators stand above each other in a pattern, at most."""
    if isinstance(pattern, Op):
        return 1 + max(map(depth, pattern.inputs), default=0)
    return max(map(depth, pattern.options)) if isinstance(pattern, Either) else 0


def roots(pattern: Pattern) -> list[str]:
    """Operators that can be the last one of a pattern."""
    if isinstance(pattern, Either):
        return [*dict.fromkeys(op for p in pattern.options for op in roots(p))]
    return sorted(pattern.ops) if isinstance(pattern, Op) else []


def scaled(pattern: Pattern, factor: float) -> Either:
    """``pattern`` times a number, written as Mul by it or as Div by its reciprocal."""
    return Either(Op("Mul", pattern, Const(value=factor)), Op("Div", pattern, Const(value=1 / factor)))


def product(a: Pattern, b: Pattern, c: Pattern) -> Either:
    """The product of three, whichever two are multiplied first."""
    pairs = ((a, b, c), (a, c, b), (b, c, a))
    return Either(*(Op("Mul", Op("Mul", p, q), r) for p, q, r in pairs))


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


def pattern_rule(name: str, pattern: Op | Either | tuple[Op | Either, ...], rewrite: Rewrite, what: str = "") -> Rule:
    """A rule that rewrites what a pattern (or one of several) matches. ``rewrite(bench, root, match)`` as in Rule.

    ``what`` is what reasons call the whole: "nearly Gelu: ...".
    """
    choice = Either(*pattern) if isinstance(pattern, tuple) else pattern
    called = what or name.replace("_", " ")
    ends = {op: [p for p in _options(choice) if op in p.ops] for op in roots(choice)}

    def apply(bench: Workbench, node: gs.Node) -> str | None:
        near = [p for p in ends.get(node.op, ()) if _has_operators(bench, node, p)]
        if not near:
            return None
        found = match(bench, node, Either(*near))
        if isinstance(found, Match):
            return rewrite(bench, node, found)
        return found and f"nearly {called}: {found}"

    return Rule(name, tuple(roots(choice)), apply, max(depth(choice) - 1, 0))


def _options(pattern: Pattern) -> list[Op]:
    """The trees of operators that a pattern offers, in order."""
    if isinstance(pattern, Either):
        return [op for p in pattern.options for op in _options(p)]
    return [pattern] if isinstance(pattern, Op) else []


def _has_operators(bench: Workbench, root: gs.Node, pattern: Op) -> bool:
    """Whether the operators right above ``root`` may be those of a pattern: most nodes fail here, at little cost."""
    above = [None if (p := bench.producer(t)) is None else p.op for t in root.inputs]
    if len(above) < len(pattern.inputs):
        return False
    either_way = root.op in _COMMUTATIVE and len(above) == len(pattern.inputs) == 2
    for place, kinds in enumerate(pattern.above):
        if kinds is not None and above[place] not in kinds and not (either_way and above[1 - place] in kinds):
            return False
    return True


def match(bench: Workbench, root: gs.Node, pattern: Op | Either) -> Match | str | None:
    """Match a pattern whose last operator is ``root``: the match, or why the nearest match is none, or None."""
    nearest: tuple[str, ...] = ()
    for found in _root(bench, root, pattern):
        problems = found.problems or _not_private(bench, root, found)
        if not problems:
            return found
        if not nearest or len(problems) < len(nearest):
            nearest = problems
    return nearest[0] if nearest else None


def _root(bench: Workbench, root: gs.Node, pattern: Pattern) -> Iterator[Match]:
    if isinstance(pattern, Either):
        for option in pattern.options:
            yield from _root(bench, root, option)
    elif isinstance(pattern, Op):
        yield from _node(bench, root, pattern, Match({}, {}, ()))


def _not_private(bench: Workbench, root: gs.Node, found: Match) -> tuple[str, ...]:
    mine = {id(n) for n in (root, *found.inside)}
    for node in found.inside:
        for tensor in node.outputs:
            reason = bench.why_bound(tensor)
            if not reason and any(id(r) not in mine and not _dead(bench, r) for r in bench.readers(tensor)):
                reason = f"nodes outside of it read {tensor.name!r}"
            if reason:
                return (reason,)
    return ()


def _dead(bench: Workbench, node: gs.Node, levels: int = 8) -> bool:
    """Whether nothing uses what a node computes: an earlier match left it behind, and it waits to be removed.

    Beyond so many ``levels`` of readers it counts as used: what matches leave behind is no longer than a pattern.
    """
    if not levels or not bench.is_standard(node) or any(True for _ in node.subgraphs()):
        return False
    return all(
        not bench.why_bound(t) and all(_dead(bench, r, levels - 1) for r in bench.readers(t))
        for t in node.outputs
        if t.name
    )


def _node(bench: Workbench, node: gs.Node, pattern: Op, so_far: Match) -> Iterator[Match]:
    if node.op not in pattern.ops or not bench.is_standard(node):
        return
    if len(node.inputs) < len(pattern.inputs) or any(node.attrs.get(k) != v for k, v in pattern.attrs.items()):
        return
    nodes = {**so_far.nodes, pattern.name: node} if pattern.name else so_far.nodes
    own = pattern.where(bench, node) if pattern.where is not None else None
    here = Match(so_far.tensors, nodes, so_far.inside, (*so_far.problems, own) if own else so_far.problems)
    orders = [list(node.inputs)]
    if node.op in _COMMUTATIVE and len(pattern.inputs) == len(node.inputs) == 2:
        orders.append(orders[0][::-1])
    for order in orders:
        problems = (*here.problems, *_broadcasts(order, pattern.inputs))
        yield from _inputs(bench, order, pattern.inputs, Match(here.tensors, nodes, here.inside, problems))


def _broadcasts(tensors: list[gs.Tensor], patterns: tuple[Pattern, ...]) -> Iterator[str]:
    """A constant of one element with more axes than the other operand would add axes to the result."""
    for k, pattern in enumerate(patterns[:2]):
        if isinstance(pattern, Const) and pattern.single and isinstance(tensors[k], gs.Constant):
            axes = len(tensors[k].shape)
            shape = tensors[1 - k].shape if len(tensors) > 1 else None
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
    if isinstance(pattern, Either):
        for option in pattern.options:
            yield from _tensor(bench, tensor, option, so_far)
        return
    if isinstance(pattern, Op):
        producer = bench.producer(tensor)
        if producer is None or producer.op not in pattern.ops or producer.outputs[0].name != tensor.name:
            return
        if not any(n is producer for n in so_far.inside):
            so_far = Match(so_far.tensors, so_far.nodes, (*so_far.inside, producer), so_far.problems)
        yield from _node(bench, producer, pattern, so_far)
        return
    problems = so_far.problems
    if isinstance(pattern, Const):
        if not isinstance(tensor, gs.Constant) or plain_dtype(tensor) is None:
            return
        problem = _wrong_value(bench, tensor, pattern)
        problems = (*problems, problem) if problem else problems
    elif not tensor.name:  # an optional input that is left out
        return
    name = pattern.name
    if name and name in so_far.tensors and so_far.tensors[name].name != tensor.name:
        return
    tensors = {**so_far.tensors, name: tensor} if name else so_far.tensors
    yield Match(tensors, so_far.nodes, so_far.inside, problems)


def _wrong_value(bench: Workbench, tensor: gs.Constant, pattern: Const) -> str | None:
    if not pattern.single:
        return None
    value = bench.scalar(tensor) if math.prod(tensor.shape) == 1 else None
    if value is not None and (pattern.value is None or _close(tensor, value, pattern.value)):
        return None
    wanted = "a single number" if pattern.value is None else f"{pattern.value:g}"
    return f"{tensor.name!r} is {'several values' if value is None else f'{value:.7g}'}, not {wanted}"


def _close(tensor: gs.Constant, value: float, wanted: float) -> bool:
    """Whether a number is ``wanted``, as far as the tensor's type and the exporter's digits can say."""
    dtype = plain_dtype(tensor)
    coarse = float(np.finfo(dtype).eps) if dtype is not None and dtype.kind == "f" else 0.0
    return math.isclose(value, wanted, rel_tol=max(_CLOSE, coarse), abs_tol=0.0)
