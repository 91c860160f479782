"""From an onnx proto to an onnx-graphsurgeon graph: what its own importer makes, in a fraction of the time.

graphsurgeon's objects keep lists in step by way of ``__setattr__`` and list subclasses, which takes most of the time of
building a large graph one element after another. Here the objects are filled in directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter, get_onnx_tensor_dtype
from onnx_graphsurgeon.util.misc import SynchronizedList

from graphopt.errors import ModelError
from graphopt.ir.values import StoredSparse, StoredValues

# By the type of an attribute: the field that holds it, and how it is read.
_PLAIN = {AttributeProto.INT: "i", AttributeProto.FLOAT: "f"}
_LISTS = {AttributeProto.INTS: "ints", AttributeProto.FLOATS: "floats"}
_Tensors = dict[str, gs.Tensor]


class EmptyList(list):  # type: ignore[type-arg]
    """An attribute without elements, which has a type all the same."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind

    def copy(self) -> EmptyList:
        return EmptyList(self.kind)


class Values:
    """The stored values of the tensors of one proto, the same for every graph that is built from it."""

    def __init__(self) -> None:
        self._of: dict[int, StoredValues | StoredSparse | object] = {}

    def of(self, tensor: TensorProto | onnx.SparseTensorProto) -> object:
        # A tensor's Python object lives as long as its stored values, which hold it.
        found = self._of.get(id(tensor))
        if found is None:
            sparse = isinstance(tensor, onnx.SparseTensorProto)
            dtype = dtype_of(tensor.values.data_type if sparse else tensor.data_type)
            found = StoredSparse(tensor, dtype) if sparse else StoredValues(tensor, dtype)
            self._of[id(tensor)] = found
        return found


@cache
def dtype_of(kind: int) -> object:
    """graphsurgeon's dtype for a TensorProto data type: numpy's, or the number itself where numpy has none."""
    if kind not in TensorProto.DataType.values() or kind == TensorProto.UNDEFINED:
        raise ModelError(f"a tensor has the data type {kind}, which does not exist")
    return get_onnx_tensor_dtype(TensorProto(data_type=kind))


def import_graph(proto: onnx.ModelProto, values: Values, linked: bool = True) -> tuple[gs.Graph, _Tensors]:
    """Import the main graph of a proto, with its subgraphs and functions.

    Returns it with all tensors that it names by their names, those of subgraphs left out. With ``linked`` false, which
    is for graphs that have neither, its tensors do not list their readers and writers until ``link`` makes them.
    """
    opset, domains = OnnxImporter.get_opset(proto), proto.opset_import
    functions = [
        OnnxImporter.import_function(f, model_opset=opset, model_import_domains=domains) for f in proto.functions
    ]
    builder = _Builder(values, opset, domains, linked)
    named: _Tensors = {}
    graph = builder.graph(proto.graph, {}, functions, named)
    graph.producer_name, graph.producer_version = proto.producer_name, proto.producer_version
    graph.ir_version = proto.ir_version
    return graph, named


