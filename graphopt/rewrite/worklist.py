"""Which nodes of a graph wait to be looked at, and what a pass that runs again need not look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.rewrite.index import Index, several


@dataclass
class Memory:
    """What a pass leaves on a workbench for its next run there."""

    owner: object
    scope: object  # what else it worked with
    table: Any  # its rules
    seen: int  # entries of the journal that it knows
    skipped: dict[int, dict[int, str]]  # by node, then by rule
    notes: dict[str, Any]  # its own


class Worklist(Index):
    """Nodes that wait, in order, and a journal of those at which something has changed."""

    def __init__(self, model: Model, graph: gs.Graph | None = None) -> None:
        super().__init__(model, graph)
        self._journal: list[gs.Node] = []  # nodes at which something has changed, in order
        self._memories: dict[int, Memory] = {}  # by the id of the pass
        self.clear(1)

    def clear(self, reach: int, wanted: Collection[str] | None = None) -> None:
        """Let no node wait, for rules that look ``reach`` operators up and start at ``wanted``, or at all."""
        self.reach, self.wanted = reach, wanted
        self._skipped: dict[int, dict[int, str]] = {}
        # Ids of nodes, some of them gone, to look at again; None: no node was looked at before.
        self.resumed: set[int] | None = None
        self.notes: dict[str, Any] = {}  # what the pass wants to find here on its next run
        self._pending: deque[gs.Node] = deque()
        self._queued: set[int] = set()

    # --- from one run of a pass to its next ------------------------------------------------------------------

    def recall(self, owner: object, scope: object) -> Memory | None:
        """What a pass has left here, if so little has changed since that looking there is less than looking at all."""
        found = self._memories.get(id(owner))
        if found is None or found.owner is not owner or found.scope is not scope:
            return None
        changes, most = len(self._journal) - found.seen, len(self._alive) // 3
        if changes > most:  # many of them may be at the same nodes
            changes = len({id(n) for n in self._journal[found.seen :]}) if changes <= 20 * most else changes
        return found if changes <= most else None

    def remember(self, owner: object, scope: object, table: object) -> None:
        """Keep what a pass has found out; its rules must have no work left."""
        self._memories[id(owner)] = Memory(owner, scope, table, len(self._journal), self._skipped, self.notes)

    def resume(self, memory: Memory) -> None:
        """Look only at nodes around which something has changed since a pass was here last."""
        around = self._around(memory.seen)
        self.resumed = {*around, *map(id, self._journal[memory.seen :])}
        self.notes = memory.notes
        # What a pass says when its rules are done, it says anew.
        self._skipped = {
            key: {rule: said for rule, said in reasons.items() if rule != id(memory.owner)}
            for key, reasons in memory.skipped.items()
            if key not in around and key in self._alive
        }
        wanted = self.wanted
        self._start_with(around if wanted is None else {key: n for key, n in around.items() if n.op in wanted})

    @property
    def changes(self) -> int:
        """How many entries the journal has, for ``changed_since``."""
        return len(self._journal)

    def changed_since(self, changes: int) -> list[gs.Node]:
        """Nodes at which something has changed since the journal had so many entries, some more than once."""
        return [n for n in self._journal[changes:] if id(n) in self._alive]

    def _around(self, since: int) -> dict[int, gs.Node]:
        """Nodes changed since an entry of the journal, those above, and as many levels below as rules reach."""
        alive, producer = self._alive, self._producer
        level = {id(n): n for n in self._journal[since:]}
        for node in list(level.values()):
            above = [producer.get(t.name) for t in node.inputs]
            level.update((id(n), n) for n in above if n is not None)
        found = {key: n for key, n in level.items() if key in alive}
        level = found
        for _ in range(self.reach + 1):
            below: dict[int, gs.Node] = {}
            for node in level.values():
                for tensor in node.outputs:
                    below.update(several(self._readers.get(tensor.name)))
            level = {key: n for key, n in below.items() if key not in found}
            found = {**found, **level}
        return found

    def _start_with(self, nodes: dict[int, gs.Node]) -> None:
        """Begin with these nodes, by their ids, and with all whose outputs nobody reads."""
        self._idle = {key: n for key, n in self._idle.items() if not self.is_read(n)}
        nodes.update(self._idle)
        self._pending.extend(self.in_order(nodes))
        self._queued.update(nodes)

    # --- the worklist ---------------------------------------------------------------------------------------

    def push(self, nodes: Iterable[gs.Node]) -> None:
        """Look at these nodes (again)."""
        alive, queued, pending = self._alive, self._queued, self._pending
        for node in nodes:
            key = id(node)
            if key not in queued and key in alive:
                queued.add(key)
                pending.append(node)

    def _look(self, node: gs.Node) -> None:
        """Look again at a node at which something has changed."""
        self._journal.append(node)
        key = id(node)
        if key not in self._queued and key in self._alive:
            self._queued.add(key)
            self._pending.append(node)

    def push_below(self, node: gs.Node) -> None:
        """Look again at a node and at the nodes whose rules may reach up to it."""
        key = id(node)
        if key not in self._alive:
            return
        self._journal.append(node)
        queued, pending, readers, wanted = self._queued, self._pending, self._readers, self.wanted
        if key not in queued:
            queued.add(key)
            pending.append(node)
        level: Iterable[gs.Node] = (node,)
        for _ in range(self.reach):
            below: dict[int, gs.Node] | None = None
            for above in level:
                for tensor in above.outputs:
                    found = several(readers.get(tensor.name))
                    if found:
                        # Most nodes write one tensor: its readers need not be copied.
                        below = found if below is None else {**below, **found}
            if not below:
                break
            for key, reader in below.items():
                if key not in queued and (wanted is None or reader.op in wanted):
                    queued.add(key)
                    pending.append(reader)
            level = below.values()

    def push_all(self) -> None:
        """Look at every node that a rule starts at, and at nodes whose outputs nobody reads."""
        if self.wanted is None:
            self.push(self.nodes())
            return
        found: dict[int, gs.Node] = {}
        for op in self.wanted:
            found.update(self._by_op.get(op, ()))
        self._start_with(found)

    @property
    def idle(self) -> bool:
        return not self._pending
