"""What a file claims, held against what it holds, before anything is allocated or expanded for it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import onnx
from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.ir.contents import Contents
from graphopt.ir.functions import MAIN, read_calls
from graphopt.ir.values import PACKED_BITS, data_bytes

MOST_DIMENSIONS = 32  # of a tensor; what every numpy holds
MOST_DENSE_BYTES = 1 << 31  # of a sparse tensor; what an ordinary one in a file could have
# Nodes that the calls of local functions may stand for beyond those that are written. ONNX Runtime expands them all
# when it opens a model, in time that grows faster than their number.
MOST_EXPANDED = 30_000

_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_PAIRS = frozenset((TensorProto.COMPLEX64, TensorProto.COMPLEX128))


def check_claims(proto: onnx.ModelProto, contents: Contents | None = None) -> int:
    """Refuse tensors whose type, shape and data do not belong together, and functions that expand without end.

    Returns the bytes of the largest tensor that is not sparse. Raises ModelError naming the tensor or function.
    """
    contents = contents or Contents.of(proto)
    tensors = (*contents.initializers(), *contents.attribute_tensors())
    largest = max(map(_check_tensor, tensors), default=0)
    for sparse in contents.sparse():
        _check_sparse(sparse)
    for _, attr in contents.attributes:
        for sparse in [*([attr.sparse_tensor] if attr.HasField("sparse_tensor") else []), *attr.sparse_tensors]:
            _check_sparse(sparse)
    if proto.functions:
        _check_functions(proto)
    return largest


def _check_tensor(tensor: TensorProto) -> int:
    """The bytes of a tensor, if all is well with it."""
    kind, shape = tensor.data_type, tuple(tensor.dims[:])
    count, size, problem = _elements(kind, shape)
    if problem:
        raise ModelError(f"tensor {tensor.name!r} {problem}")
    if tensor.HasField("segment"):
        message = f"tensor {tensor.name!r} is stored in segments, which graphopt does not read"
        raise ModelError(message, "export the model again")
    if tensor.data_location == TensorProto.EXTERNAL:
        return size  # ``ir.external`` compares it with the file that it names
    if tensor.HasField("raw_data"):
        unit, given, needed = "bytes of data", len(tensor.raw_data), size
        if kind == TensorProto.STRING:
            return size
    else:
        unit, given = "values", max(len(getattr(tensor, field)) for field in _FIELDS)
        needed = (count * PACKED_BITS[kind] + 7) // 8 if kind in PACKED_BITS else count * (2 if kind in _PAIRS else 1)
    if given != needed:
        raise ModelError(f"tensor {tensor.name!r} has {given} {unit}; its shape {list(shape)} needs {needed}")
    return size


@lru_cache(maxsize=1024)
def _elements(kind: int, shape: tuple[int, ...]) -> tuple[int, int, str]:
    """Elements and bytes of a tensor, and what is wrong with its type or shape, in words; many have the same."""
    if kind not in _TYPES:
        return 0, 0, f"has the data type {kind}, which does not exist"
    if len(shape) > MOST_DIMENSIONS:
        return 0, 0, f"has {len(shape)} dimensions; graphopt reads up to {MOST_DIMENSIONS}"
    if min(shape, default=0) < 0:
        return 0, 0, f"has a negative dimension: its shape is {list(shape)}"
    if 16 * math.prod(d for d in shape if d) >= 1 << 63:
        return 0, 0, f"is larger than any memory: its shape is {list(shape)}"
    count = math.prod(shape)
    return count, data_bytes(kind, count), ""


def _check_sparse(sparse: onnx.SparseTensorProto) -> None:
    _check_tensor(sparse.values)
    _check_tensor(sparse.indices)
    shape = list(sparse.dims)
    if not shape or len(shape) > MOST_DIMENSIONS or min(shape) < 0:
        raise ModelError(f"the sparse tensor {sparse.values.name!r} has a shape that no tensor can have: {shape}")
    size = data_bytes(sparse.values.data_type, math.prod(shape))
    if size > MOST_DENSE_BYTES:
        raise ModelError(
            f"the sparse tensor {sparse.values.name!r} of shape {shape} takes {size} bytes once it is used; "
            f"graphopt reads up to {MOST_DENSE_BYTES}"
        )


@contextlib.contextmanager
def bounded_memory(extra: int) -> Iterator[None]:
    """Within the block, allocations fail that would take the process beyond ``extra`` bytes more than it has now.

    For code that is trusted in everything but how much it allocates. Where the system cannot do that (it takes Linux),
    there is no bound.
    """
    try:
        import resource

        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = has + extra if soft == resource.RLIM_INFINITY else min(has + extra, soft)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _check_functions(proto: onnx.ModelProto) -> None:
    """Bound what the functions expand to, without expanding them."""
    found = read_calls(proto)
    total = found.total(found.written.__getitem__)
    if total[MAIN] - found.written[MAIN] > MOST_EXPANDED:
        worst = max(found.calls[MAIN], key=lambda key: total[key])
        raise ModelError(
            f"the model's functions stand for {total[MAIN]:.3g} nodes (a call of {worst[1]!r} for {total[worst]:.3g}); "
            f"graphopt reads models whose functions add up to {MOST_EXPANDED:,}",
            "export the model without functions",
        )