class _Builder:
    def __init__(
        self, values: Values, opset: int | None, domains: Sequence[onnx.OperatorSetIdProto], linked: bool
    ) -> None:
        self._values, self._opset, self._domains, self._linked = values, opset, domains, linked
        self._has_subgraphs = False
        self._types: dict[bytes, tuple[object, list[int | str | None] | None]] = {}  # many tensors are of one

    def graph(
        self,
        proto: onnx.GraphProto,
        outer: _Tensors,
        functions: Sequence[object] = (),
        named: _Tensors | None = None,
    ) -> gs.Graph:
        """Import a graph. ``named`` is filled with its tensors."""
        own: _Tensors = {} if named is None else named
        weights = set()
        for tensor in proto.initializer:
            name = tensor.name
            weights.add(name)
            if name not in own and name not in outer:
                own[name] = self._constant(name, tensor)
        for sparse in proto.sparse_initializer:
            if sparse.values.name not in own and sparse.values.name not in outer:
                own[sparse.values.name] = self._constant(sparse.values.name, sparse)
        weights.update([t.values.name for t in proto.sparse_initializer])
        for value in proto.value_info:
            self._describe(value, own, outer)
        inputs = [_interface(v, own) for v in proto.input if v.name not in weights]
        outputs = [_interface(v, own) for v in proto.output]
        nodes = [self._node(node, own, outer) for node in proto.node]
        plain = not functions and not self._has_subgraphs
        # The constructor walks all nodes for the functions of subgraphs.
        graph = gs.Graph(
            nodes=[] if plain else nodes,
            inputs=inputs,
            outputs=outputs,
            name=proto.name,
            doc_string=proto.doc_string,
            opset=self._opset,
            import_domains=self._domains,
            functions=functions,
        )
        graph.nodes = nodes
        return graph

    def _constant(self, name: str, tensor: TensorProto | onnx.SparseTensorProto) -> gs.Constant:
        holder = tensor.values if isinstance(tensor, onnx.SparseTensorProto) else tensor
        located = holder.HasField("data_location") or holder is not tensor
        location = int(holder.data_location) if located else None
        return new_constant(name, self._values.of(tensor), location, linked=self._linked)

    def _describe(self, value: onnx.ValueInfoProto, own: _Tensors, outer: _Tensors) -> None:
        """Take in what the file says of a tensor between operators; the first that says something counts."""
        known = own.get(value.name)
        if known is None:
            if value.name not in outer:
                own[value.name] = self._new_described(value)
        elif isinstance(known, gs.Variable):
            more = new_described(value)
            known.dtype = known.dtype or more.dtype
            known.shape = known.shape or more.shape

    def _new_described(self, value: onnx.ValueInfoProto) -> gs.Variable:
        kind = value.type
        if not kind.HasField("tensor_type"):
            return new_described(value)
        key = kind.SerializeToString()
        found = self._types.get(key)
        if found is None:
            found = self._types[key] = described(kind.tensor_type)
        dtype, shape = found
        return new_variable(value.name, dtype, None if shape is None else shape.copy(), self._linked)

    def _node(self, proto: onnx.NodeProto, own: _Tensors, outer: _Tensors) -> gs.Node:
        attrs: dict[str, object] = {}
        for attr in proto.attribute:
            attrs[attr.name] = self._attribute(attr, own, outer)
        inputs, outputs = [], []
        for name in proto.input:
            tensor = own.get(name)
            if tensor is None and outer:
                tensor = outer.get(name)
            if tensor is None:
                tensor = new_variable(name, linked=self._linked)
                if name:
                    own[name] = tensor
            inputs.append(tensor)
        for name in proto.output:  # never of an outer graph
            tensor = own.get(name)
            if tensor is None:
                tensor = new_variable(name, linked=self._linked)
                if name:
                    own[name] = tensor
            outputs.append(tensor)
        op, title = proto.op_type, proto.name
        domain = proto.domain if proto.HasField("domain") else None
        if not type(op) is type(title) is str or domain or attrs:
            for text in (op, title, domain, *attrs):
                if type(text) is bytes:
                    _refuse(text)
        return new_node(op, title, attrs, inputs, outputs, domain, self._linked)

    def _attribute(self, attr: AttributeProto, own: _Tensors, outer: _Tensors) -> object:
        kind = attr.type
        if attr.ref_attr_name:
            return OnnxImporter.import_attributes([attr], outer, own, self._opset, self._domains)[attr.name]
        if kind in _PLAIN:
            return getattr(attr, _PLAIN[kind])
        if kind in _LISTS:
            return list(getattr(attr, _LISTS[kind])) or EmptyList(kind)
        if kind == AttributeProto.STRING:
            return attr.s.decode()
        if kind == AttributeProto.STRINGS:
            return [s.decode() for s in attr.strings] or EmptyList(kind)
        if kind == AttributeProto.TENSOR:
            constant = self._constant(attr.t.name, attr.t)
            if not self._linked:
                _unlink(constant)
            return constant
        if kind == AttributeProto.GRAPH:
            self._has_subgraphs = True
            return self.graph(attr.g, {**outer, **own})
        raise ModelError(f"an attribute {attr.name!r} is of a type that graphopt does not read")


def _interface(value: onnx.ValueInfoProto, own: _Tensors) -> gs.Tensor:
    """The tensor of a graph's input or output."""
    if value.name not in own:
        own[value.name] = new_described(value)
    return own[value.name]


# --- objects of graphsurgeon, made without its constructors ------------------------------------------------------
#
# Its classes intercept every assignment to an attribute, and its lists take three calls to be made.


