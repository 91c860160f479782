"""From an onnx proto to an onnx-graphsurgeon graph: what its own importer makes, in a fraction of the time.

One walk over the nodes makes them and their tensors, and finds out whether the graph is sound: nearly all are, and
those that are not ``ir.verify`` looks at again, for what is wrong in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter, get_onnx_tensor_dtype

from graphopt.errors import ModelError
from graphopt.ir.objects import Node, Shape, link_node, new_constant, new_variable, refuse
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
            if isinstance(tensor, onnx.SparseTensorProto):
                found = StoredSparse(tensor, dtype_of(tensor.values.data_type))
            else:
                found = StoredValues(tensor, dtype_of(tensor.data_type))
            self._of[id(tensor)] = found
        return found


@cache
def dtype_of(kind: int) -> object:
    """graphsurgeon's dtype for a TensorProto data type: numpy's, or the number itself where numpy has none."""
    if kind not in TensorProto.DataType.values() or kind == TensorProto.UNDEFINED:
        raise ModelError(f"a tensor has the data type {kind}, which does not exist")
    return get_onnx_tensor_dtype(TensorProto(data_type=kind))


class Built(NamedTuple):
    """A graph; ``named``: all tensors that it names by their names, those of subgraphs left out.

    ``ordered``: whether for sure each tensor has one writer, which stands before its readers, and no name is missing.
    """

    graph: gs.Graph
    named: _Tensors
    ordered: bool


def import_graph(proto: onnx.ModelProto, values: Values, linked: bool = True) -> Built:
    """Import the main graph of a proto, with its subgraphs and functions.

    With ``linked`` false, which is for graphs that have neither, its tensors do not list their readers and writers
    until ``link`` makes them.
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
    return Built(graph, named, builder.ordered)


