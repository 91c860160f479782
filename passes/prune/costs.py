"""What a model costs as a function of how many channels each family keeps: sums of products of counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.cost import Cost
from graphopt.analysis.labels import Family, Labels
from graphopt.ir import Model
from graphopt.ir.values import nbytes


class CostModel(Protocol):
    """A cost of the model, ``total`` when it keeps everything. ``stepwise``: a step may save nothing, or even cost."""

    total: float
    stepwise: bool

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """Costs [m] for kept counts [m, families]."""
        ...


@dataclass(frozen=True)
class Term:
    """``scale`` times the numbers of kept entries of each of ``axes``, which hold group numbers."""

    scale: float
    axes: tuple[np.ndarray, ...]


class Extents:
    """Sizes of labelled axes as functions of what families keep."""

    def __init__(self, labels: Labels, families: tuple[Family, ...]) -> None:
        self.member = np.full(labels.count, -1)
        for f, family in enumerate(families):
            self.member[family.groups] = f
        self.sizes = np.array([f.groups.size for f in families], dtype=np.int64)

    def of(self, groups: np.ndarray) -> tuple[np.ndarray, int]:
        """How often each family's groups occur on an axis [families], and how many entries stay whatever goes."""
        member = self.member[groups]
        counts = np.bincount(member[member >= 0], minlength=self.sizes.size)
        # Every group of a family occurs equally often on an axis: that is what makes it a family.
        return counts // np.maximum(self.sizes, 1), int((member < 0).sum())


class Products:
    """A constant plus a sum of terms, exactly."""

    stepwise = False

    def __init__(self, labels: Labels, families: tuple[Family, ...], terms: Sequence[Term], rest: float = 0.0) -> None:
        extents = Extents(labels, families)
        rows: list[np.ndarray] = []
        fixed: list[int] = []
        width = max([len(t.axes) for t in terms], default=0)
        index = []
        for term in terms:
            at = []
            for groups in term.axes:
                times, stay = extents.of(groups)
                rows.append(times)
                fixed.append(stay)
                at.append(len(rows) - 1)
            index.append(at + [-1] * (width - len(at)))
        rows.append(np.zeros(len(families), dtype=np.int64))
        fixed.append(1)  # the factor 1 that pads terms with fewer axes; index -1 finds it
        self.per_family = np.stack(rows)
        self.fixed = np.array(fixed, dtype=np.int64)
        self.index = np.array(index, dtype=np.int64).reshape(len(terms), width)
        self.scale = np.array([t.scale for t in terms], dtype=np.float64)
        self.rest = rest
        self.total = float(self(extents.sizes[None])[0])

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        sizes = self.fixed + kept @ self.per_family.T
        # Doubles hold integers up to 2**53 exactly: nine petaMACs.
        result: np.ndarray = np.prod(sizes[:, self.index].astype(np.float64), axis=2) @ self.scale + self.rest
        return result


def macs_model(labels: Labels, families: tuple[Family, ...], cost: Cost) -> Products:
    """MACs at batch 1. What labels do not follow (contractions inside unknown operators) stays as it is."""
    terms = [Term(c.scale, c.axes) for c in labels.contractions]
    return Products(labels, families, terms, cost.macs - labels.macs(labels.everything()))


def params_model(model: Model, labels: Labels, families: tuple[Family, ...], cost: Cost) -> CostModel:
    """Parameters, as ``analysis.cost`` counts them."""
    return _Weights(model, labels, families, dict.fromkeys(cost.weights, 1.0), cost.params)


def bytes_model(model: Model, labels: Labels, families: tuple[Family, ...]) -> CostModel:
    """Bytes of all initializers, up to the few integers that count channels where nodes share them."""
    units = {c.name: nbytes(c) / max(1, prod(int(d) for d in c.shape)) for c in model.constants()}
    return _Weights(model, labels, families, units, weight_bytes(model))


def weight_bytes(model: Model) -> int:
    """Bytes that a model's initializers take in a file."""
    return sum(nbytes(c) for c in model.constants())


@dataclass(frozen=True)
class _Uses:
    """A constant of ``shape``: the different labels by which nodes read it, as groups by axis; none where it is read
    whole."""

    shape: tuple[int, ...]
    ways: tuple[dict[int, np.ndarray], ...]


def _uses(model: Model, labels: Labels) -> dict[str, _Uses]:
    shapes: dict[str, tuple[int, ...]] = {}
    ways: dict[str, dict[object, dict[int, np.ndarray]]] = {}
    for index, node in enumerate(model.graph.nodes):
        slots = labels.by_node.get(index, [])
        for number, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                way = {slot.axis: groups for slot, groups in slots if slot.slot == number}
                key = tuple(sorted((axis, groups.tobytes()) for axis, groups in way.items()))
                shapes[tensor.name] = tuple(int(d) for d in tensor.shape)
                ways.setdefault(tensor.name, {})[key] = way
    for name in model.captured() & ways.keys():
        ways[name][()] = {}
    return {name: _Uses(shapes[name], tuple(found.values())) for name, found in ways.items()}


class _Weights:
    """The elements of constants, each worth ``units[name]``; constants without labels, or none, are part of ``total``.

    A constant that nodes read by different labels falls apart into copies when it is cut in different ways.
    """

    stepwise = False

    def __init__(
        self,
        model: Model,
        labels: Labels,
        families: tuple[Family, ...],
        units: Mapping[str, float],
        total: float,
    ) -> None:
        self.sizes = np.array([f.groups.size for f in families], dtype=np.int64)
        terms: list[Term] = []
        spread: list[tuple[float, list[int], int]] = []  # constants read in several ways: worth, terms, whole reads
        labelled = 0.0
        for name, uses in _uses(model, labels).items():
            cuts = [way for way in uses.ways if way]
            if name not in units or not cuts:
                continue
            worth = units[name] * prod(uses.shape)
            labelled += worth
            if len(uses.ways) > 1:
                spread.append((worth, list(range(len(terms), len(terms) + len(cuts))), len(uses.ways) - len(cuts)))
            for way in cuts:
                other = prod(d for axis, d in enumerate(uses.shape) if axis not in way)
                terms.append(Term(units[name] * other, tuple(way.values())))
        self.products = Products(labels, families, terms, total - labelled)
        member = np.zeros((len(terms), len(families)), dtype=bool)
        for t, index in enumerate(self.products.index):
            member[t] = self.products.per_family[index].any(axis=0)
        self.spread = [(worth, member[at], whole) for worth, at, whole in spread]
        self.total = total

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        found = self.products(kept)
        cut = kept != self.sizes
        for worth, touched, whole in self.spread:
            uncut = whole + (~(cut[:, None, :] & touched[None]).any(axis=2)).sum(axis=1)
            # The terms hold every labelled way once; whole ones share one constant, and unlabelled ones need it too.
            found = found + worth * (np.minimum(uncut, 1) - (uncut - whole))
        return found
