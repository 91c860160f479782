"""Shape and type inference, without moving the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.importers.onnx_importer import get_onnx_tensor_dtype, get_onnx_tensor_shape

from graphopt.errors import ModelError
from graphopt.ir.convert import Blueprint, Imported, pairs
from graphopt.ir.exporter import node_proto
from graphopt.ir.importer import dtype_of, shape_of
from graphopt.ir.limits import bounded_memory
from graphopt.ir.model import Model
from graphopt.ir.objects import set_attribute
from graphopt.ir.values import data_bytes, nbytes, onnx_dtype, peek, write_stub
from graphopt.ir.view import all_graphs, tensors

# Larger initializers are replaced by their type and shape: inference reads values only of shape-like constants.
VALUES_BELOW = 2048
_LONGEST_VECTOR = 1 << 22  # elements; with a longer one about, values are not followed
_MEMORY = 1 << 29  # bytes that inference may take


def infer_shapes(model: Model, *, fresh: bool = False) -> None:
    """Fill in dtypes and shapes of the model's tensors by ONNX shape inference with data propagation.

    With ``fresh``, shapes recorded before are dropped first (graph inputs and outputs keep theirs): for passes that
    change channel counts. Tensors that inference cannot reach keep what was known of them, unless ``fresh``.
    """
    if fresh:
        _forget(model)
    inferred = _infer(model.to_proto(VALUES_BELOW), values=not _endless(model.bare))
    _take_in(model.bare, inferred)
    model.touch()


def infer_from_inputs(model: Model) -> list[list[int | str | None] | None]:
    """Infer all shapes anew, also those of graph outputs: these are returned, in order, and the model's own stay.

    Raises onnx.shape_inference.InferenceError where an operator does not take what it is given.
    """
    _forget(model)
    proto = model.to_proto(VALUES_BELOW)
    for value in proto.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()
    inferred = _infer(proto, values=not _endless(model.bare), strict=True)
    _take_in(model.bare, inferred)
    model.touch()
    kinds = [value.type.tensor_type for value in inferred.graph.output]
    return [shape_of(kind) if kind.HasField("shape") else None for kind in kinds]


def _forget(model: Model) -> None:
    interface = {t.name for t in (*model.bare.inputs, *model.bare.outputs)}
    for graph in model.bare_graphs():
        for name, tensor in tensors(graph).items():
            if isinstance(tensor, gs.Variable) and name not in interface:
                tensor.shape = None


class Original:
    """A model as it was read, with its shapes inferred."""

    def __init__(self, blueprint: Blueprint, inferred: onnx.ModelProto) -> None:
        self._blueprint, self._inferred = blueprint, inferred
        self.linked = blueprint.linked

    def build(self) -> gs.Graph:
        graph, named, _ = self._blueprint.build_named()
        _take_in(graph, self._inferred, named)
        return graph


def infer_original(imported: Imported, light: onnx.ModelProto | bytes) -> Original:
    """Like ``infer_shapes``, for a graph as its blueprint has just built it: nothing is exported for it.

    ``light`` is the light copy of the blueprint's proto, and is used up, or the bytes of one that is light itself.
    """
    blueprint = imported.blueprint
    if not isinstance(light, bytes):
        for target, tensor in zip(light.graph.initializer, blueprint.proto.graph.initializer, strict=True):
            if _is_large(tensor):
                target.Clear()
                write_stub(target, tensor.name, tensor.data_type, tensor.dims)
    written, named = blueprint.proto.graph, imported.named
    described = (named.get(v.name) for v in (*written.input, *written.output, *written.value_info))
    others = (t for graph in islice(all_graphs(imported.graph), 1, None) for t in tensors(graph).values())
    endless = any(t is not None and _is_endless(t) for t in chain(described, others))
    inferred = _infer(light, values=not endless)
    _take_in(imported.graph, inferred, imported.named)
    return Original(blueprint, inferred)


def serialized(model: onnx.ModelProto | bytes) -> bytes:
    return model if isinstance(model, bytes) else model.SerializeToString()


def light_copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model for ``onnx.checker``, with empty tensors for its large initializers.

    The checker looks at the values of each tensor alone, and whether those are as many as its shape says; ``ir.limits``
    does the same.
    """
    light = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _copy_field(light, field.name, value)
    for field, value in proto.graph.ListFields():
        if field.name != "initializer":
            _copy_field(light.graph, field.name, value)
    for tensor in proto.graph.initializer:
        target = light.graph.initializer.add()
        # Of any other form than that of bytes alone, the checker may have more to say.
        if _is_large(tensor) and _is_bytes(tensor):
            target.name, target.data_type, target.raw_data = tensor.name, tensor.data_type, b""
            target.dims.append(0)
        else:
            target.CopyFrom(tensor)
    return light


def _is_large(tensor: TensorProto) -> bool:
    return _exceeds(tensor.data_type, tuple(tensor.dims))


