"""Weights stored beside the model file: found only inside its folder, mapped rather than read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.ir.contents import Contents
from graphopt.ir.values import PACKED_BITS, StoredValues, data_bytes

_STORABLE = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}
_NUMBER = re.compile(r"-?[0-9]{1,30}")  # as ONNX Runtime reads it; int() takes much more


def external_tensors(contents: Contents) -> Iterator[TensorProto]:
    """Every tensor of the model, attributes and functions included, whose data is in another file."""
    outside = TensorProto.EXTERNAL
    for graph in contents.graphs:
        yield from (t for t in graph.initializer if t.data_location == outside)
    yield from _others(contents)


def _others(contents: Contents) -> Iterator[TensorProto]:
    """Those that are not initializers of the model's graphs: attributes, sparse ones, all that functions hold."""
    outside = TensorProto.EXTERNAL
    for graph in contents.inner:
        yield from (t for t in graph.initializer if t.data_location == outside)
    for sparse in contents.sparse():
        yield from (t for t in (sparse.values, sparse.indices) if t.data_location == outside)
    yield from (t for t in contents.attribute_tensors() if t.data_location == outside)


def resolve(tensor: TensorProto, folder: Path) -> tuple[Path, int, int]:
    """Where a tensor's bytes are: file, offset, length.

    Raises ModelError when the place is outside ``folder``, reached through a link, missing, or too short.
    """
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    where = f"external data of tensor {tensor.name!r}"
    if len(entries) != len(tensor.external_data):
        raise ModelError(f"{where} says twice where it is")  # readers differ in which of the two they believe
    if isinstance(location, bytes):  # what protobuf makes of text that is not UTF-8
        raise ModelError(f"{where} has a location that is not UTF-8 text")
    relative = Path(location)
    if not location or relative.is_absolute() or ".." in relative.parts or "\\" in location or "\0" in location:
        raise ModelError(
            f"{where} points outside the model's folder: {location!r}",
            "graphopt reads external data only from the folder of the model file",
        )
    path = folder / relative
    step = folder
    try:
        for part in relative.parts:
            step = step / part
            if step.is_symlink():
                hint = "replace the link by the file it points to"
                raise ModelError(f"{where} is a symbolic link: {location!r}", hint)
        if not path.is_file():
            raise ModelError(f"{where} is missing: {location!r} is not a file beside the model file")
        size = path.stat().st_size
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ModelError(f"{where} cannot be read: {error.strerror}: {location!r}") from None
    if tensor.data_type not in _STORABLE:
        raise ModelError(f"{where} is text or of an unknown type, which cannot be stored outside the model file")
    needed = data_bytes(tensor.data_type, math.prod(tensor.dims))
    placed = [entries.get("offset", "0"), entries.get("length", str(needed))]
    if not all(isinstance(text, str) and _NUMBER.fullmatch(text) for text in placed):
        raise ModelError(f"{where} has an offset or a length that is not a number")
    offset, length = map(int, placed)
    if min(tensor.dims, default=0) < 0 or offset < 0 or length != needed or offset + length > size:
        raise ModelError(
            f"{where} does not fit: shape {list(tensor.dims)} needs {needed} bytes, the model says {length} at "
            f"offset {offset}, and {location!r} has {size}"
        )
    return path, offset, length


def check(contents: Contents, folder: Path) -> frozenset[Path]:
    """Resolve all external tensors of the model; returns the files that hold them. Raises ModelError."""
    return frozenset(resolve(tensor, folder)[0] for tensor in external_tensors(contents))


def map_initializers(constants: Iterator[gs.Constant], folder: Path) -> None:
    """Turn initializers stored outside into read-only arrays mapped from their files."""
    files: dict[Path, np.ndarray] = {}
    for constant in constants:
        tensor = getattr(constant._values, "tensor", None)
        if not isinstance(tensor, TensorProto) or tensor.data_location != TensorProto.EXTERNAL:
            continue
        path, offset, length = resolve(tensor, folder)
        if path not in files:
            files[path] = _map(path)
        raw = files[path][offset : offset + length]
        if tensor.data_type in PACKED_BITS:
            inline = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            inline.raw_data = raw.tobytes()
            constant._values = StoredValues(inline, constant.dtype)  # keeps the type, which an array of these would not
        else:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            constant.values = raw.view(dtype).reshape(tuple(tensor.dims))
        constant.data_location = None


def _map(path: Path) -> np.ndarray:
    try:
        return np.zeros(0, np.uint8) if path.stat().st_size == 0 else np.memmap(path, np.uint8, mode="r")
    except OSError as error:
        raise ModelError(f"cannot map external data {path}: {error.strerror}") from None


def inline_small(proto: onnx.ModelProto, contents: Contents, folder: Path) -> None:
    """Read the (small) tensors that node attributes and default values of inputs keep outside."""
    inputs = {t.name for t in proto.graph.input}
    defaults = [t for t in proto.graph.initializer if t.name in inputs and t.data_location == TensorProto.EXTERNAL]
    for tensor in [*_others(contents), *defaults]:
        path, offset, length = resolve(tensor, folder)
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
