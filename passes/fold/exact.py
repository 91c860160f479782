"""Operators that numpy computes to the same bits as any kernel: what is left of them is not worth a session.

Sums, differences, products and quotients of floats are rounded in one way only (IEEE 754), those of integers wrap
around, and the rest moves values without a change. Whatever else there may be to an operator is left to ONNX Runtime:
types that differ, a result that is no number (its bits are the kernel's choice), shapes that do not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.values import peek

_FLOATS = frozenset(map(np.dtype, ("float32", "float64")))
_NUMBERS = _FLOATS | frozenset(map(np.dtype, ("int32", "int64")))
_ARITHMETIC: dict[str, tuple[Callable[..., np.ndarray], frozenset[np.dtype]]] = {
    "Add": (np.add, _NUMBERS),
    "Sub": (np.subtract, _NUMBERS),
    "Mul": (np.multiply, _NUMBERS),
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
    kernel = _ARITHMETIC.get(node.op)
    if kernel is None or node.attrs or len(node.inputs) != 2:
        return None
    compute, types = kernel
    given = [peek(t) if isinstance(t, gs.Constant) else values.get(t.name) for t in node.inputs]
    a, b = given
    if a is None or b is None or a.dtype != b.dtype or a.dtype not in types:
        return None
    try:
        result = np.asarray(compute(a, b))
    except ValueError:  # their shapes do not fit; ONNX Runtime says so better
        return None
    return None if a.dtype in _FLOATS and np.isnan(result).any() else result