@lru_cache(maxsize=1024)
def _exceeds(kind: int, shape: tuple[int, ...]) -> bool:
    return data_bytes(kind, math.prod(shape)) > VALUES_BELOW


def _is_bytes(tensor: TensorProto) -> bool:
    """Whether all that a tensor holds is a name, a type, a shape, and its values as bytes."""
    if tensor.data_type == TensorProto.STRING or not tensor.HasField("raw_data"):
        return False
    others = (tensor.float_data, tensor.int32_data, tensor.string_data, tensor.int64_data, tensor.double_data)
    more = (*others, tensor.uint64_data, tensor.external_data)
    return not any(map(len, more)) and not tensor.HasField("data_location")


def _copy_field(target: onnx.ModelProto | onnx.GraphProto, name: str, value: Any) -> None:
    if isinstance(value, int | str | bytes):
        setattr(target, name, value)
    elif hasattr(value, "ListFields"):
        getattr(target, name).CopyFrom(value)
    else:
        getattr(target, name).extend(value)


def _take_in(main: gs.Graph, proto: onnx.ModelProto, named: Mapping[str, gs.Tensor] | None = None) -> None:
    """Give the tensors of a graph the types that they lack and the shapes that inference has found.

    ``named``: the tensors of the main graph, where they are at hand.
    """
    interface = {t.name for t in (*main.inputs, *main.outputs)}
    types: dict[bytes, tuple[int, list[int | str | None] | None]] = {}  # many tensors are of one type
    for graph, inferred in pairs(main, proto.graph):
        # A tensor that a subgraph reads from outside is described outside; two branches may use a name for two tensors.
        found = tensors(graph) if named is None or graph is not main else named
        for value in inferred.value_info:
            name = value.name
            tensor = found.get(name)
            if tensor is None or not isinstance(tensor, gs.Variable) or name in interface:
                continue
            kind = value.type
            key = kind.SerializeToString()
            known = types.get(key)
            if known is None:
                known = types[key] = _described(kind)
            element, shape = known
            if element and tensor.dtype is None:
                set_attribute(tensor, "dtype", dtype_of(element))
            if shape is not None:
                set_attribute(tensor, "shape", shape.copy())


def _described(kind: onnx.TypeProto) -> tuple[int, list[int | str | None] | None]:
    """Element type and shape of a type, 0 and None for what it leaves open."""
    if not kind.HasField("tensor_type"):
        return 0, None
    inner = kind.tensor_type
    return inner.elem_type, [_tidy(d) for d in shape_of(inner)] if inner.HasField("shape") else None


def _infer(proto: onnx.ModelProto | bytes, values: bool, strict: bool = False) -> onnx.ModelProto:
    """ONNX shape inference; with ``values``, small integers are followed through the graph where memory allows it.

    For that, onnx writes out every element of the vectors that Add, Cast, Concat and their like read, at about 75
    bytes each, and a few bytes of a file can make a vector of any length. Raises ModelError if shapes alone are too
    much.
    """
    for data_prop in (True, False) if values else (False,):
        with contextlib.suppress(MemoryError), bounded_memory(_MEMORY):
            return onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=data_prop)
    raise ModelError(f"the shapes of the model's tensors alone take more than {_MEMORY >> 20} MiB of memory")


def _endless(main: gs.Graph) -> bool:
    """Whether a vector is so long that its elements should not be followed."""
    return any(_is_endless(t) for graph in all_graphs(main) for t in tensors(graph).values())


def _is_endless(tensor: gs.Tensor) -> bool:
    if not isinstance(tensor, gs.Variable):
        return False
    shape = tensor.shape
    return shape is not None and len(shape) == 1 and isinstance(shape[0], int) and shape[0] > _LONGEST_VECTOR


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
            old = tensor.shape if tensor.shape is not None and len(tensor.shape) == len(shape) else [None] * len(shape)
            tensor.shape = [
                was if now is None else now for was, now in zip(old, (_tidy(d) for d in shape), strict=True)
            ]


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
    shape = [None if d == "" or (isinstance(d, int) and d < 0) else _tidy(d) for d in source.shape]
    old = target.shape if target.shape is not None and len(target.shape) == len(shape) else [None] * len(shape)
    target.shape = [was if now is None else now for was, now in zip(old, shape, strict=True)]
    return True


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
    proto = node_proto(node)
    return onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)


def _type(tensor: gs.Tensor) -> onnx.TypeProto:
    kind = TensorProto.UNDEFINED if tensor.dtype is None else onnx_dtype(tensor)
    # Open dimensions without a name are written as None, by graphsurgeon as -1 at times.
    shape = None if tensor.shape is None else [None if isinstance(d, int) and d < 0 else d for d in tensor.shape]
    return onnx.helper.make_tensor_type_proto(kind, shape)


def _tidy(dim: int | str | None) -> int | str | None:
    # Inference invents names for unknown dimensions; two runs would invent different ones.
    return None if isinstance(dim, str) and dim.startswith("unk__") else dim
