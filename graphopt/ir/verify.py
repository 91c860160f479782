"""Structural checks: on loading a model, where they blame the file, and after each pass, where they blame the pass."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import onnx_graphsurgeon as gs

from graphopt.errors import ContractError, ModelError
from graphopt.ir.model import Model
from graphopt.ir.view import all_graphs, node_view, reads, subgraphs


@dataclass(frozen=True)
class Snapshot:
    """What a pass must keep: the graph's interface exactly, and what was known of each tensor."""

    inputs: tuple[tuple[object, ...], ...]
    outputs: tuple[tuple[object, ...], ...]
    typed: frozenset[str]  # variables of known dtype
    ranked: frozenset[str]  # variables of known rank
    constants: frozenset[str]

    @classmethod
    def of(cls, model: Model) -> Snapshot:
        graph = model.bare
        interface = graph.inputs + graph.outputs
        variables = [t for n in graph.nodes for t in n.outputs]
        variables += [t for t in interface if isinstance(t, gs.Variable)]
        constants = [t.name for n in graph.nodes for t in n.inputs if isinstance(t, gs.Constant)]
        constants += [t.name for t in interface if isinstance(t, gs.Constant)]
        return cls(
            _interface(graph.inputs),
            _interface(graph.outputs),
            typed=frozenset([t.name for t in variables if t.dtype is not None]),
            ranked=frozenset([t.name for t in variables if t.shape is not None]),
            constants=frozenset(constants),
        )


def _interface(tensors: list[gs.Tensor]) -> tuple[tuple[object, ...], ...]:
    return tuple((t.name, str(t.dtype), None if t.shape is None else tuple(t.shape)) for t in tensors)


def problems(model: Model) -> list[str]:
    """What is structurally wrong with a model: names, single assignment, order, dangling reads. Linear."""
    found: list[str] = []
    _graph_problems(model.bare, frozenset(), found, "")
    return found


def _graph_problems(graph: gs.Graph, outer: frozenset[str], found: list[str], where: str) -> dict[str, gs.Tensor]:
    """Add what is wrong with a graph to ``found``. Returns its tensors by name."""
    tensors: dict[str, gs.Tensor] = {}
    defined: set[str] = set(outer)
    for tensor in graph.inputs:
        if tensor.name in tensors:
            found.append(f"two graph inputs are named {tensor.name!r}{where}")
        tensors[tensor.name] = tensor
        defined.add(tensor.name)
    produced: dict[str, str] = {}
    node_names: set[str] = set()
    late: list[tuple[str, str]] = []
    nested = False
    for node in graph.nodes:
        title, outputs = node.name, node.outputs
        if title in node_names:
            found.append(f"two nodes are named {title!r}{where}")
        node_names.add(title)
        if node.attrs and subgraphs(node):
            nested = True
        for tensor in outputs:
            name = tensor.name
            if not name:
                continue
            if name in produced:
                found.append(f"tensor {name!r} is written by {produced[name]!r} and {title!r}{where}")
            elif name in defined and name not in outer:
                found.append(f"node {title!r} writes the graph input {name!r}{where}")
            produced[name] = title
        for tensor in node.inputs:
            name = tensor.name
            if not name:
                continue
            if tensors.setdefault(name, tensor) is not tensor and name not in outer:
                found.append(f"two different tensors are named {name!r}{where}")
            if isinstance(tensor, gs.Constant):
                if name in produced:
                    found.append(f"node {produced[name]!r} writes the initializer {name!r}{where}")
                defined.add(name)
            elif name not in defined:
                late.append((title, name))
        for tensor in outputs:
            name = tensor.name
            if name:
                if tensors.setdefault(name, tensor) is not tensor and name not in outer:
                    found.append(f"two different tensors are named {name!r}{where}")
                if isinstance(tensor, gs.Constant):
                    found.append(f"node {title!r} writes the initializer {name!r}{where}")
                defined.add(name)
    if nested:
        late = _nested_problems(graph, defined - produced.keys() | outer, produced, found)
    if late:
        found.extend(_order_problems(graph, late, produced, where))
    for tensor in graph.outputs:
        if tensor.name not in defined and not isinstance(tensor, gs.Constant):
            found.append(f"the graph output {tensor.name!r} is never written{where}")
    for tensor in graph.outputs:
        tensors.setdefault(tensor.name, tensor)
    return tensors


