"""Between onnx protos and the onnx-graphsurgeon graph, keeping what graphsurgeon alone would lose.

Kept here: graph inputs that have a default value, model-level strings, opset imports of every domain, initializers
that belong to an outer graph (graphsurgeon would repeat them in each subgraph that reads them), node names for nodes
that have none, dtypes that numpy lacks, attributes that are empty lists.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from graphopt.errors import ModelError
from graphopt.ir.contents import Contents
from graphopt.ir.exporter import write_graph
from graphopt.ir.importer import EmptyList, Values, import_graph
from graphopt.ir.values import StoredSparse, StoredValues
from graphopt.ir.view import all_graphs, subgraphs, tensors

_KINDS = frozenset(TensorProto.DataType.values())
_READABLE = {
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.TENSOR,
    AttributeProto.GRAPH,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
    AttributeProto.STRINGS,
}
# Before this IR version every initializer had to be listed as an input too, which did not mean that a caller may
# feed it (ONNX Runtime reads such files in the same way). They are imported as plain weights, and written as this
# version.
_INITIALIZERS_APART = 4


@dataclass
class Header:
    """What an ONNX file says besides its graph."""

    ir_version: int = 10
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    domain: str = ""
    model_version: int = 0
    doc_string: str = ""
    input_defaults: dict[str, TensorProto] = field(default_factory=dict)
    inner_initializers: set[str] = field(default_factory=set)

    def copy(self) -> Header:
        twin = copy.copy(self)
        twin.opsets, twin.metadata = dict(self.opsets), dict(self.metadata)
        twin.input_defaults = dict(self.input_defaults)
        twin.inner_initializers = set(self.inner_initializers)
        return twin


class Imported(NamedTuple):
    """The graph of a proto, and ``named``: its tensors by name, those of subgraphs left out.

    The graph may still have to be linked (``ir.objects.link``), as ``blueprint.linked`` says. ``sound``: whether
    ``ir.verify`` would find nothing wrong with it, for sure.
    """

    graph: gs.Graph
    header: Header
    blueprint: Blueprint
    named: dict[str, gs.Tensor]
    sound: bool


def import_model(proto: onnx.ModelProto, contents: Contents | None = None) -> Imported:
    """Import a proto. Raises ModelError, naming the node, for what the IR cannot hold, UnicodeDecodeError for names.

    The proto must not be changed afterwards.
    """
    contents = contents or Contents.of(proto)
    _refuse_unreadable(proto, contents)
    header = Header(
        ir_version=max(proto.ir_version, _INITIALIZERS_APART),
        opsets={o.domain if o.domain != "ai.onnx" else "": o.version for o in proto.opset_import},
        metadata={p.key: p.value for p in proto.metadata_props},
        domain=proto.domain,
        model_version=proto.model_version,
        doc_string=proto.doc_string,
    )
    metadata = (text for p in proto.metadata_props for text in (p.key, p.value))
    texts = (header.domain, header.doc_string, proto.graph.name, proto.graph.doc_string, proto.producer_name)
    for text in (*header.opsets, *metadata, *texts, proto.producer_version):
        if isinstance(text, bytes):  # what protobuf makes of text that is not UTF-8
            text.decode()
    names = {t.name for t in proto.graph.input}
    defaults = [t for t in proto.graph.initializer if t.name in names]
    if defaults:
        # The import below reads protos without copying them: what it must not see is taken out of a copy.
        light = onnx.ModelProto()
        light.CopyFrom(proto)
        if proto.ir_version < _INITIALIZERS_APART:
            weights = {t.name for t in defaults}
            hidden, kept = light.graph.input, [t for t in proto.graph.input if t.name not in weights]
        else:
            header.input_defaults = {t.name: t for t in defaults}
            hidden, kept = light.graph.initializer, [t for t in proto.graph.initializer if t.name not in names]
        del hidden[:]
        hidden.extend(kept)
        proto = light
    for sub in contents.graphs[1:]:
        header.inner_initializers.update(t.name for t in sub.initializer)
        header.inner_initializers.update(t.values.name for t in sub.sparse_initializer)
    blueprint = Blueprint(proto, linked=len(contents.graphs) > 1 or len(proto.functions) > 0)
    try:
        graph, named, sound = blueprint.build_named()
    except (ModelError, UnicodeDecodeError):
        raise
    except Exception as error:
        raise ModelError(f"the model's graph cannot be imported: {error}") from error
    return Imported(graph, header, blueprint, named, sound)


class Blueprint:
    """A proto from which the graph of a model can be built again, with the same values in it.

    ``linked``: whether the tensors of what it builds list their readers and writers from the start.
    """

    def __init__(self, proto: onnx.ModelProto, linked: bool) -> None:
        self.proto, self.linked, self._values = proto, linked, Values()

    def build(self) -> gs.Graph:
        """A new graph, every node of which has a name."""
        return self.build_named()[0]

    def build_named(self) -> tuple[gs.Graph, dict[str, gs.Tensor], bool]:
        """The same, its tensors by name, those of subgraphs left out, and whether it is sound for sure."""
        graph, named, ordered = import_graph(self.proto, self._values, self.linked)
        for function, written in zip(graph.functions, self.proto.functions, strict=True):
            _finish_function(function, written)
        distinct = _name_nodes(_all_graphs(graph) if self.linked else [graph])
        return graph, named, ordered and distinct


def _finish_function(function: gs.Function, proto: onnx.FunctionProto) -> None:
    """What graphsurgeon's own importer, which reads functions, does not keep."""
    for node, read in _body_pairs(function, proto):
        for attr in read.attribute:
            if attr.name in node.attrs and isinstance(node.attrs[attr.name], list) and not node.attrs[attr.name]:
                node.attrs[attr.name] = EmptyList(attr.type)
    for g in _all_graphs(function):
        for tensor in _constants(g):
            if isinstance(tensor._values, SparseValues):
                tensor._values = StoredSparse(tensor._values.tensor, tensor._values.dtype)
            elif isinstance(tensor._values, LazyValues):
                tensor._values = StoredValues(tensor._values.tensor, tensor._values.dtype)