class _Outward(SynchronizedList):
    """What a node reads or what writes a tensor: the other side lists this under its outputs."""

    __init__ = list.__init__  # type: ignore[assignment]
    field_name = "outputs"


class _Inward(SynchronizedList):
    """What a node writes or what reads a tensor: the other side lists this under its inputs."""

    __init__ = list.__init__  # type: ignore[assignment]
    field_name = "inputs"


def new_described(value: onnx.ValueInfoProto) -> gs.Variable:
    """A variable as a value info describes it."""
    kind = value.type
    if not kind.HasField("tensor_type"):  # those of subgraphs may say nothing, or be of another kind
        return OnnxImporter.import_tensor(value)
    return new_variable(value.name, *described(kind.tensor_type))


def described(tensor: onnx.TypeProto.Tensor) -> tuple[object, list[int | str | None] | None]:
    """The dtype and the shape of a tensor type."""
    shape = shape_of(tensor) if tensor.HasField("shape") else None
    return dtype_of(tensor.elem_type) if tensor.elem_type else 0, shape


def shape_of(tensor: onnx.TypeProto.Tensor) -> list[int | str | None]:
    """The dimensions of a tensor type: numbers, names, and None for what it leaves open."""
    shape: list[int | str | None] = []
    for dim in tensor.shape.dim:
        said = dim.WhichOneof("value")
        shape.append(dim.dim_value if said == "dim_value" else dim.dim_param if said else None)
    return shape


def link(graph: gs.Graph) -> None:
    """Let the tensors of a graph without subgraphs list their readers and writers, as graphsurgeon's do."""
    for node in graph.nodes:
        for tensor in node.inputs:
            _unlink(tensor)
        for tensor in node.outputs:
            _unlink(tensor)
    for tensor in graph.inputs + graph.outputs:
        _unlink(tensor)
    for node in graph.nodes:
        for tensor in node.inputs:
            _append(tensor.outputs, node)
        for tensor in node.outputs:
            _append(tensor.inputs, node)


def _unlink(tensor: gs.Tensor) -> None:
    writers, readers = _Outward(), _Inward()
    writers.parent_obj = readers.parent_obj = tensor
    _set(tensor, "inputs", writers)
    _set(tensor, "outputs", readers)


def new_variable(
    name: str, dtype: object = None, shape: list[int | str | None] | None = None, linked: bool = True
) -> gs.Variable:
    """A variable that nothing writes or reads yet."""
    if type(name) is bytes:
        _refuse(name)
    tensor = _new(gs.Variable)
    _set(tensor, "name", name)
    if linked:
        _unlink(tensor)
    _set(tensor, "dtype", dtype)
    _set(tensor, "shape", shape)
    _set(tensor, "type", "tensor_type")
    return tensor


def new_constant(
    name: str, values: object, data_location: int | None = None, export_dtype: object = None, linked: bool = True
) -> gs.Constant:
    """A constant that nothing reads yet."""
    if type(name) is bytes:
        _refuse(name)
    tensor = _new(gs.Constant)
    _set(tensor, "name", name)
    if linked:
        _unlink(tensor)
    _set(tensor, "_values", values)
    _set(tensor, "data_location", data_location)
    _set(tensor, "_export_dtype", export_dtype)
    return tensor


def new_node(
    op: str,
    name: str,
    attrs: dict[str, object],
    inputs: Sequence[gs.Tensor],
    outputs: Sequence[gs.Tensor],
    domain: str | None = None,
    linked: bool = True,
) -> gs.Node:
    """A node; with ``linked``, the lists of its tensors' readers and writers are kept in step."""
    node = _new(gs.Node)
    reads, writes = _Outward(inputs), _Inward(outputs)
    reads.parent_obj = writes.parent_obj = node
    _set(node, "op", op)
    _set(node, "name", name)
    _set(node, "attrs", attrs)
    _set(node, "inputs", reads)
    _set(node, "outputs", writes)
    _set(node, "domain", domain)
    if linked:
        for tensor in inputs:
            _append(tensor.outputs, node)
        for tensor in outputs:
            _append(tensor.inputs, node)
    return node


def _refuse(text: bytes) -> None:
    """Raise UnicodeDecodeError: bytes are what protobuf makes of text that is not UTF-8."""
    text.decode()


_append, _new, _set = list.append, object.__new__, object.__setattr__