def _nested_problems(
    graph: gs.Graph, defined: set[str], produced: dict[str, str], found: list[str]
) -> list[tuple[str, str]]:
    """Add what is wrong with a graph's subgraphs; what its nodes, those of subgraphs included, read too early."""
    late: list[tuple[str, str]] = []
    for node in graph.nodes:
        for tensor in node.inputs:
            if tensor.name not in defined and tensor.name:
                late.append((node.name, tensor.name))
        inner = subgraphs(node) if node.attrs else []
        for sub in inner:
            visible = frozenset(defined) | frozenset(produced)
            _graph_problems(sub, visible, found, f" (in a subgraph of {node.name!r})")
        if inner:
            inside = _known_inside(node)
            late.extend((node.name, name) for name in reads(node) if name not in defined and name not in inside)
        for tensor in node.outputs:
            if tensor.name:
                defined.add(tensor.name)
    return late


def _known_inside(node: gs.Node) -> set[str]:
    """Names that the subgraphs of a node define themselves, initializers included: those are written with the model."""
    names: set[str] = set()
    for sub in (s for top in subgraphs(node) for s in all_graphs(top)):
        names.update(t.name for t in sub.inputs)
        for inner in sub.nodes:
            names.update(t.name for t in inner.outputs)
            names.update(t.name for t in inner.inputs if isinstance(t, gs.Constant))
        names.update(t.name for t in sub.outputs if isinstance(t, gs.Constant))
    return names


def _order_problems(graph: gs.Graph, late: list[tuple[str, str]], produced: dict[str, str], where: str) -> list[str]:
    dangling = [(node, name) for node, name in late if name not in produced]
    if dangling:
        return [f"node {node!r} reads {name!r}, which nothing writes{where}" for node, name in dangling]
    try:
        cycle = nx.find_cycle(node_view(graph))
    except nx.NetworkXNoCycle:
        return [f"node {node!r} reads {name!r} before it is written{where}" for node, name in late[:3]]
    names = " -> ".join(graph.nodes[edge[0]].name for edge in cycle)
    return [f"the graph has a cycle: {names}{where}"]


def verify_input(model: Model, name: str) -> None:
    """Raise ModelError for the first structural problems of a loaded file."""
    found = problems(model)
    if found:
        raise ModelError(f"{name} is malformed: " + "; ".join(found[:3]))


def verify(model: Model, before: Snapshot | None = None, blame: str = "") -> None:
    """Raise ContractError if a pass left the model malformed, or changed or forgot what it must keep."""
    found: list[str] = []
    tensors = _graph_problems(model.bare, frozenset(), found, "")
    if before is not None:
        for kind, old, new in (
            ("inputs", before.inputs, _interface(model.bare.inputs)),
            ("outputs", before.outputs, _interface(model.bare.outputs)),
        ):
            if old != new:
                found.append(f"the graph's {kind} changed from {list(old)} to {list(new)}")
        for name, tensor in tensors.items():
            if isinstance(tensor, gs.Constant):
                continue
            had_values = name in before.constants
            if tensor.dtype is None and (had_values or name in before.typed):
                found.append(f"the dtype of {name!r} was known and is lost")
            if tensor.shape is None and (had_values or name in before.ranked):
                found.append(f"the rank of {name!r} was known and is lost")
    if found:
        raise ContractError(f"{blame or 'the pass'} broke the model: " + "; ".join(found[:5]))