def pairs(graph: gs.Graph, proto: onnx.GraphProto) -> Iterator[tuple[gs.Graph, onnx.GraphProto]]:
    """A graph and its proto, then each subgraph and its proto."""
    stack = [(graph, proto)]
    while stack:
        ours, theirs = stack.pop()
        yield ours, theirs
        for k, node in enumerate(ours.nodes):
            if node.attrs and subgraphs(node):
                written = theirs.node[k].attribute
                stack.extend((node.attrs[a.name], a.g) for a in written if a.type == AttributeProto.GRAPH)


def _body_pairs(function: gs.Function, proto: onnx.FunctionProto) -> Iterator[tuple[gs.Node, onnx.NodeProto]]:
    """Every node of a function and its proto, those of subgraphs included."""
    # An exported function may begin with nodes that stand for constants.
    for node, node_proto in zip(reversed(function.nodes), reversed(proto.node), strict=False):
        yield node, node_proto
        for attr in node_proto.attribute:
            if attr.type == AttributeProto.GRAPH and not attr.ref_attr_name:
                for ours, theirs in pairs(node.attrs[attr.name], attr.g):
                    yield from zip(ours.nodes, theirs.node, strict=True)


def _constants(graph: gs.Graph) -> Iterator[gs.Constant]:
    """Constants of one list of nodes: initializers and attributes; some more than once."""
    yield from (t for t in tensors(graph).values() if isinstance(t, gs.Constant))
    for node in graph.nodes:
        yield from (t for t in node.attrs.values() if isinstance(t, gs.Constant))


