"""Which nodes of a region to move: a minimum cut.

Each node either works on tensors as they are or on tensors in the region's form. A tensor costs one Transpose where
its producer has it one way and a reader wants it the other; several readers share it. So the cheapest choice cuts a
graph in two: one side moves, the other stays. Transposes there now are the places where the answer is given: what one
reads into the form wants that form, whatever happens, and what one writes out of it can be had in it for nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from graphopt.passes.layout.forms import Axes
from graphopt.passes.layout.region import Kept, Region, transposition
from graphopt.rewrite import Workbench
from graphopt.rewrite.shapes import known

# The two ends of the cut; nodes go by their id.
_MOVED, _STAYS = -1, -2
_INFINITE = 2**30
_SMALL = 128  # edges
_BUDGET = 2**29  # finite capacities of a part sum up to less


class Cost(NamedTuple):
    """Transposes, the elements that they move (open sides count as one), and Reshapes."""

    transposes: int
    elements: int
    reshapes: int


@dataclass(frozen=True)
class Link:
    """A tensor that producer and readers must have in one form, or pay."""

    kept: Kept
    producer: int
    readers: tuple[int, ...]
    cost: Cost | None  # None: it cannot be had in both forms
    vague: bool  # more than one side is open, so that elements cannot be compared

    def price(self, moved: set[int]) -> bool:
        """Whether a conversion is needed."""
        has = self.producer in moved
        for reader in self.readers:  # noqa: SIM110 - asked very often
            if (reader in moved) != has:
                return True
        return False


@dataclass
class Part:
    """Nodes of a region that depend on one another, and those of them that should move."""

    region: Region
    nodes: set[int]
    links: list[Link]
    moved: set[int]
    saved: int = 0  # Transposes
    reason: str = ""

    def rewired(self, bench: Workbench) -> set[int]:
        """Ids of the nodes that moving the part concerns: its own, and the Transposes beside them."""
        found = set(self.nodes)
        for link in self.links:
            near = [bench.producer(link.kept.tensor), *bench.readers(link.kept.tensor)]
            found.update(id(n) for n in near if n is not None and n.op == "Transpose")
        return found


def parts(bench: Workbench, region: Region) -> list[Part]:
    """The region in independent parts, each with the best choice; ``moved`` is empty where nothing is gained."""
    links = [link for kept in region.tensors.values() if (link := _link(bench, region, kept)) is not None]
    found = [Part(region, nodes, own, set()) for nodes, own in _split(links)]
    for part in found:
        _choose(part)
    return found


def _link(bench: Workbench, region: Region, kept: Kept) -> Link | None:
    tensor, form = kept.tensor, kept.form
    producer = _producer(bench, region, kept)
    readers: dict[int, None] = {}
    if bench.is_output(tensor) or bench.is_captured(tensor):
        readers[_STAYS] = None
    for node in bench.readers(tensor):
        perm = transposition(bench, node)
        if perm is not None and isinstance(form, Axes):
            if perm == form:
                readers[_MOVED] = None
            continue  # any other Transpose reads either form, and then writes what it wrote before
        plan = region.plans.get(id(node))
        forms = (
            [None] if plan is None else [f for t, f in zip(node.inputs, plan.ins, strict=True) if t.name == tensor.name]
        )
        for wanted in forms:
            readers[id(node) if wanted is not None else _STAYS] = None
    if isinstance(form, Axes):
        shape = list(tensor.shape)
        sizes = [int(d) for d in shape if known(d)]
        moves = form.moves(shape)
        cost = Cost(1, math.prod(sizes), 0) if moves else Cost(0, 0, 1)
        return Link(kept, producer, tuple(readers), cost, moves and len(shape) - len(sizes) > 1)
    return Link(kept, producer, tuple(readers), None, False)


def _producer(bench: Workbench, region: Region, kept: Kept) -> int:
    node = bench.producer(kept.tensor)
    if node is None:
        return _STAYS
    perm = transposition(bench, node)
    if perm is not None:
        if not isinstance(kept.form, Axes) or isinstance(node.inputs[0], gs.Constant):
            return _STAYS
        return _MOVED if perm.then(kept.form.perm).trivial else id(node)
    plan = region.plans.get(id(node))
    if plan is None:
        return _STAYS
    place = next(i for i, t in enumerate(node.outputs) if t.name == kept.tensor.name)
    return id(node) if plan.outs[place] is not None else _STAYS


def _split(links: Iterable[Link]) -> list[tuple[set[int], list[Link]]]:
    """Links in groups that share no node."""
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while parent.setdefault(x, x) != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    own: list[tuple[int, Link]] = []
    for link in links:
        nodes = [n for n in (link.producer, *link.readers) if n >= 0]
        for node in nodes:
            parent[root(node)] = root(nodes[0])
        if nodes:
            own.append((nodes[0], link))
    found: dict[int, tuple[set[int], list[Link]]] = {}
    for node, link in own:
        nodes_of, links_of = found.setdefault(root(node), (set(), []))
        links_of.append(link)
        nodes_of.update(n for n in (link.producer, *link.readers) if n >= 0)
    return list(found.values())


def _choose(part: Part) -> None:
    before = _total(part.links, {_MOVED})
    if before is None or before == Cost(0, 0, 0):
        return
    for by_elements in (False, True):
        moved = _cut(part, by_elements)
        after = _total(part.links, moved | {_MOVED})
        if after is None or not moved or after >= before:
            continue
        if after.elements > before.elements:
            part.reason = "without it, other Transposes would move more elements"
            continue
        if after.transposes == before.transposes and any(link.vague for link in part.links):
            continue  # fewer elements, but of sizes that are not known
        part.moved, part.saved = moved, before.transposes - after.transposes
        return


def _total(links: Iterable[Link], moved: set[int]) -> Cost | None:
    total = Cost(0, 0, 0)
    for link in links:
        if link.price(moved):
            if link.cost is None:
                return None
            total = Cost(*(a + b for a, b in zip(total, link.cost, strict=True)))
    return total


def _cut(part: Part, by_elements: bool) -> set[int]:
    """The smallest set of nodes to move at the least cost."""
    weights = _weights(part.links, by_elements)
    vertex = {_MOVED: 0, _STAYS: 1}
    for link in part.links:
        for node in (link.producer, *link.readers):
            vertex.setdefault(node, len(vertex))
    size = len(vertex)
    capacity: defaultdict[tuple[int, int], int] = defaultdict(int)

    def edge(a: int, b: int, weight: int) -> None:
        if a != b:
            capacity[a, b] = min(capacity[a, b] + weight, _INFINITE)

    for link, weight in zip(part.links, weights, strict=True):
        producer, readers = vertex[link.producer], [vertex[r] for r in link.readers]
        for forward in (True, False):
            # Forward: the producer has moved and a reader stays; else the other way round.
            ends = readers
            hub = producer
            if len(readers) > 1:
                hub, size = size, size + 1
                edge(*((producer, hub) if forward else (hub, producer)), weight)
                ends = [r for r in readers if r != producer]
            for reader in ends:
                cap = _INFINITE if hub != producer else weight
                edge(*((hub, reader) if forward else (reader, hub)), cap)
    reached = _reached(capacity) if len(capacity) <= _SMALL else _reached_of_many(capacity, size)
    return {node for node, v in vertex.items() if node >= 0 and v in reached}


def _reached(capacity: Mapping[tuple[int, int], int]) -> set[int]:
    """Vertices on the side of vertex 0 of the minimum cut to vertex 1 that has the fewest there.

    By shortest augmenting paths, for the few edges of most parts, which take a library longer to set up than to solve.
    """
    residual: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for (a, b), cap in capacity.items():
        residual[a][b] = residual[a].get(b, 0) + cap
        residual[b].setdefault(a, 0)
    while True:
        before = {0: 0}
        queue = deque([0])
        while queue and 1 not in before:
            a = queue.popleft()
            for b, cap in residual[a].items():
                if cap > 0 and b not in before:
                    before[b] = a
                    queue.append(b)
        if 1 not in before:
            return set(before)
        path, b = [], 1
        while b != 0:
            path.append((before[b], b))
            b = before[b]
        flow = min(residual[a][b] for a, b in path)
        for a, b in path:
            residual[a][b] -= flow
            residual[b][a] += flow


def _reached_of_many(capacity: Mapping[tuple[int, int], int], size: int) -> set[int]:
    """The same by scipy."""
    rows, columns = zip(*capacity, strict=True)
    caps = np.array(list(capacity.values()), np.int32)
    network = csr_array(coo_array((caps, (rows, columns)), shape=(size, size)))
    flow = maximum_flow(network, 0, 1).flow
    residual = csr_array(network - flow)
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    return set(breadth_first_order(residual, 0, return_predecessors=False).tolist())


def _weights(links: list[Link], by_elements: bool) -> list[int]:
    """Capacities in the order of costs, as far as the numbers of a flow reach: transposes first, or elements."""
    costs = [link.cost for link in links if link.cost is not None]
    elements = sum(c.elements for c in costs) or 1
    # A Transpose must outweigh all Reshapes, and, unless elements come first, all differences in elements.
    unit = max(_BUDGET // (len(costs) + 1), 4)
    fine = max(unit - len(costs) - 1, 1)
    found = []
    for link in links:
        if link.cost is None:
            found.append(_INFINITE)
        elif not link.cost.transposes:
            found.append(1)
        elif by_elements:
            found.append(2 + link.cost.elements * (_BUDGET // 2) // elements)
        else:
            found.append(unit + link.cost.elements * fine // (2 * elements))
    return found
