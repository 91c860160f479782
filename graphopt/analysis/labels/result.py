"""What propagation found: groups that live or die together, families to rank, and what is fixed and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from graphopt.analysis.labels.builder import Axes, Builder, Probes, Shuffle, Slot
from graphopt.analysis.labels.held import Holding


@dataclass(frozen=True)
class Locked:
    """Channels that cannot be removed: the node that makes them (or has no rule), and why.

    ``macs`` at batch 1 of all the sums that these channels take part in: what removing them could save at most. Two
    entries can hold back the same MACs. ``unfollowed``: there is no rule for the node.
    """

    node: str
    op: str
    reason: str
    channels: int
    macs: int
    unfollowed: bool = False


@dataclass(frozen=True)
class Contraction:
    """A sum over channels: MACs at batch 1 = ``scale`` * product of the kept entries of each of ``axes``.

    ``inputs``: (input slot, axis, groups) of the activations that are summed over.
    """

    node: int
    scale: int
    axes: tuple[np.ndarray, ...]
    inputs: tuple[tuple[int, int, np.ndarray], ...]


@dataclass(frozen=True)
class Branch:
    """What goes when a family goes as a whole: the numbers of ``nodes``, and ``sums`` that lose an operand.

    Of each sum: the number of the Add, and its input that stays.
    """

    nodes: tuple[int, ...]
    sums: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Family:
    """Groups [n] with the same occurrences: any subset of them can be removed, but for one. The unit of ranking.

    ``producers`` are the names of the nodes that make these channels; ``slots`` is where constants are indexed by
    them. ``branch``: what goes with all of them; None where one must stay.
    """

    groups: np.ndarray
    producers: tuple[str, ...]
    slots: tuple[Slot, ...]
    branch: Branch | None = None

    @property
    def name(self) -> str:
        return self.producers[0] if self.producers else "constant"


@dataclass(frozen=True)
class Labels:
    """Channel groups of a model. Label vectors hold group numbers, one per index; None: nothing to remove there.

    ``tensors``: label vectors of each activation by name, one per axis. ``slots``: those of constants, by use.
    ``shuffles``: nodes that only reorder an axis. ``fixed`` [count] marks groups that must stay; ``locked`` says why,
    once per node and reason. ``names`` and ``ops`` are those of the model's nodes, in order.
    """

    count: int
    fixed: np.ndarray
    tensors: dict[str, Axes]
    slots: dict[Slot, np.ndarray]
    contractions: tuple[Contraction, ...]
    families: tuple[Family, ...]
    locked: tuple[Locked, ...]
    shuffles: tuple[Shuffle, ...]
    names: tuple[str, ...]
    ops: tuple[str, ...]

    @cached_property
    def by_node(self) -> dict[int, list[tuple[Slot, np.ndarray]]]:
        """Labelled constants by the number of the node that reads them."""
        found: dict[int, list[tuple[Slot, np.ndarray]]] = {}
        for slot, groups in self.slots.items():
            found.setdefault(slot.node, []).append((slot, groups))
        return found

    @cached_property
    def holding(self) -> Holding:
        """MACs that a set of groups takes part in."""
        return Holding(self.contractions, self.count)

    def everything(self) -> np.ndarray:
        """The keep mask [count] that keeps all."""
        return np.ones(self.count, dtype=bool)

    def cut(self, keep: np.ndarray) -> list[Branch]:
        """The branches of which ``keep`` [count] leaves nothing."""
        return [f.branch for f in self.families if f.branch is not None and not keep[f.groups].any()]

    def macs(self, keep: np.ndarray) -> int:
        """MACs at batch 1 of the contractions when ``keep`` [count] stays."""
        return sum(
            c.scale * int(np.prod([int(keep[a].sum()) for a in c.axes], dtype=object)) for c in self.contractions
        )


def finish(builder: Builder, names: list[str], ops: list[str]) -> Labels:
    """Settle which labels are one group, which groups are fixed, and which form a family."""
    group, count = _components(builder)
    fixed, first = _locks(builder, group, count)
    tensors: dict[str, Axes] = {
        name: [None if v is None else group[v] for v in axes] for name, axes in builder.axes.items()
    }
    slots = {slot: group[v] for slot, v in builder.slots.items()}
    contractions = tuple(
        Contraction(c.node, c.scale, tuple(group[v] for v in c.axes), tuple((s, a, group[v]) for s, a, v in c.inputs))
        for c in builder.contractions
    )
    families = _families(builder, group, fixed, tensors, slots, contractions, names)
    locked = _reasons(builder, group, first, names, ops, Holding(contractions, count))
    return Labels(
        count, fixed, tensors, slots, contractions, families, locked, tuple(builder.shuffles), tuple(names), tuple(ops)
    )


def find_heads(builder: Builder, probes: Probes) -> frozenset[tuple[int, int]]:
    """(node, output axis) of each split whose axis a product of two activations repeats over."""
    group, _ = _components(builder)
    repeated = {int(g) for labels in probes.batched for g in group[labels]}
    return frozenset(
        (node, axis) for labels, node, axis in probes.placed if repeated.issuperset(group[labels].tolist())
    )


def _components(builder: Builder) -> tuple[np.ndarray, int]:
    """Group of each label. Groups are numbered in order of their first label."""
    n = builder.count
    if n == 0:
        return np.zeros(0, dtype=np.int64), 0
    a = np.concatenate([np.zeros(0, np.int64), *[t[0] for t in builder.ties]])
    b = np.concatenate([np.zeros(0, np.int64), *[t[1] for t in builder.ties]])
    graph = coo_matrix((np.ones(a.size, dtype=np.int8), (a, b)), shape=(n, n))
    count, found = connected_components(graph, directed=False)
    _, start = np.unique(found, return_index=True)
    rank = np.empty(count, dtype=np.int64)
    rank[np.argsort(start, kind="stable")] = np.arange(count)
    return rank[found], int(count)


def _locks(builder: Builder, group: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which groups are fixed, and by which lock first (the number of locks where by none)."""
    first = np.full(count, len(builder.locks), dtype=np.int64)
    for number, (labels, _, _) in enumerate(builder.locks):
        np.minimum.at(first, group[labels], number)
    return first < len(builder.locks), first


