"""One rule per operator: how the channel labels of its inputs, parameters and outputs hang together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from graphopt import extension

if TYPE_CHECKING:
    from graphopt.analysis.labels.scope import NodeScope

Rule = Callable[["NodeScope"], None]
_RULES: dict[tuple[str, str], Rule] = {}


class Unsupported(Exception):
    """Raised by a rule for a node that it cannot follow; the text is the reason that users read."""


def rule(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of some operators. A later registration replaces an earlier one.

    The rule gets a ``NodeScope``; it ties, attaches or locks labels and sets the labels of the node's outputs. It
    raises ``Unsupported`` with a reason for what it cannot follow: every axis of the node's tensors is locked then.
    """

    def register(function: Rule) -> Rule:
        extension.add(function)
        for op in ops:
            _RULES[domain, op] = function
        return function

    return register


def find_rule(op: str, domain: str | None) -> Rule | None:
    """The rule of an operator, if there is one."""
    return _RULES.get(("" if domain in (None, "ai.onnx") else str(domain), op))