class _Builder:
    def __init__(
        self, values: Values, opset: int | None, domains: Sequence[onnx.OperatorSetIdProto], linked: bool
    ) -> None:
        self._values, self._opset, self._domains, self._linked = values, opset, domains, linked
        self._has_subgraphs = False
        self.ordered = not linked  # of graphs with subgraphs it is not known
        self._types: dict[bytes, tuple[object, Shape | None]] = {}  # many tensors are of one

    def graph(
        self,
        proto: onnx.GraphProto,
        outer: _Tensors,
        functions: Sequence[object] = (),
        named: _Tensors | None = None,
    ) -> gs.Graph:
        """Import a graph. ``named`` is filled with its tensors."""
        own: _Tensors = {}  # those that are written: by initializers, as inputs, by the nodes so far
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
        coming: _Tensors = {}  # those that the file speaks of before they are written
        for value in proto.value_info:
            self._describe(value, own, coming, outer)
        inputs = [self._interface(v, own, coming, own) for v in proto.input if v.name not in weights]
        outputs = [self._interface(v, own, coming, coming) for v in proto.output]
        nodes = self._nodes(proto, own, coming, outer)
        if not all(t.name in own for t in outputs):
            self.ordered = False
        if named is not None:
            named.update(coming)
            named.update(own)
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
        if isinstance(tensor, onnx.SparseTensorProto):
            location: int | None = int(tensor.values.data_location)
        else:
            location = int(tensor.data_location) if tensor.HasField("data_location") else None
        return new_constant(name, self._values.of(tensor), location, self._linked)

    def _describe(self, value: onnx.ValueInfoProto, own: _Tensors, coming: _Tensors, outer: _Tensors) -> None:
        """Take in what the file says of a tensor between operators; the first that says something counts."""
        name = value.name
        known = own.get(name) or coming.get(name)
        if known is None:
            if name not in outer:
                coming[name] = self._new_described(value)
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

    def _interface(self, value: onnx.ValueInfoProto, own: _Tensors, coming: _Tensors, place: _Tensors) -> gs.Tensor:
        """The tensor of a graph's input, which is to be found in ``own``, or output, which may be ``coming``."""
        name = value.name
        tensor = own.get(name)
        if tensor is None:
            tensor = coming.pop(name, None) or new_described(value)
            place[name] = tensor
        elif place is own:  # written twice
            self.ordered = False
        return tensor

    def _nodes(self, proto: onnx.GraphProto, own: _Tensors, coming: _Tensors, outer: _Tensors) -> list[gs.Node]:
        nodes: list[gs.Node] = []
        linked, find = self._linked, own.get
        for node in proto.node:
            attrs: dict[str, object] = {}
            attributes = node.attribute
            if attributes:
                for attr in attributes:
                    attrs[attr.name] = self._attribute(attr, own, coming, outer)
            inputs: list[gs.Tensor] = [*map(find, node.input[:])]  # type: ignore[list-item]
            if not all(inputs):
                inputs = [self._read(name, own, coming, outer) for name in node.input]
            outputs: list[gs.Tensor] = []
            for name in node.output[:]:  # never of an outer graph
                tensor = coming.pop(name, None) if coming else None
                if tensor is None:
                    tensor = find(name)
                    if tensor is None:
                        tensor = new_variable(name, None, None, linked)
                    else:  # written twice
                        self.ordered = False
                if name:
                    own[name] = tensor
                outputs.append(tensor)
            op, title = node.op_type, node.name
            domain = node.domain if node.HasField("domain") else None
            if not type(op) is type(title) is str or domain or attrs:
                for text in (op, title, domain, *attrs):
                    if type(text) is bytes:
                        refuse(text)
            made = Node(op, title, attrs, inputs, outputs, domain)
            if linked:
                link_node(made)
            nodes.append(made)
        return nodes

    def _read(self, name: str, own: _Tensors, coming: _Tensors, outer: _Tensors) -> gs.Tensor:
        """The tensor of this name that a node reads: a new one where a file leaves an input out, or has it later."""
        tensor = own.get(name)
        if tensor is not None:
            return tensor
        tensor = coming.get(name) or outer.get(name)
        if name:
            self.ordered = False
        if tensor is None:
            tensor = new_variable(name, linked=self._linked)
            if name:
                coming[name] = tensor
        return tensor

    def _attribute(self, attr: AttributeProto, own: _Tensors, coming: _Tensors, outer: _Tensors) -> object:
        kind = attr.type
        if attr.ref_attr_name:
            around = {**coming, **own}
            return OnnxImporter.import_attributes([attr], outer, around, self._opset, self._domains)[attr.name]
        if kind in _PLAIN:
            return getattr(attr, _PLAIN[kind])
        if kind in _LISTS:
            return getattr(attr, _LISTS[kind])[:] or EmptyList(kind)
        if kind == AttributeProto.STRING:
            return attr.s.decode()
        if kind == AttributeProto.STRINGS:
            return [s.decode() for s in attr.strings] or EmptyList(kind)
        if kind == AttributeProto.TENSOR:
            return self._constant(attr.t.name, attr.t)
        if kind == AttributeProto.GRAPH:
            self._has_subgraphs = True
            return self.graph(attr.g, {**outer, **coming, **own})
        raise ModelError(f"an attribute {attr.name!r} is of a type that graphopt does not read")


def new_described(value: onnx.ValueInfoProto) -> gs.Variable:
    """A variable as a value info describes it."""
    kind = value.type
    if not kind.HasField("tensor_type"):  # those of subgraphs may say nothing, or be of another kind
        return OnnxImporter.import_tensor(value)
    return new_variable(value.name, *described(kind.tensor_type))


def described(tensor: onnx.TypeProto.Tensor) -> tuple[object, Shape | None]:
    """The dtype and the shape of a tensor type."""
    shape = shape_of(tensor) if tensor.HasField("shape") else None
    return dtype_of(tensor.elem_type) if tensor.elem_type else 0, shape


def shape_of(tensor: onnx.TypeProto.Tensor) -> Shape:
    """The dimensions of a tensor type: numbers, names, and None for what it leaves open."""
    shape: Shape = []
    for dim in tensor.shape.dim:
        said = dim.WhichOneof("value")
        shape.append(dim.dim_value if said == "dim_value" else dim.dim_param if said else None)
    return shape