def _refuse_unreadable(proto: onnx.ModelProto, contents: Contents) -> None:
    if contents.overloaded is not None:
        node = contents.overloaded
        raise ModelError(
            f"node {node.name or node.op_type!r} calls one of several functions of the same name, "
            "which graphopt does not read",
            "export the model without functions, or inline them",
        )
    for node, attr in contents.attributes:
        if attr.type not in _READABLE and not attr.ref_attr_name:
            kind = AttributeProto.AttributeType.Name(attr.type)
            raise ModelError(
                f"node {node.name or node.op_type!r} has an attribute {attr.name!r} of type {kind}, "
                "which graphopt does not read",
                "such attributes do not occur in image classifiers; is this the right model?",
            )
    for graph in (*contents.graphs, *contents.inner):
        # Types other than tensors carry no shapes that the passes could use, and graphsurgeon cannot write them.
        if not all(v.type.HasField("tensor_type") for v in graph.value_info):
            keep = [v for v in graph.value_info if v.type.HasField("tensor_type")]
            del graph.value_info[:]
            graph.value_info.extend(keep)
            contents.altered = True
    for sub in contents.graphs[1:]:
        for value in [*sub.input, *sub.output]:
            kind = value.type.WhichOneof("value") or (
                "value of no known type" if value.type.ByteSize() else "tensor_type"
            )
            if kind not in ("tensor_type", "sequence_type", "sparse_tensor_type"):
                raise ModelError(f"{value.name!r} in a subgraph is a {kind}, which graphopt does not read")
    for value in [*proto.graph.input, *proto.graph.output]:
        if not value.type.HasField("tensor_type"):
            raise ModelError(f"graph input or output {value.name!r} is not a tensor")
    sound: set[bytes] = set()  # many tensors are of one type
    for graph in contents.graphs:
        for value in [*graph.input, *graph.output, *graph.value_info]:
            key = value.type.SerializeToString()
            if key in sound:
                continue
            # protobuf gives text that is not UTF-8 as bytes
            if any(isinstance(dim.dim_param, bytes) for dim in value.type.tensor_type.shape.dim):
                raise ModelError(f"a dimension of {value.name!r} has a name that is not UTF-8 text")
            kind = value.type.tensor_type.elem_type
            if value.type.HasField("tensor_type") and kind not in _KINDS:
                raise ModelError(f"{value.name!r} has the data type {kind}, which does not exist")
            sound.add(key)


def _name_nodes(graphs: Sequence[gs.Graph]) -> bool:
    """Give a name to every node without one: reports and exclusions speak of nodes by name.

    Returns whether no two had the same.
    """
    given = [node.name for g in graphs for node in g.nodes if node.name]
    taken = set(given)
    distinct = len(taken) == len(given)
    if len(given) == sum(len(g.nodes) for g in graphs):
        return distinct
    counts: dict[str, int] = {}
    for g in graphs:
        for node in g.nodes:
            while not node.name:
                k = counts.get(node.op, 0)
                counts[node.op] = k + 1
                name = f"{node.op}_{k}"
                if name not in taken:
                    node.name = name
                    taken.add(name)
    return distinct


def export_model(
    graph: gs.Graph, header: Header, stub_above: int | None = None, weights: bool = True
) -> onnx.ModelProto:
    """The inverse of ``import_model``; ``stub_above`` as in ``Model.to_proto``. Without ``weights``: no initializers.

    Those of subgraphs are written all the same.
    """
    proto = onnx.ModelProto(
        ir_version=header.ir_version,
        domain=header.domain,
        model_version=header.model_version,
        doc_string=header.doc_string,
        producer_name=graph.producer_name,
        producer_version=graph.producer_version,
    )
    graphs = _all_graphs(graph)
    used = {n.domain: 1 for g in graphs for n in g.nodes if n.domain and n.domain not in header.opsets}
    for domain, version in {**header.opsets, **used}.items():
        proto.opset_import.add(domain=domain, version=version)
    write_graph(proto.graph, graph, stub_above, weights)
    for function in graph.functions:
        _write_function(proto, function)
    for key in sorted(header.metadata):
        proto.metadata_props.add(key=key, value=header.metadata[key])
    if len(graphs) > 1:
        _hoist_shared(proto.graph, header.inner_initializers)
    proto.graph.initializer.extend(header.input_defaults.values())
    return proto


