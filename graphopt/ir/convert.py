"""Between onnx protos and the onnx-graphsurgeon graph, keeping what graphsurgeon alone would lose.

Kept here: graph inputs that have a default value, model-level strings, opset imports of every domain, initializers
that belong to an outer graph (graphsurgeon would repeat them in each subgraph that reads them), node names for nodes
that have none, dtypes that numpy lacks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.errors import ModelError

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
STUB_LOCATION = "graphopt-stub"
# Bits of an element of the types that share bytes; numpy gives each element a byte of its own.
PACKED_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}


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


class StubValues(LazyValues):
    """The type and shape of an initializer, exported without its data."""

    def __init__(self, tensor: gs.Constant) -> None:
        proto = TensorProto(name=tensor.name, data_type=onnx_dtype(tensor), dims=[int(d) for d in tensor.shape])
        proto.data_location = TensorProto.EXTERNAL
        proto.external_data.add(key="location", value=STUB_LOCATION)
        self.tensor, self.shape, self.dtype = proto, proto.dims, tensor.dtype


def onnx_dtype(tensor: gs.Tensor) -> int:
    """The TensorProto data type of a tensor whose dtype is known."""
    if isinstance(tensor, gs.Constant) and isinstance(tensor._values, LazyValues):
        proto = getattr(tensor._values, "tensor", None)
        if isinstance(proto, TensorProto):
            return int(proto.data_type)
    return int(dtype_to_onnx(tensor.dtype))


def nbytes(tensor: gs.Constant) -> int:
    """Bytes of an initializer's data, without loading it; for text, an estimate."""
    return data_bytes(onnx_dtype(tensor), math.prod(int(d) for d in tensor.shape))


def data_bytes(kind: int, count: int) -> int:
    """Bytes that ``count`` elements of a TensorProto data type take in a file; for text, an estimate."""
    if kind == TensorProto.STRING:
        return 16 * count
    if kind in PACKED_BITS:
        return (count * PACKED_BITS[kind] + 7) // 8
    return count * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def is_sparse(tensor: gs.Constant) -> bool:
    """Whether an initializer was given by its nonzero values, and is written so again."""
    return not isinstance(getattr(tensor._values, "tensor", TensorProto()), TensorProto)


def is_plain(tensor: gs.Constant) -> bool:
    """Whether the bytes of an initializer's array are the bytes that a file holds."""
    kind = onnx_dtype(tensor)
    return kind != TensorProto.STRING and kind not in PACKED_BITS and not is_sparse(tensor)


def walk_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph proto and, depth first, its subgraphs. Iterative: nesting depth is the file's choice."""
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        for node in current.node:
            for attr in node.attribute:
                if attr.type == AttributeProto.GRAPH:
                    stack.append(attr.g)
                elif attr.type == AttributeProto.GRAPHS:
                    stack.extend(attr.graphs)


def import_model(proto: onnx.ModelProto) -> tuple[gs.Graph, Header]:
    """Import a proto. Raises ModelError, naming the node, for what the IR cannot hold."""
    _refuse_unreadable(proto)
    header = Header(
        ir_version=max(proto.ir_version, _INITIALIZERS_APART),
        opsets={o.domain if o.domain != "ai.onnx" else "": o.version for o in proto.opset_import},
        metadata={p.key: p.value for p in proto.metadata_props},
        domain=proto.domain,
        model_version=proto.model_version,
        doc_string=proto.doc_string,
    )
    names = {t.name for t in proto.graph.input}
    defaults = [t for t in proto.graph.initializer if t.name in names]
    # The import below reads protos without copying them: what it must not see is taken out of a copy.
    if defaults and proto.ir_version < _INITIALIZERS_APART:
        weights = {t.name for t in defaults}
        light = onnx.ModelProto()
        light.CopyFrom(proto)
        del light.graph.input[:]
        light.graph.input.extend(t for t in proto.graph.input if t.name not in weights)
        proto = light
    elif defaults:
        kept = [t for t in proto.graph.initializer if t.name not in names]
        header.input_defaults = {t.name: t for t in defaults}
        light = onnx.ModelProto()
        light.CopyFrom(proto)
        del light.graph.initializer[:]
        light.graph.initializer.extend(kept)
        proto = light
    for sub in list(walk_graphs(proto.graph))[1:]:
        header.inner_initializers.update(t.name for t in sub.initializer)
    try:
        graph = gs.import_onnx(proto)
    except Exception as error:
        raise ModelError(f"the model's graph cannot be imported: {error}") from error
    _name_nodes(graph)
    return graph, header