def _families(
    builder: Builder,
    group: np.ndarray,
    fixed: np.ndarray,
    tensors: dict[str, Axes],
    slots: dict[Slot, np.ndarray],
    contractions: tuple[Contraction, ...],
    names: list[str],
) -> tuple[Family, ...]:
    """Free groups by where they occur. Activations count too, so that no tensor can lose all its channels."""
    places = list(slots)
    vectors = [slots[p] for p in places]
    vectors += [v for axes in tensors.values() for v in axes if v is not None]
    vectors += [v for c in contractions for v in c.axes]
    if not vectors:
        return ()
    where = np.repeat(np.arange(len(vectors)), [v.size for v in vectors])
    pairs, times = np.unique(np.stack([np.concatenate(vectors), where]), axis=1, return_counts=True)
    bounds = np.searchsorted(pairs[0], np.arange(fixed.size + 1))
    members: dict[bytes, list[int]] = {}
    for g in np.flatnonzero(~fixed):
        span = slice(bounds[g], bounds[g + 1])
        members.setdefault(pairs[1, span].tobytes() + times[span].tobytes(), []).append(int(g))
    made: dict[int, dict[str, None]] = {}
    for start, stop, node in builder.origins:
        for g in np.unique(group[start:stop]):
            made.setdefault(int(g), {})[names[node]] = None
    result = []
    for groups in members.values():
        entries = pairs[1, bounds[groups[0]] : bounds[groups[0] + 1]]
        at = tuple(places[e] for e in entries if e < len(places))
        result.append(Family(np.array(groups), tuple(made.get(groups[0], {})), at))
    return tuple(result)


def _reasons(
    builder: Builder, group: np.ndarray, first: np.ndarray, names: list[str], ops: list[str], holding: Holding
) -> tuple[Locked, ...]:
    """One entry per node and reason: nodes without a rule, then nodes that make channels which are fixed."""
    by_node: dict[int, list[np.ndarray]] = {node: [np.zeros(0, np.int64)] for node, _ in builder.unknown}
    for labels, node, _ in builder.locks:
        if node in by_node:
            by_node[node].append(group[labels])
    found: dict[Locked, None] = {}
    for node, why in builder.unknown:
        groups = np.unique(np.concatenate(by_node[node]))
        found[Locked(names[node], ops[node], why, groups.size, holding(groups), unfollowed=True)] = None
    for start, stop, node in builder.origins:
        hit = first[group[start:stop]]
        for number in np.unique(hit[hit < len(builder.locks)]):
            _, at, why = builder.locks[number]
            by = f"{names[at]!r} ({ops[at]}): " if at not in (node, -1) else ""
            groups = group[start:stop][hit == number]
            part = groups.size
            some = "its output channels" if part == stop - start else f"{part} of its {stop - start} output channels"
            why = f"{some} must stay; {by}{why}"
            found[Locked(names[node], ops[node], why, part, holding(groups))] = None
    return tuple(found)
