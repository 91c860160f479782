"""Operators that numpy computes to the same bits as any kernel: what is left of them is not worth a session.

Sums, differences, products and quotients of floats are rounded in one way only (IEEE 754), those of integers wrap
around, and the rest moves values without a change. Whatever else there may be to an operator is left to ONNX Runtime:
types that differ, a result that is no number (its bits are the kernel's choice), shapes that do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from graphopt.ir.values import peek

_FLOATS = frozenset(map(np.dtype, ("float32", "float64")))
_INTEGERS = frozenset(map(np.dtype, ("int32", "int64")))
_MOVED = _FLOATS | _INTEGERS | {np.dtype(bool)}
_WIDE: dict[object, np.dtype] = {TensorProto.INT32: np.dtype("int32"), TensorProto.INT64: np.dtype("int64")}
_ARITHMETIC: dict[str, tuple[Callable[..., np.ndarray], frozenset[np.dtype]]] = {
    "Add": (np.add, _FLOATS | _INTEGERS),
    "Sub": (np.subtract, _FLOATS | _INTEGERS),
    "Mul": (np.multiply, _FLOATS | _INTEGERS),
    "Div": (np.divide, _FLOATS),
}


def compute_exactly(nodes: Sequence[gs.Node]) -> tuple[dict[str, np.ndarray], list[gs.Node]]:
    """Values that nodes in topological order compute, by the names of their tensors, and the nodes that are left."""
    values: dict[str, np.ndarray] = {}
    left: list[gs.Node] = []
    with np.errstate(all="ignore"):
        for node in nodes:
            result = _result(node, values)
            if result is None:
                left.append(node)
            else:
                values[node.outputs[0].name] = result
    return values, left


def _result(node: gs.Node, values: dict[str, np.ndarray]) -> np.ndarray | None:
    compute = _arithmetic if node.op in _ARITHMETIC else _MOVES.get(node.op)
    if compute is None:
        return None
    given = [peek(t) if isinstance(t, gs.Constant) else values.get(t.name) for t in node.inputs]
    known = [a for a in given if a is not None and a.dtype in _MOVED]
    if len(known) < len(given):
        return None
    try:
        return compute(node, known)
    except (ValueError, IndexError, MemoryError):  # their shapes do not fit; ONNX Runtime says so better
        return None


def _arithmetic(node: gs.Node, given: list[np.ndarray]) -> np.ndarray | None:
    function, types = _ARITHMETIC[node.op]
    a, b = given
    if node.attrs or a.dtype != b.dtype or a.dtype not in types:
        return None
    result = np.asarray(function(a, b))
    return None if a.dtype in _FLOATS and np.isnan(result).any() else result


# --- what only moves values, in the forms that exporters write ----------------------------------------------------


def _reshape(node: gs.Node, given: list[np.ndarray]) -> np.ndarray | None:
    data, target = given
    sizes = target.tolist()
    if node.attrs.get("allowzero", 0) or min(sizes, default=0) < -1:
        return None
    return data.reshape([data.shape[k] if size == 0 else size for k, size in enumerate(sizes)])


def _transpose(node: gs.Node, given: list[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(given[0].transpose(node.attrs.get("perm")))


def _concat(node: gs.Node, given: list[np.ndarray]) -> np.ndarray | None:
    if any(a.dtype != given[0].dtype for a in given):
        return None
    return np.concatenate(given, node.attrs["axis"])


def _slice(node: gs.Node, given: list[np.ndarray]) -> np.ndarray | None:
    if len(given) < 4 or any(a.ndim != 1 for a in given[1:]):
        return None
    data, (starts, ends, axes) = given[0], (a.tolist() for a in given[1:4])
    steps = given[4].tolist() if len(given) > 4 else [1] * len(starts)
    cut = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = data.shape[axis]
        if cut[axis] != slice(None) or (step < 0 and (start < -size or end >= size)):
            return None  # where python does not clamp to what there is as ONNX Runtime does
        cut[axis] = slice(start, end, step)
    return np.array(data[tuple(cut)], order="C")  # a copy: a view would keep all of the weights in memory


def _constant_of_shape(node: gs.Node, given: list[np.ndarray]) -> np.ndarray | None:
    value = node.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else peek(value)
    return np.full(given[0].tolist(), fill.reshape(-1)[0], fill.dtype) if fill.dtype in _MOVED else None


def _cast(node: gs.Node, given: list[np.ndarray]) -> np.ndarray | None:
    """Between integers, to the same or a wider one."""
    target = _WIDE.get(node.attrs["to"])
    return given[0].astype(target) if target is not None and np.can_cast(given[0].dtype, target) else None


_MOVES: dict[str, Callable[[gs.Node, list[np.ndarray]], np.ndarray | None]] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
}
