"""Shape and type inference, without moving the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.ir.convert import Blueprint, Imported, pairs
from graphopt.ir.importer import dtype_of, shape_of
from graphopt.ir.limits import bounded_memory
from graphopt.ir.model import Model
from graphopt.ir.node_shapes import VALUES_BELOW, tidy
from graphopt.ir.objects import set_attribute
from graphopt.ir.values import data_bytes, write_stub
from graphopt.ir.view import all_graphs, tensors

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
    return inner.elem_type, [tidy(d) for d in shape_of(inner)] if inner.HasField("shape") else None


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
