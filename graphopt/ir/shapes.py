"""Shape and type inference, without moving the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.importers.onnx_importer import get_onnx_tensor_dtype, get_onnx_tensor_shape

from graphopt.errors import ModelError
from graphopt.ir.convert import pairs
from graphopt.ir.limits import bounded_memory
from graphopt.ir.model import Model
from graphopt.ir.values import nbytes, onnx_dtype, peek
from graphopt.ir.view import tensors

# Larger initializers are replaced by their type and shape: inference reads values only of shape-like constants.
VALUES_BELOW = 2048
_LONGEST_VECTOR = 1 << 22  # elements; with a longer one about, values are not followed
_MEMORY = 1 << 29  # bytes that inference may take


def infer_shapes(model: Model, *, fresh: bool = False) -> None:
    """Fill in dtypes and shapes of the model's tensors by ONNX shape inference with data propagation.

    With ``fresh``, shapes recorded before are dropped first (graph inputs and outputs keep theirs): for passes that
    change channel counts. Tensors that inference cannot reach keep what was known of them, unless ``fresh``.
    """
    interface = {t.name for t in (*model.graph.inputs, *model.graph.outputs)}
    if fresh:
        for graph in model.graphs():
            for name, tensor in tensors(graph).items():
                if isinstance(tensor, gs.Variable) and name not in interface:
                    tensor.shape = None
    proto = _infer(model.to_proto(VALUES_BELOW), values=not any(map(_is_endless, _variables(model))))
    for graph, inferred in pairs(model.graph, proto.graph):
        # A tensor that a subgraph reads from outside is described outside; two branches may use a name for two tensors.
        known = {v.name: v for v in inferred.value_info}
        for name, tensor in tensors(graph).items():
            value = known.get(name)
            if value is None or not isinstance(tensor, gs.Variable) or name in interface:
                continue
            if not value.type.HasField("tensor_type"):
                continue
            if tensor.dtype is None and value.type.tensor_type.elem_type:
                tensor.dtype = get_onnx_tensor_dtype(value)
            shape = get_onnx_tensor_shape(value)
            if shape is not None:
                tensor.shape = [_tidy(d) for d in shape]
    model.touch()


def _infer(proto: onnx.ModelProto, values: bool) -> onnx.ModelProto:
    """ONNX shape inference; with ``values``, small integers are followed through the graph where memory allows it.

    For that, onnx writes out every element of the vectors that Add, Cast, Concat and their like read, at about 75
    bytes each, and a few bytes of a file can make a vector of any length. Raises ModelError if shapes alone are too
    much.
    """
    for data_prop in (True, False) if values else (False,):
        with contextlib.suppress(MemoryError), bounded_memory(_MEMORY):
            return onnx.shape_inference.infer_shapes(proto, data_prop=data_prop)
    raise ModelError(f"the shapes of the model's tensors alone take more than {_MEMORY >> 20} MiB of memory")


def _variables(model: Model) -> Iterator[gs.Variable]:
    for graph in model.graphs():
        yield from (t for t in tensors(graph).values() if isinstance(t, gs.Variable))


def _is_endless(tensor: gs.Variable) -> bool:
    shape = tensor.shape
    return shape is not None and len(shape) == 1 and isinstance(shape[0], int) and shape[0] > _LONGEST_VECTOR


def infer_node(model: Model, node: gs.Node) -> None:
    """Fill in what a node's own inference says of its outputs, graph outputs excepted; what was known stays."""
    try:
        found = _outputs_of(model, node)
    except _UNKNOWN:
        return  # nothing is known, which is allowed
    for tensor in node.outputs:
        if model.is_output(tensor):
            continue
        kind = found.get(tensor.name)
        if kind is None or not kind.HasField("tensor_type") or not isinstance(tensor, gs.Variable):
            continue
        value = onnx.ValueInfoProto(name=tensor.name, type=kind)
        if tensor.dtype is None and kind.tensor_type.elem_type:
            tensor.dtype = get_onnx_tensor_dtype(value)
        shape = get_onnx_tensor_shape(value)
        if shape is not None:
            old = tensor.shape if tensor.shape is not None and len(tensor.shape) == len(shape) else [None] * len(shape)
            tensor.shape = [
                was if now is None else now for was, now in zip(old, (_tidy(d) for d in shape), strict=True)
            ]


_UNKNOWN = (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError, ValueError)


def _outputs_of(model: Model, node: gs.Node) -> dict[str, onnx.TypeProto]:
    schema = onnx.defs.get_schema(node.op, model.opset, "")
    types = {t.name: _type(t) for t in node.inputs if t.name}
    data = {
        t.name: onnx.numpy_helper.from_array(np.asarray(peek(t)), t.name)
        for t in node.inputs
        if isinstance(t, gs.Constant) and nbytes(t) <= VALUES_BELOW
    }
    imports = [onnx.helper.make_opsetid(d, v) for d, v in model.header.opsets.items()]
    proto = OnnxExporter.export_node(node)
    return onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)


def _type(tensor: gs.Tensor) -> onnx.TypeProto:
    kind = TensorProto.UNDEFINED if tensor.dtype is None else onnx_dtype(tensor)
    # Open dimensions without a name are written as None, by graphsurgeon as -1 at times.
    shape = None if tensor.shape is None else [None if isinstance(d, int) and d < 0 else d for d in tensor.shape]
    return onnx.helper.make_tensor_type_proto(kind, shape)


def _tidy(dim: int | str | None) -> int | str | None:
    # Inference invents names for unknown dimensions; two runs would invent different ones.
    return None if isinstance(dim, str) and dim.startswith("unk__") else dim
