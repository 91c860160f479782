"""Models as bytes, in pieces: what protobuf's own serialization writes, with no copy of the weights in between.

A message is its fields one after another, in the order of their numbers; a field that is a message or bytes is a tag, a
length, and its content (protobuf's encoding guide). Weights are the one thing that is large, so only the messages
around them are put together here: the model, its graph, and the initializers, whose values come from their arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.ir.exporter import is_raw, write_tensor
from graphopt.ir.values import onnx_dtype

Piece = bytes | memoryview

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _DATA_LOCATION = (
    onnx.TensorProto.DESCRIPTOR.fields_by_name[name].number
    for name in ("dims", "data_type", "name", "raw_data", "data_location")
)
_SMALL = 1024  # bytes of values that are copied, which is less than a view of them takes


def pieces(proto: onnx.ModelProto, weights: list[gs.Constant]) -> Iterator[Piece]:
    """The serialization of a model with these initializers, of which its proto has none. Deterministic.

    The proto is taken apart on the way.
    """
    graph = onnx.GraphProto()
    graph.CopyFrom(proto.graph)
    proto.ClearField("graph")
    before, after = _split(proto, _GRAPH)
    head, tail = _split(graph, _INITIALIZER)
    written = [_tensor(c) for c in weights]
    sizes = [sum([_size(part) for part in parts]) for parts in written]
    leads = [_lead(_INITIALIZER, size) for size in sizes]
    total = len(head) + len(tail) + sum(sizes) + sum(map(len, leads))
    yield before + _lead(_GRAPH, total) + head
    for lead, parts in zip(leads, written, strict=True):
        yield lead
        for part in parts:
            yield part.SerializeToString(deterministic=True) if isinstance(part, TensorProto) else part
    yield tail + after


def _tensor(constant: gs.Constant) -> list[Piece | TensorProto]:
    """What, one after another, is the serialization of an initializer."""
    stored = getattr(constant._values, "tensor", None)
    if stored is not None and stored.name == constant.name:
        return [stored]
    if not is_raw(constant):
        proto = TensorProto()
        write_tensor(proto, constant)
        return [proto]
    array = np.ascontiguousarray(constant._values)  # of a scalar, a vector
    name = constant.name.encode()
    before = _shape(onnx_dtype(constant), constant._values.shape) + (_lead(_NAME, len(name)) + name if name else b"")
    values = array.tobytes() if array.nbytes <= _SMALL else array.reshape(-1).view(np.uint8).data
    if constant.data_location is None:
        return [before + _lead(_RAW_DATA, array.nbytes), values]
    return [before + _lead(_RAW_DATA, array.nbytes), values, _number(_DATA_LOCATION, constant.data_location)]


@lru_cache(maxsize=1024)
def _shape(kind: int, shape: tuple[int, ...]) -> bytes:
    """The fields of an initializer that say its shape and type; many have the same."""
    return b"".join([_number(_DIMS, size) for size in shape]) + _number(_DATA_TYPE, kind)


def _number(field: int, value: int) -> bytes:
    """A field that holds a number that is not negative."""
    return _varint(field << 3) + _varint(value)


def _split(message: onnx.ModelProto | onnx.GraphProto | TensorProto, number: int) -> tuple[bytes, bytes]:
    """The serialization of a message before and after the field of a number, which it does not have.

    The message is left with the first part.
    """
    late = type(message)()
    late.CopyFrom(message)
    for field, _ in message.ListFields():
        (late if field.number < number else message).ClearField(field.name)
    return message.SerializeToString(deterministic=True), late.SerializeToString(deterministic=True)


@lru_cache(maxsize=1024)
def _lead(number: int, length: int) -> bytes:
    """Tag and length of a field that holds so many bytes."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    if value <= 0x7F:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _size(part: Piece | TensorProto) -> int:
    if isinstance(part, TensorProto):
        return part.ByteSize()
    return part.nbytes if isinstance(part, memoryview) else len(part)
