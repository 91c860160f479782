"""Shape and type inference of one node."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.importers.onnx_importer import get_onnx_tensor_dtype, get_onnx_tensor_shape

from graphopt.ir.exporter import node_proto
from graphopt.ir.model import Model
from graphopt.ir.values import nbytes, onnx_dtype, peek

# Larger initializers are replaced by their type and shape: inference reads values only of shape-like constants.
VALUES_BELOW = 2048


def infer_node(model: Model, node: gs.Node) -> None:
    """Fill in what a node's own inference says of its outputs, graph outputs excepted; what was known stays."""
    if node.op in _LIKE_INPUT and len(node.outputs) == 1 and _like_input(model, node):
        return
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
            _refine(tensor, [tidy(d) for d in shape])


# The type and shape of their only output are those of their first input, in all versions.
_LIKE_INPUT = frozenset(
    """BatchNormalization Clip Elu Erf HardSigmoid HardSwish Identity LeakyRelu Neg Relu Sigmoid Softplus Sqrt
    Tanh""".split()
)


def _like_input(model: Model, node: gs.Node) -> bool:
    """Do what ``infer_node`` does for a node of ``_LIKE_INPUT``; False if it is no such case after all."""
    source, target = node.inputs[0], node.outputs[0]
    plain = isinstance(source, gs.Variable) and isinstance(target, gs.Variable) and source.type == "tensor_type"
    if not plain or source.dtype is None or source.shape is None or node.domain or model.is_output(target):
        return False
    if target.dtype is None:
        target.dtype = source.dtype
    _refine(target, [None if d == "" or (isinstance(d, int) and d < 0) else tidy(d) for d in source.shape])
    return True


def _refine(tensor: gs.Variable, shape: list[int | str | None]) -> None:
    """Take in a shape; what it leaves open stays as it was."""
    old = tensor.shape if tensor.shape is not None and len(tensor.shape) == len(shape) else [None] * len(shape)
    tensor.shape = [was if now is None else now for was, now in zip(old, shape, strict=True)]


_UNKNOWN = (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError, ValueError)


def _outputs_of(model: Model, node: gs.Node) -> dict[str, onnx.TypeProto]:
    """What ONNX says of a node's outputs, by their names; networks repeat the same layer many times."""
    proto = node_proto(node)
    proto.ClearField("name")
    types: list[bytes] = []
    data: list[bytes] = []
    for k, tensor in enumerate(node.inputs):
        if tensor.name:
            proto.input[k] = f"i{k}"
        types.append(_type(*_facts(tensor)) if tensor.name else b"")
        small = isinstance(tensor, gs.Constant) and nbytes(tensor) <= VALUES_BELOW
        data.append(numpy_helper.from_array(np.asarray(peek(tensor))).SerializeToString() if small else b"")
    for k, tensor in enumerate(node.outputs):
        if tensor.name:
            proto.output[k] = f"o{k}"
    opsets = tuple(model.header.opsets.items())
    found = _infer_outputs(proto.SerializeToString(deterministic=True), tuple(types), tuple(data), opsets)
    return {t.name: found[f"o{k}"] for k, t in enumerate(node.outputs) if f"o{k}" in found}


@lru_cache(maxsize=1024)
def _infer_outputs(
    node: bytes, types: tuple[bytes, ...], data: tuple[bytes, ...], opsets: tuple[tuple[str, int], ...]
) -> dict[str, onnx.TypeProto]:
    """Types by the names of outputs, ``o0`` and so on, of a node that reads ``i0`` and so on. Not to be changed."""
    proto = onnx.NodeProto.FromString(node)
    schema = onnx.defs.get_schema(proto.op_type, dict(opsets).get("", 1), "")
    known = {f"i{k}": onnx.TypeProto.FromString(t) for k, t in enumerate(types) if f"i{k}" in proto.input}
    values = {f"i{k}": TensorProto.FromString(d) for k, d in enumerate(data) if d}
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets]
    return onnx.shape_inference.infer_node_outputs(schema, proto, known, values, opset_imports=imports)


def _facts(tensor: gs.Tensor) -> tuple[int, tuple[int | str | None, ...] | None]:
    kind = TensorProto.UNDEFINED if tensor.dtype is None else onnx_dtype(tensor)
    # Open dimensions without a name are written as None, by graphsurgeon as -1 at times.
    shape = None if tensor.shape is None else tuple([None if isinstance(d, int) and d < 0 else d for d in tensor.shape])
    return kind, shape


@lru_cache(maxsize=1024)
def _type(kind: int, shape: tuple[int | str | None, ...] | None) -> bytes:
    return onnx.helper.make_tensor_type_proto(kind, shape).SerializeToString(deterministic=True)


def tidy(dim: int | str | None) -> int | str | None:
    """A dimension as it is kept."""
    # Inference invents names for unknown dimensions; two runs would invent different ones.
    return None if isinstance(dim, str) and dim.startswith("unk__") else dim
