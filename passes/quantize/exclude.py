"""``keep_float``: which nodes an entry means, by name, operator, or position."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Sequence

from graphopt.errors import UsageError
from graphopt.ir import Model
from graphopt.passes.quantize.operators import has_weights
from graphopt.pipeline.patterns import matching, require_matches

_POSITION = re.compile(r"(first|last)(?::(\d+))?")
_OPERATOR = "op:"


def resolve(entries: Sequence[str], model: Model) -> dict[str, list[str]]:
    """Names of nodes by entry, in graph order.

    An entry is a name or pattern (``*/head/*``), ``op:Softmax`` for all of an operator, or ``first``, ``last``,
    ``first:2`` for so many of the operators with weights from either end. Raises UsageError for an entry that means no
    node, with the nearest that would.
    """
    nodes = list(model.graph.nodes)
    layers = [n.name for n in nodes if has_weights(n)]
    found: dict[str, list[str]] = {}
    for entry in entries:
        position = _POSITION.fullmatch(entry)
        if entry.startswith(_OPERATOR):
            found[entry] = _of_operator(entry, [(n.name, n.op) for n in nodes])
        elif position is not None and entry not in {n.name for n in nodes}:
            count = int(position[2] or 1)
            if not 1 <= count <= len(layers):
                raise UsageError(
                    f"keep_float has {entry!r}, but the model has {len(layers)} operators with weights",
                    f"give a number from 1 to {len(layers)}",
                )
            found[entry] = layers[:count] if position[1] == "first" else layers[-count:]
        else:
            try:
                require_matches([entry], [n.name for n in nodes])
            except UsageError as error:
                raise UsageError(f"keep_float pattern {entry!r} matches no node of the model", error.hint) from None
            found[entry] = [n.name for n in nodes if matching(n.name, [entry]) is not None]
    return found


def patterns(found: dict[str, list[str]]) -> tuple[str, ...]:
    """The entries as name patterns; names stand for themselves where an entry is none."""
    result: list[str] = []
    for entry, names in found.items():
        special = entry.startswith(_OPERATOR) or (_POSITION.fullmatch(entry) and names != [entry])
        result += [glob.escape(n) for n in names] if special else [entry]
    return tuple(dict.fromkeys(result))


def _of_operator(entry: str, nodes: list[tuple[str, str]]) -> list[str]:
    wanted = entry.removeprefix(_OPERATOR)
    names = [name for name, op in nodes if op == wanted]
    if not names:
        near = difflib.get_close_matches(wanted, sorted({op for _, op in nodes}), n=1, cutoff=0.4)
        hint = f"did you mean {_OPERATOR + near[0]!r}?" if near else "inspect lists the operators"
        raise UsageError(f"keep_float has {entry!r}, but the model has no {wanted}", hint)
    return names
