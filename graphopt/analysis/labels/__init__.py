"""Channel labels: which slices of which constants live or die together.

Every axis of every tensor carries a vector of labels or nothing; one rule per operator relates them, whatever the
topology. A group is a class of labels that are tied; a family is a set of groups that occur at the same places.
A plug-in adds an operator with ``@rule("Op", domain="...")``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphopt.analysis.base import Analysis
from graphopt.analysis.labels.builder import Shuffle, Slot
from graphopt.analysis.labels.held import held_back, why_not
from graphopt.analysis.labels.propagate import propagate
from graphopt.analysis.labels.registry import Unsupported, rule
from graphopt.analysis.labels.result import Branch, Contraction, Family, Labels, Locked
from graphopt.analysis.labels.scope import NodeScope
from graphopt.ir import Model

__all__ = [
    "Branch",
    "ChannelLabels",
    "Contraction",
    "Family",
    "Labels",
    "Locked",
    "NodeScope",
    "Shuffle",
    "Slot",
    "Unsupported",
    "held_back",
    "propagate",
    "rule",
    "why_not",
]


@dataclass(frozen=True)
class ChannelLabels(Analysis[Labels]):
    """The channel groups of a model.

    ``norms``: also channels that a LayerNormalization takes its statistics over. To be exact, it must go on counting
    those that are removed, as zeros. ``heads``: whole attention heads, instead of the same positions in each of them.
    """

    norms: bool = False
    heads: bool = False

    def compute(self, model: Model, ctx: Any = None) -> Labels:
        return propagate(model, self.norms, self.heads)