def _write_function(proto: onnx.ModelProto, function: gs.Function) -> None:
    """Add a function to a proto by way of graphsurgeon's exporter, and what that cannot write."""
    held: list[tuple[gs.Constant, object]] = []
    emptied: list[tuple[gs.Node, dict[str, object]]] = []
    for g in _all_graphs(function):
        for tensor in _constants(g):
            values = tensor._values
            if not isinstance(values, LazyValues) and (
                values.dtype.type.__module__ != "numpy" or values.dtype.kind in "OSU"
            ):
                held.append((tensor, values))
                plain = values.astype(object) if values.dtype.kind in "SU" else values
                tensor._values = StoredValues(numpy_helper.from_array(plain, tensor.name), values.dtype)
        for node in g.nodes:
            if any(isinstance(v, list) and not v for v in node.attrs.values()):
                emptied.append((node, node.attrs))
                node.attrs = {k: v for k, v in node.attrs.items() if not isinstance(v, list) or v}
    try:
        written = OnnxExporter.export_function(function)
    finally:
        for tensor, values in held:
            tensor._values = values  # type: ignore[assignment]
        for node, attrs in emptied:
            node.attrs = attrs
    for node, node_proto in _body_pairs(function, written):
        for key, value in node.attrs.items():
            if isinstance(value, list) and not value:
                kind = value.kind if isinstance(value, EmptyList) else AttributeProto.INTS
                node_proto.attribute.add(name=key, type=kind)
    proto.functions.append(written)


def _hoist_shared(main: onnx.GraphProto, inner: set[str]) -> None:
    """Keep one copy, in the scope that owns it, of initializers that subgraphs read from an outer scope."""
    present = {t.name for t in main.initializer} | {t.values.name for t in main.sparse_initializer}
    stack: list[tuple[onnx.GraphProto, frozenset[str]]] = [(main, frozenset())]
    while stack:
        graph, above = stack.pop()
        if graph is not main:
            for ours, theirs in (
                (main.initializer, graph.initializer),
                (main.sparse_initializer, graph.sparse_initializer),
            ):
                own = []
                for tensor in theirs:
                    name = tensor.name if isinstance(tensor, TensorProto) else tensor.values.name
                    if name in inner:
                        if name not in above:
                            own.append(tensor)
                    elif name not in present:
                        ours.append(tensor)
                        present.add(name)
                if len(own) != len(theirs):
                    del theirs[:]
                    theirs.extend(own)
            above |= {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        for node in graph.node:
            stack.extend((a.g, above) for a in node.attribute if a.type == AttributeProto.GRAPH)


def copy_graph(graph: gs.Graph) -> gs.Graph:
    """A structural copy that shares weight arrays; attribute lists are the copy's own."""
    twin = graph.copy()
    twin.producer_name, twin.producer_version = graph.producer_name, graph.producer_version
    for ours, theirs in zip(_all_graphs(graph), _all_graphs(twin), strict=True):
        originals = tensors(ours)
        for name, tensor in tensors(theirs).items():
            # graphsurgeon pins the export dtype of a copied constant, so that new values of another dtype could
            # not be written.
            original = originals[name]
            if isinstance(tensor, gs.Constant) and isinstance(original, gs.Constant):
                tensor._export_dtype = original._export_dtype
                tensor.data_location = original.data_location
            elif isinstance(tensor, gs.Variable) and isinstance(original, gs.Variable):
                tensor.type = original.type
                tensor.shape = None if original.shape is None else list(original.shape)
        for node in theirs.nodes:
            for key, value in node.attrs.items():
                if isinstance(value, list):
                    node.attrs[key] = value.copy()
                elif isinstance(value, gs.Constant):
                    node.attrs[key] = gs.Constant(value.name, value._values, value.data_location, value._export_dtype)
    return twin


def _all_graphs(graph: gs.Graph) -> list[gs.Graph]:
    return list(all_graphs(graph))
