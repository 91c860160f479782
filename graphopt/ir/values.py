"""The values of an initializer: in the file's proto or in an array, their type, their bytes, their identity."""

from __future__ import annotations

import itertools
import math
import mmap
import weakref
from collections.abc import Iterable
from functools import cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

STUB_LOCATION = "graphopt-stub"
# Bits of an element of the types that share bytes; numpy gives each element a byte of its own.
PACKED_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}

# Types whose elements a file holds as an array does, on machines that store numbers from the lowest byte on.
SAME_IN_FILES = frozenset(map(np.dtype, ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")))
_LITTLE = {dtype: dtype.newbyteorder("<") for dtype in SAME_IN_FILES}  # as files have it
_tokens = itertools.count()
# By the id of a living array: the token of the stored values that it was read from, and what ends the entry.
_origins: dict[int, tuple[int, weakref.ref[np.ndarray]]] = {}


class _Stored(LazyValues):
    """Values still in the file's proto. They are read once for all copies of a model, while the array lives."""

    def __init__(self, tensor: TensorProto | onnx.SparseTensorProto, dtype: object) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.dims[:])
        self.dtype = dtype
        self.kind = getattr(tensor, "data_type", TensorProto.UNDEFINED)
        self.token = -1 - next(_tokens)  # never the id of an object
        self.size: int | None = None  # bytes, once asked for
        self._array: weakref.ref[np.ndarray] | None = None

    def load(self) -> np.ndarray:
        array = self._array() if self._array is not None else None
        if array is None:
            array = self._read()
            key = id(array)
            self._array = weakref.ref(array, lambda _: _origins.pop(key, None))
            _origins[key] = (self.token, self._array)
        return array

    def _read(self) -> np.ndarray:
        tensor = self.tensor
        if isinstance(self.dtype, np.dtype) and self.dtype in SAME_IN_FILES and (raw := tensor.raw_data):
            return np.frombuffer(raw, _LITTLE[self.dtype]).reshape(self.shape)
        return np.asarray(numpy_helper.to_array(tensor))


class StoredValues(_Stored):
    """An initializer's tensor proto."""


class StoredSparse(_Stored, SparseValues):
    """A sparse initializer's proto; read, it is an ordinary array."""

    def _read(self) -> np.ndarray:
        values, places = numpy_helper.to_array(self.tensor.values), numpy_helper.to_array(self.tensor.indices)
        dense = np.zeros(tuple(self.tensor.dims), values.dtype)
        if places.ndim == 1:
            dense.reshape(-1)[places] = values
        else:
            dense[tuple(places.T)] = values
        return dense


def peek(constant: gs.Constant) -> np.ndarray:
    """The values of a constant, left as lazy as they were: reading must not change how it is written."""
    values = constant._values
    return values.load() if isinstance(values, LazyValues) else values


def identity(values: object) -> int:
    """A number for the values of a constant that reading them does not change, and replacing them does."""
    if isinstance(values, _Stored):
        return values.token
    known = _origins.get(id(values))
    return id(values) if known is None else known[0]


class StubValues(LazyValues):
    """The type and shape of an initializer, exported without its data."""

    def __init__(self, tensor: gs.Constant) -> None:
        proto = TensorProto()
        write_stub(proto, tensor.name, onnx_dtype(tensor), [int(d) for d in tensor.shape])
        self.tensor, self.shape, self.dtype = proto, proto.dims, tensor.dtype


def write_stub(proto: TensorProto, name: str, kind: int, shape: Iterable[int]) -> None:
    """Make an empty proto that of a tensor of this type and shape, as if its data were in another file."""
    proto.name, proto.data_type = name, kind
    proto.dims.extend(shape)
    proto.data_location = TensorProto.EXTERNAL
    proto.external_data.add(key="location", value=STUB_LOCATION)


def onnx_dtype(tensor: gs.Tensor) -> int:
    """The TensorProto data type of a tensor whose dtype is known."""
    if isinstance(tensor, gs.Constant):
        values = tensor._values
        if isinstance(values, StoredValues):
            return int(values.kind)
        if isinstance(values, np.ndarray):
            return _kind(values.dtype)
        proto = getattr(values, "tensor", None)
        if isinstance(proto, TensorProto):
            return int(proto.data_type)
    return int(dtype_to_onnx(tensor.dtype))


@cache
def _kind(dtype: np.dtype) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


def nbytes(tensor: gs.Constant) -> int:
    """Bytes of an initializer's data, without loading it; for text, an estimate."""
    values = tensor._values
    if isinstance(values, _Stored):
        if values.size is None:
            values.size = data_bytes(onnx_dtype(tensor), math.prod(values.shape))
        return values.size
    if type(values) is np.ndarray and values.dtype in SAME_IN_FILES:
        return values.nbytes
    return data_bytes(onnx_dtype(tensor), math.prod(int(d) for d in tensor.shape))


def data_bytes(kind: int, count: int) -> int:
    """Bytes that ``count`` elements of a TensorProto data type take in a file; for text, an estimate."""
    if kind == TensorProto.STRING:
        return 16 * count
    if kind in PACKED_BITS:
        return (count * PACKED_BITS[kind] + 7) // 8
    return count * _itemsize(kind)


@cache
def _itemsize(kind: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def is_sparse(tensor: gs.Constant) -> bool:
    """Whether an initializer was given by its nonzero values, and is written so again."""
    if type(tensor._values) is np.ndarray or type(tensor._values) is StoredValues:
        return False
    return not isinstance(getattr(tensor._values, "tensor", TensorProto()), TensorProto)


def is_plain(tensor: gs.Constant) -> bool:
    """Whether the bytes of an initializer's array are the bytes that a file holds."""
    values = tensor._values
    if isinstance(values, np.ndarray) and values.dtype in SAME_IN_FILES:
        return True
    kind = onnx_dtype(tensor)
    return kind != TensorProto.STRING and kind not in PACKED_BITS and not is_sparse(tensor)


def release_pages(constants: Iterable[gs.Constant]) -> None:
    """Let go of the memory that reading mapped weights has filled; it is read from the file again when needed."""
    seen: set[int] = set()
    for constant in constants:
        array = constant._values
        while isinstance(array, np.ndarray):
            mapped = getattr(array, "_mmap", None)
            if mapped is not None and id(mapped) not in seen and hasattr(mapped, "madvise"):
                seen.add(id(mapped))
                mapped.madvise(mmap.MADV_DONTNEED)
            array = array.base
