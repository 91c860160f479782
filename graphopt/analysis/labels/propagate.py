"""Walk the graph once and let each node's rule relate the labels of its tensors."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.analysis.cost import Shape, known_shapes, with_batch

# Importing these modules registers their rules.
from graphopt.analysis.labels import (  # noqa: F401
    contraction,
    einsum,
    elementwise,
    indexing,
    layout,
    normalisation,
    spatial,
)
from graphopt.analysis.labels.branches import with_branches
from graphopt.analysis.labels.builder import Builder, Probes
from graphopt.analysis.labels.registry import Unsupported, find_rule
from graphopt.analysis.labels.result import Labels, find_heads, finish
from graphopt.analysis.labels.scope import NodeScope
from graphopt.ir import Model
from graphopt.ir.view import reads

# Sizes that differ between one image and this many depend on the batch; a prime that few models have as a size.
MANY = 5
# Operators that read no channels: nothing to lock, nothing to report.
_SOURCES = {"Constant", "ConstantOfShape", "Range", "RandomNormal", "RandomUniform", "EyeLike", "NonZero"}


def propagate(model: Model, norms: bool = False, heads: bool = False) -> Labels:
    """Channel groups of a model. Linear in nodes, uses and channels. Does not change the model.

    ``norms`` and ``heads``: see ``ChannelLabels``.
    """
    graph = model.graph
    makers = {t.name: i for i, node in enumerate(graph.nodes) for t in node.outputs if t.name}
    producers = {name: graph.nodes[i] for name, i in makers.items()}
    one, many = (known_shapes(with_batch(model, size)) for size in (1, MANY))
    for name, shape in known_shapes(model).items():  # behind a custom operator, what was recorded is all there is
        one.setdefault(name, shape)
        many.setdefault(name, shape)
    bound = frozenset((*model.captured(), *(t.name for t in graph.outputs)))
    numbers = {id(node): index for index, node in enumerate(graph.nodes)}

    def walk(rows: frozenset[tuple[int, int]] = frozenset(), probes: Probes | None = None) -> Builder:
        shapes = _closed(one, many)
        builder = Builder(model.opset, shapes, one, many, producers, bound, numbers, rows, probes, norms)
        for tensor in graph.inputs:
            builder.axes[tensor.name] = [None] * len(builder.shapes.get(tensor.name, []))
        for index, node in enumerate(graph.nodes):
            _visit(builder, index, node)
        return builder

    probes = Probes()
    builder = walk(find_heads(walk(probes=probes), probes)) if heads else walk()
    for tensor in graph.outputs:
        for labels in builder.axes.get(tensor.name, []):
            builder.lock(labels, makers[tensor.name], f"{tensor.name!r} is an output of the model")
    found = finish(builder, [n.name for n in graph.nodes], [n.op for n in graph.nodes])
    return with_branches(found, model, (one, many))


def _closed(one: dict[str, Shape], many: dict[str, Shape]) -> dict[str, Shape]:
    """Shapes with None for the sizes that are unknown or depend on the batch."""
    return {
        name: [d if d == e else None for d, e in zip(shape, many[name], strict=True)]
        for name, shape in one.items()
        if len(shape) == len(many.get(name, []))
    }


def _visit(builder: Builder, index: int, node: gs.Node) -> None:
    scope = NodeScope(builder, index, node)
    found = find_rule(node.op, node.domain)
    if index in builder.arriving:
        scope.out(builder.arriving[index])
        return
    try:
        if found is None:
            if node.op in _SOURCES:
                return
            kind = f"operator {node.op}" + (f" of domain {node.domain!r}" if node.domain else "")
            raise Unsupported(f"graphopt has no pruning rule for {kind}")
        found(scope)
        _check_sizes(scope)
    except Unsupported as error:
        _lock_all(scope, str(error))
    except (ValueError, IndexError, KeyError, TypeError) as error:  # attributes that do not fit the operator
        _lock_all(scope, f"its attributes cannot be read ({error})")


def _check_sizes(scope: NodeScope) -> None:
    for tensor in scope.node.outputs:
        axes, shape = scope.builder.axes.get(tensor.name), scope.builder.one.get(tensor.name)
        if axes is None or shape is None:
            continue
        if len(axes) != len(shape):
            raise Unsupported(f"output {tensor.name!r} has rank {len(shape)} where {len(axes)} was expected")
        for labels, size in zip(axes, shape, strict=True):
            if labels is not None and size is not None and labels.size != size:
                raise Unsupported(f"output {tensor.name!r} has {size} channels where {labels.size} were expected")


def _lock_all(scope: NodeScope, why: str) -> None:
    """Every axis of every tensor that the node touches stays as it is."""
    builder, node = scope.builder, scope.node
    builder.unknown.append((scope.index, why))
    for name in dict.fromkeys(reads(node)):
        for labels in builder.axes.get(name, []):
            builder.lock(labels, scope.index, why)
    for slot in reversed(builder.slots):  # nodes are visited in order: this one's slots are the last
        if slot.node != scope.index:
            break
        builder.lock(builder.slots[slot], scope.index, why)
    for tensor in node.outputs:
        for labels in builder.axes.get(tensor.name, []):
            builder.lock(labels, scope.index, why)
        builder.axes.pop(tensor.name, None)
        shape = builder.shapes.get(tensor.name)
        if shape is not None:
            builder.axes[tensor.name] = [None] * len(shape)
