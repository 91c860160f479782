"""The cheapest assignment of operators to float and int8: a minimum cut.

Each operator takes some time in float and some in int8, and a tensor between the two worlds takes time to convert, once
however many read it. The cheapest assignment of all operators at once is a minimum cut of a network with the
operators as vertices (Greig, Porteous, Seheult 1989 for the construction). So an operator without an int8 kernel
never drags its neighbours into conversions that cost more than they save.
"""

from __future__ import annotations

import networkx as nx

from graphopt.runtime.target import Target


class Network:
    """The flow network: what stays on the source's side runs in int8."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.graph = nx.DiGraph()
        self.graph.add_nodes_from((-1, -2))  # source (int8), sink (float)
        self.next = -3

    def operator(self, i: int, float_ns: int, int8_ns: int) -> None:
        self.graph.add_edge(-1, i, capacity=float_ns)
        self.graph.add_edge(i, -2, capacity=int8_ns)

    def forbid(self, i: int) -> None:
        self.graph.add_edge(i, -2)  # no capacity: infinite

    def tensor(
        self,
        producer: int | None,
        readers: list[int | None],
        elements: int,
        op: str,
        joining: frozenset[int] = frozenset(),
    ) -> None:
        """Charge the conversions of one tensor; ``producer`` and readers None are in float for ever.

        ``joining``: readers that keep the layout that float leaves, if they get the tensor from there.
        """
        price = round(elements * self.target.costs.convert_ns + self.target.costs.node_ns)
        source = -2 if producer is None else producer
        ends = [-2 if r is None else r for r in dict.fromkeys(readers) if r != producer]
        if not ends:
            return
        quantize = self._extra()
        self.graph.add_edge(quantize, source, capacity=price)
        for end in ends:
            if end != -2:
                self.graph.add_edge(end, quantize)
        if joining and producer is not None:
            relaid = self._extra()
            self.graph.add_edge(relaid, source, capacity=round(price * self.target.costs.relayout))
            for end in ends:
                if end in joining:
                    self.graph.add_edge(end, relaid)
        if producer is None or op in self.target.float_output_ops:
            return
        dequantize = self._extra()
        self.graph.add_edge(source, dequantize, capacity=price)
        for end in ends:
            self.graph.add_edge(dequantize, end)

    def solve(self) -> set[int]:
        _, (int8, _rest) = nx.minimum_cut(self.graph, -1, -2, flow_func=nx.algorithms.flow.boykov_kolmogorov)
        return {i for i in int8 if i >= 0}

    def _extra(self) -> int:
        self.next -= 1
        return self.next
