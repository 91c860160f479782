"""What an onnx proto holds besides nodes of plain attributes, found in one walk for all that checks or reads a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import overload

import onnx
from onnx import AttributeProto, TensorProto

Body = onnx.GraphProto | onnx.FunctionProto

_SIMPLE = frozenset(
    (
        *(AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING),
        *(AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS),
    )
)


@overload
def walk_graphs(top: onnx.GraphProto) -> Iterator[onnx.GraphProto]: ...
@overload
def walk_graphs(top: Body) -> Iterator[Body]: ...
def walk_graphs(top: Body) -> Iterator[Body]:
    """A graph or function proto and, depth first, its subgraphs. Iterative: nesting depth is the file's choice."""
    stack: list[Body] = [top]
    while stack:
        current = stack.pop()
        yield current
        for node in current.node:
            for attr in node.attribute:
                if attr.type == AttributeProto.GRAPH:
                    stack.append(attr.g)
                stack.extend(attr.graphs)


@dataclass
class Contents:
    """The graphs of a model, and the attributes that are neither numbers nor text."""

    graphs: list[onnx.GraphProto] = field(default_factory=list)  # the main one, then its subgraphs
    inner: list[onnx.GraphProto] = field(default_factory=list)  # those in functions
    attributes: list[tuple[onnx.NodeProto, AttributeProto]] = field(default_factory=list)
    overloaded: onnx.NodeProto | None = None  # a call of one of several functions of the same name
    altered: bool = False  # whether something that the file holds has been taken out of the proto

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> Contents:
        found = cls()
        found._walk(proto.graph)
        for function in proto.functions:
            found._walk(function)
        return found

    def _walk(self, top: Body) -> None:
        stack = [top]
        known = self.graphs if isinstance(top, onnx.GraphProto) else self.inner
        while stack:
            current = stack.pop()
            if isinstance(current, onnx.GraphProto):
                known.append(current)
            for node in current.node:
                if node.overload and self.overloaded is None:
                    self.overloaded = node
                attributes = node.attribute
                if not attributes:  # less than to begin a loop
                    continue
                for attr in attributes:
                    kind = attr.type
                    if kind in _SIMPLE:  # ``onnx.checker`` refuses one that holds more than its type says
                        continue
                    self.attributes.append((node, attr))
                    if kind == AttributeProto.GRAPH:
                        stack.append(attr.g)
                    stack.extend(attr.graphs)

    def initializers(self) -> Iterator[TensorProto]:
        for graph in (*self.graphs, *self.inner):
            yield from graph.initializer

    def sparse(self) -> Iterator[onnx.SparseTensorProto]:
        for graph in (*self.graphs, *self.inner):
            yield from graph.sparse_initializer

    def attribute_tensors(self) -> Iterator[TensorProto]:
        for _, attr in self.attributes:
            if attr.HasField("t"):
                yield attr.t
            yield from attr.tensors
