"""What a model costs as a function of how many channels each family keeps: sums of products of counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from graphopt.analysis.cost import Cost
from graphopt.analysis.labels import Family, Labels


class CostModel(Protocol):
    """A cost of the model, ``total`` when it keeps everything."""

    total: float

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """Costs [m] for kept counts [m, families]."""
        ...


@dataclass(frozen=True)
class Term:
    """``scale`` times the numbers of kept entries of each of ``axes``, which hold group numbers."""

    scale: float
    axes: tuple[np.ndarray, ...]


class Products:
    """A constant plus a sum of terms, exactly."""

    def __init__(self, labels: Labels, families: tuple[Family, ...], terms: Sequence[Term], rest: float = 0.0) -> None:
        member = np.full(labels.count, -1)
        for f, family in enumerate(families):
            member[family.groups] = f
        sizes = np.array([f.groups.size for f in families], dtype=np.int64)
        rows: list[np.ndarray] = []
        fixed: list[int] = []
        width = max([len(t.axes) for t in terms], default=0)
        index = []
        for term in terms:
            at = []
            for groups in term.axes:
                of = member[groups]
                counts = np.bincount(of[of >= 0], minlength=len(families))
                # Every group of a family occurs equally often on an axis: that is what makes it a family.
                rows.append(counts // np.maximum(sizes, 1))
                fixed.append(int((of < 0).sum()))
                at.append(len(rows) - 1)
            index.append(at + [-1] * (width - len(at)))
        rows.append(np.zeros(len(families), dtype=np.int64))
        fixed.append(1)  # the factor 1 that pads terms with fewer axes; index -1 finds it
        self.per_family = np.stack(rows)
        self.fixed = np.array(fixed, dtype=np.int64)
        self.index = np.array(index, dtype=np.int64).reshape(len(terms), width)
        self.scale = np.array([t.scale for t in terms], dtype=np.float64)
        self.rest = rest
        self.total = float(self(sizes[None])[0])

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        sizes = self.fixed + kept @ self.per_family.T
        # Doubles hold integers up to 2**53 exactly: nine petaMACs.
        result: np.ndarray = np.prod(sizes[:, self.index].astype(np.float64), axis=2) @ self.scale + self.rest
        return result


def macs_model(labels: Labels, families: tuple[Family, ...], cost: Cost) -> Products:
    """MACs at batch 1. What labels do not follow (contractions inside unknown operators) stays as it is."""
    terms = [Term(c.scale, c.axes) for c in labels.contractions]
    return Products(labels, families, terms, cost.macs - labels.macs(labels.everything()))
