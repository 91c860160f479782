"""What is collected while the graph is walked: labels, which of them are tied, locked, and where they sit."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.cost import Shape
from graphopt.analysis.labels.registry import Unsupported

Axis = np.ndarray | None
Axes = list[Axis]


@dataclass(frozen=True)
class Slot:
    """Where labels sit on a constant: input number ``slot`` of node number ``node``, along ``axis``."""

    node: int
    slot: int
    axis: int


@dataclass(frozen=True)
class Shuffle:
    """The nodes ``chain`` (numbers, in order) together give what a Gather of ``order`` along ``axis`` would."""

    chain: tuple[int, ...]
    axis: int
    order: np.ndarray


@dataclass(frozen=True)
class RawContraction:
    """A sum over channels. Its MACs are ``scale`` times the sizes of ``axes``; ``inputs`` say which axis of which
    activation is summed over: (input slot, axis, labels)."""

    node: int
    scale: int
    axes: tuple[np.ndarray, ...]
    inputs: tuple[tuple[int, int, np.ndarray], ...]


@dataclass
class Probes:
    """How heads are found: labels on each axis that others than positions are split into, and where they end up.

    ``placed``: labels, node and output axis. ``batched``: those over which a product of two activations repeats.
    """

    placed: list[tuple[np.ndarray, int, int]] = field(default_factory=list)
    batched: list[np.ndarray] = field(default_factory=list)
    known: set[int] = field(default_factory=set)


@dataclass
class Builder:
    """Everything collected while walking the graph.

    ``shapes`` have None for sizes that are unknown or depend on the batch; ``one`` and ``many`` are those of one and
    of several images. An axis whose size depends on the batch may carry the labels of one image: they repeat.
    """

    opset: int
    shapes: dict[str, Shape]
    one: dict[str, Shape]
    many: dict[str, Shape]
    producers: dict[str, gs.Node]
    bound: frozenset[str] = frozenset()  # tensors that something outside of the nodes reads
    numbers: dict[int, int] = field(default_factory=dict)  # of the nodes, by their id()
    rows: frozenset[tuple[int, int]] = frozenset()  # (node, output axis) where whole attention heads are split off
    probes: Probes | None = None  # given while looking for ``rows``
    norms: bool = False  # whether channels may go that a normalisation takes its statistics over
    count: int = 0
    axes: dict[str, Axes] = field(default_factory=dict)
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    locks: list[tuple[np.ndarray, int, str]] = field(default_factory=list)
    origins: list[tuple[int, int, int]] = field(default_factory=list)
    slots: dict[Slot, np.ndarray] = field(default_factory=dict)
    contractions: list[RawContraction] = field(default_factory=list)
    shuffles: list[Shuffle] = field(default_factory=list)
    arriving: dict[int, Axes] = field(default_factory=dict)  # labels of what the last node of a shuffle gives
    unknown: list[tuple[int, str]] = field(default_factory=list)

    def fresh(self, size: int, node: int | None) -> np.ndarray:
        """New labels; with a node, they are channels that this node produces and that reports speak of."""
        labels = np.arange(self.count, self.count + size)
        self.count += size
        if node is not None:
            self.origins.append((int(self.count - size), self.count, node))
        return labels

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Make two vectors live or die together, index by index."""
        if a.shape != b.shape:
            raise Unsupported(f"sizes {a.size} and {b.size} do not match")
        if a is not b:
            self.ties.append((a.ravel(), b.ravel()))

    def lock(self, labels: Axis, node: int, why: str) -> None:
        if labels is not None and labels.size:
            self.locks.append((labels.ravel(), node, why))
