"""Rule of Einsum: what its equation says of each letter."""

from __future__ import annotations

from graphopt.analysis.cost import einsum_terms
from graphopt.analysis.labels.builder import Axis
from graphopt.analysis.labels.contraction import weighted
from graphopt.analysis.labels.registry import Unsupported, rule
from graphopt.analysis.labels.scope import NodeScope


@rule("Einsum")
def einsum(scope: NodeScope) -> None:
    """A letter is an axis of all operands that have it: those are coupled. A letter that the result lacks is summed."""
    terms = einsum_terms(scope.attr("equation"))
    if terms is None:
        raise Unsupported(f"the equation {scope.attr('equation')!r} is not followed: it has an ellipsis or a diagonal")
    operands, result = terms
    places: dict[str, list[tuple[int, int]]] = {}
    for slot, term in enumerate(operands):
        for axis, letter in enumerate(term):
            places.setdefault(letter, []).append((slot, axis))
    labels: dict[str, Axis] = {}
    for letter, at in places.items():
        labels[letter] = _couple(scope, at, letter in result)
        if letter in result and len(at) > 1:
            scope.batch(*(scope.axes(s)[a] for s, a in at[:2]))
        if letter not in result and any(scope.shape(s)[a] is None for s, a in at):
            scope.lock(labels[letter], "Einsum sums over them and over the batch")
    scope.out([labels[letter] for letter in result])
    of_one = {k: scope.sizes(scope.node.inputs[s])[a] for k, at in places.items() for s, a in at[:1]}
    summed = [(s, a, labels[k]) for k, at in places.items() if k not in result for s, a in at]
    scope.contraction(weighted(scope), [labels[k] for k in places], summed, [of_one[k] for k in places])


def _couple(scope: NodeScope, at: list[tuple[int, int]], kept: bool) -> Axis:
    variables = [(s, a) for s, a in at if not scope.is_const(s)]
    if len({scope.sizes(scope.node.inputs[s])[a] for s, a in at}) > 1:
        raise Unsupported("operands of Einsum that are broadcast are not followed")
    if variables:
        labels = scope.axes(variables[0][0])[variables[0][1]]
        for s, a in variables[1:]:
            labels = scope.tie(labels, scope.axes(s)[a], "Einsum pairs them with an axis that cannot change")
    else:
        slot, axis = at[0]
        labels = scope.fresh(scope.shape(slot)[axis]) if kept else None
    for s, a in at:
        if scope.is_const(s):
            scope.attach(s, a, labels)
    return labels