def _refuse_unreadable(proto: onnx.ModelProto) -> None:
    for graph in walk_graphs(proto.graph):
        for node in graph.node:
            for attr in node.attribute:
                if attr.type not in _READABLE and not attr.ref_attr_name:
                    kind = AttributeProto.AttributeType.Name(attr.type)
                    raise ModelError(
                        f"node {node.name or node.op_type!r} has an attribute {attr.name!r} of type {kind}, "
                        "which graphopt does not read",
                        "such attributes do not occur in image classifiers; is this the right model?",
                    )
        # Types other than tensors carry no shapes that the passes could use, and graphsurgeon cannot write them.
        keep = [v for v in graph.value_info if v.type.HasField("tensor_type")]
        if len(keep) != len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(keep)
    for value in [*proto.graph.input, *proto.graph.output]:
        if not value.type.HasField("tensor_type"):
            raise ModelError(f"graph input or output {value.name!r} is not a tensor")


def _name_nodes(graph: gs.Graph) -> None:
    """Give a name to every node without one: reports and exclusions speak of nodes by name."""
    graphs = _all_graphs(graph)
    taken = {node.name for g in graphs for node in g.nodes}
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


def export_model(graph: gs.Graph, header: Header, stub_above: int | None = None) -> onnx.ModelProto:
    """The inverse of ``import_model``; ``stub_above`` as in ``Model.to_proto``."""
    stubbed: list[tuple[gs.Constant, object]] = []
    if stub_above is not None:
        for g in _all_graphs(graph):
            for tensor in g.tensors().values():
                big = isinstance(tensor, gs.Constant) and type(tensor._values) is not StubValues
                if big and not is_sparse(tensor) and nbytes(tensor) > stub_above:
                    stubbed.append((tensor, tensor._values))
                    tensor._values = StubValues(tensor)
    try:
        opsets = [onnx.helper.make_opsetid(d, v) for d, v in header.opsets.items()]
        graph.import_domains = opsets
        proto = gs.export_onnx(
            graph,
            do_type_check=False,
            ir_version=header.ir_version,
            domain=header.domain,
            model_version=header.model_version,
            doc_string=header.doc_string,
        )
    finally:
        for tensor, values in stubbed:
            tensor._values = values  # type: ignore[assignment]
    proto.ir_version = header.ir_version
    for key in sorted(header.metadata):
        proto.metadata_props.add(key=key, value=header.metadata[key])
    _hoist_shared(proto.graph, header.inner_initializers)
    proto.graph.initializer.extend(header.input_defaults.values())
    return proto


def _hoist_shared(main: onnx.GraphProto, inner: set[str]) -> None:
    """Keep one copy, in the main graph, of initializers that subgraphs read from an outer scope."""
    present = {t.name for t in main.initializer}
    for sub in list(walk_graphs(main))[1:]:
        own = [t for t in sub.initializer if t.name in inner]
        for tensor in sub.initializer:
            if tensor.name not in inner and tensor.name not in present:
                main.initializer.append(tensor)
                present.add(tensor.name)
        if len(own) != len(sub.initializer):
            del sub.initializer[:]
            sub.initializer.extend(own)


def copy_graph(graph: gs.Graph) -> gs.Graph:
    """A structural copy that shares weight arrays; attribute lists are the copy's own."""
    twin = graph.copy()
    twin.producer_name, twin.producer_version = graph.producer_name, graph.producer_version
    for ours, theirs in zip(_all_graphs(graph), _all_graphs(twin), strict=True):
        originals = ours.tensors()
        for name, tensor in theirs.tensors().items():
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
                    node.attrs[key] = list(value)
    return twin


def _all_graphs(graph: gs.Graph) -> list[gs.Graph]:
    return [graph, *graph.subgraphs(recursive=True)]
