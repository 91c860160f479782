"""graphsurgeon's objects, made without its constructors.

Its classes intercept every assignment to an attribute, which takes most of the time of building a large graph and keeps
Python from storing objects in their compact form. Those of a graph whose tensors do not list their readers and writers
have nothing to keep in step: they are of classes that do not intercept, until ``link`` makes them graphsurgeon's own.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.util.misc import SynchronizedList

Shape = list[int | str | None]
set_attribute = object.__setattr__  # graphsurgeon's own is many times as slow


class Node(gs.Node):
    """A node whose lists are plain ones."""

    __setattr__ = object.__setattr__

    def __init__(
        self,
        op: str,
        name: str,
        attrs: dict[str, object],
        inputs: list[gs.Tensor],
        outputs: list[gs.Tensor],
        domain: str | None = None,
    ) -> None:
        self.op = op
        self.name = name
        self.attrs = attrs
        self.inputs = inputs
        self.outputs = outputs
        self.domain = domain


class Variable(gs.Variable):
    """A variable that does not list its readers and writers."""

    __setattr__ = object.__setattr__

    def __init__(self, name: str, dtype: object = None, shape: Shape | None = None) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.type = "tensor_type"


class Constant(gs.Constant):
    """A constant that does not list its readers."""

    __setattr__ = object.__setattr__

    def __init__(self, name: str, values: object, data_location: int | None = None) -> None:
        self.name = name
        self._values = values
        self.data_location = data_location
        self._export_dtype = None


class _Outward(SynchronizedList):
    """What a node reads or what writes a tensor: the other side lists this under its outputs."""

    __init__ = list.__init__  # type: ignore[assignment]
    field_name = "outputs"


class _Inward(SynchronizedList):
    """What a node writes or what reads a tensor: the other side lists this under its inputs."""

    __init__ = list.__init__  # type: ignore[assignment]
    field_name = "inputs"


def new_variable(name: str, dtype: object = None, shape: Shape | None = None, linked: bool = True) -> gs.Variable:
    """A variable that nothing writes or reads yet."""
    if type(name) is bytes:
        refuse(name)
    tensor = Variable(name, dtype, shape)
    if linked:
        unlink(tensor)
    return tensor


def new_constant(name: str, values: object, data_location: int | None = None, linked: bool = True) -> gs.Constant:
    """A constant that nothing reads yet."""
    if type(name) is bytes:
        refuse(name)
    tensor = Constant(name, values, data_location)
    if linked:
        unlink(tensor)
    return tensor


def make_constant(tensor: gs.Variable, values: object, export_dtype: object = None) -> None:
    """Turn a variable into a constant in its place, as ``to_constant`` does in several times as long."""
    tensor.__class__ = Constant if type(tensor) is Variable else gs.Constant  # type: ignore[assignment]
    fields = tensor.__dict__
    fields["_values"], fields["data_location"], fields["_export_dtype"] = values, None, export_dtype


def link(graph: gs.Graph) -> None:
    """Let the tensors of a graph without subgraphs list their readers and writers, as graphsurgeon's do."""
    for node in graph.nodes:
        for tensor in node.inputs:
            unlink(tensor)
        for tensor in node.outputs:
            unlink(tensor)
        for value in node.attrs.values():
            if isinstance(value, gs.Constant):
                unlink(value)
    for tensor in graph.inputs + graph.outputs:
        unlink(tensor)
    for node in graph.nodes:
        link_node(node)


def link_node(node: gs.Node) -> None:
    """Let the tensors of a node list it, and its lists keep that in step."""
    reads, writes = _Outward(node.inputs), _Inward(node.outputs)
    reads.parent_obj = writes.parent_obj = node
    set_attribute(node, "inputs", reads)
    set_attribute(node, "outputs", writes)
    if type(node) is Node:
        node.__class__ = gs.Node  # type: ignore[assignment]
    for tensor in reads:
        list.append(tensor.outputs, node)
    for tensor in writes:
        list.append(tensor.inputs, node)


def unlink(tensor: gs.Tensor) -> None:
    """Let a tensor list no readers and writers so far."""
    writers, readers = _Outward(), _Inward()
    writers.parent_obj = readers.parent_obj = tensor
    set_attribute(tensor, "inputs", writers)
    set_attribute(tensor, "outputs", readers)
    own = type(tensor)
    if own is Variable or own is Constant:
        tensor.__class__ = gs.Variable if own is Variable else gs.Constant  # type: ignore[assignment]


def refuse(text: bytes) -> None:
    """Raise UnicodeDecodeError: bytes are what protobuf makes of text that is not UTF-8."""
    text.decode()
