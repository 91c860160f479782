"""From an onnx-graphsurgeon graph to an onnx proto: what its own exporter writes, with each weight copied once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, constant_to_onnx_tensor, dtype_to_onnx
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from graphopt.ir.importer import EmptyList
from graphopt.ir.values import SAME_IN_FILES, StubValues, nbytes
from graphopt.ir.view import tensors


def write_graph(target: onnx.GraphProto, graph: gs.Graph, stub_above: int | None = None, weights: bool = True) -> None:
    """Write a graph into an empty proto. ``stub_above`` as in ``Model.to_proto``; ``weights``: also initializers."""
    target.name = graph.name
    if graph.doc_string:
        target.doc_string = graph.doc_string
    for node in graph.nodes:
        write_node(target.node.add(), node, stub_above)
    types: dict[object, onnx.TypeProto] = {}
    for values, port in ((target.input, graph.inputs), (target.output, graph.outputs)):
        for tensor in port:
            _write_value(values.add(), tensor, types)
    interface = {t.name for t in (*graph.inputs, *graph.outputs)}
    for name, tensor in tensors(graph).items():
        if isinstance(tensor, gs.Constant):
            if isinstance(tensor._values, SparseValues):
                target.sparse_initializer.add().CopyFrom(tensor._values.tensor)
            elif weights:
                write_tensor(target.initializer.add(), tensor, stub_above)
        elif name not in interface and (tensor.dtype is not None or tensor.shape is not None):
            _write_value(target.value_info.add(), tensor, types)


def node_proto(node: gs.Node) -> onnx.NodeProto:
    """A proto of one node."""
    proto = onnx.NodeProto()
    write_node(proto, node)
    return proto


def write_node(target: onnx.NodeProto, node: gs.Node, stub_above: int | None = None) -> None:
    """Write a node into an empty proto."""
    target.op_type = node.op
    target.input.extend([t.name for t in node.inputs])
    target.output.extend([t.name for t in node.outputs])
    if node.name:
        target.name = node.name
    if node.domain is not None:
        target.domain = node.domain
    for key, value in node.attrs.items():
        _write_attribute(target.attribute, key, value, stub_above)


def _write_attribute(attributes: Sequence[AttributeProto], key: str, value: Any, stub_above: int | None) -> None:
    kind = type(value)
    attr = attributes.add()  # type: ignore[attr-defined]
    attr.name = key
    if kind is int:
        attr.type, attr.i = AttributeProto.INT, value
    elif kind is float:
        attr.type, attr.f = AttributeProto.FLOAT, value
    elif kind is str:
        attr.type, attr.s = AttributeProto.STRING, value.encode()
    elif isinstance(value, list) and not value:
        # onnx cannot tell the type of such an attribute
        attr.type = value.kind if isinstance(value, EmptyList) else AttributeProto.INTS
    elif kind is list and all(type(v) is int for v in value):
        attr.type = AttributeProto.INTS
        attr.ints.extend(value)
    elif isinstance(value, gs.Constant):
        attr.type = AttributeProto.TENSOR
        write_tensor(attr.t, value)
    elif isinstance(value, gs.Graph):
        attr.type = AttributeProto.GRAPH
        write_graph(attr.g, value, stub_above)
    else:
        attr.CopyFrom(OnnxExporter.export_attributes({key: value})[0])


def is_raw(constant: gs.Constant) -> bool:
    """Whether the bytes of a constant's array are what a file holds."""
    values = constant._values
    if not isinstance(values, np.ndarray) or values.dtype not in SAME_IN_FILES or sys.byteorder != "little":
        return False
    return constant._export_dtype is None or dtype_to_onnx(constant._export_dtype) == _element(values.dtype)


def write_tensor(target: TensorProto, constant: gs.Constant, stub_above: int | None = None) -> None:
    """Write a constant that is not sparse into an empty proto; above so many bytes, as a stub."""
    values = constant._values
    if stub_above is not None and type(values) is not StubValues and nbytes(constant) > stub_above:
        values = StubValues(constant)
    if isinstance(values, LazyValues):
        target.CopyFrom(values.tensor)
        if target.name != constant.name:
            target.name = constant.name
        return
    if values.dtype.type.__module__ != "numpy" or values.dtype.kind in "OSU":
        # The bytes of the array are not those of the file's format.
        plain = values.astype(object) if values.dtype.kind in "SU" else values
        target.CopyFrom(numpy_helper.from_array(plain, constant.name))
        return
    if is_raw(constant):
        target.data_type = _element(values.dtype)
        target.name = constant.name
        target.dims.extend(values.shape)
        target.raw_data = values.tobytes()
    else:
        target.CopyFrom(constant_to_onnx_tensor(constant))
    if constant.data_location is not None:
        target.data_location = constant.data_location


def _write_value(target: onnx.ValueInfoProto, tensor: gs.Tensor, types: dict[object, onnx.TypeProto]) -> None:
    """Describe a tensor in an empty proto. ``types``: those made before, since many tensors are of one."""
    if isinstance(tensor, gs.Variable) and tensor.type != "tensor_type" and tensor.dtype is not None:
        target.CopyFrom(OnnxExporter.export_value_info_proto(tensor, False))
        return
    target.name = tensor.name
    if tensor.dtype is None:
        return
    shape = tensor.shape
    key = (_element(tensor.dtype), None if shape is None else tuple(shape))
    kind = types.get(key)
    if kind is None:
        kind = types[key] = _type(key[0], shape)
    target.type.CopyFrom(kind)


def _type(element: int, shape: Sequence[int | str | None] | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    kind = proto.tensor_type
    kind.elem_type = element
    if shape is not None:
        dims = kind.shape.dim
        dims.extend(())  # a scalar has a shape too
        for size in shape:
            dim = dims.add()
            if isinstance(size, str):
                dim.dim_param = size
            elif size is not None:
                dim.dim_value = size
    return proto


@cache
def _element(dtype: np.dtype | type | int) -> int:
    return int(dtype_to_onnx(dtype))
