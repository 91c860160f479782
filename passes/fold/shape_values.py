"""What is known of small integer tensors before the model runs: an abstract interpreter for shape arithmetic.

A value is a list of elements. An element is an ``int``, a symbol that stands for one unknown dimension, or None.
Symbols are the dimension names of the model, or (tensor, axis) for dimensions without one; equal symbols mean
equal numbers, because ONNX gives a dimension name one value in a whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.rewrite import Workbench
from graphopt.rewrite.index import plain_dtype

Element = int | str | tuple[str, int] | None
_LONGEST = 64  # elements; shapes are short, data is not interpreted
_INT64 = np.dtype(np.int64)


class Value(NamedTuple):
    """Elements of a vector, or the one element of a scalar."""

    elements: tuple[Element, ...]
    scalar: bool = False

    @property
    def known(self) -> bool:
        for element in self.elements:  # noqa: SIM110 - asked for every operator that may be shape arithmetic
            if not isinstance(element, int):
                return False
        return True

    def fits(self, dtype: np.dtype) -> bool:
        """Whether an integer type holds all elements that are known."""
        low, high = _limits(dtype)
        for element in self.elements:  # noqa: SIM110
            if isinstance(element, int) and not low <= element <= high:
                return False
        return True


@cache
def _limits(dtype: np.dtype) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def dims(tensor: gs.Tensor) -> tuple[Element, ...] | None:
    """The shape of a tensor as elements. Zero and negative sizes count as unknown: exporters write them for that."""
    if tensor.shape is None:
        return None
    if isinstance(tensor, gs.Constant):
        return tuple(int(d) for d in tensor.shape)
    found: list[Element] = []
    for axis, dim in enumerate(tensor.shape):
        if isinstance(dim, str) and dim:
            found.append(dim)
        elif dim is not None and not isinstance(dim, str) and int(dim) > 0:
            found.append(int(dim))
        else:
            found.append((tensor.name, axis))
    return tuple(found)


class ShapeValues:
    """Values of the shape-like tensors of one workbench, kept as rules come by."""

    OPERATORS = (
        *("Shape", "Size", "Gather", "Slice", "Concat", "Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"),
        *("Mul", "Add", "Sub", "Div"),
    )

    def __init__(self) -> None:
        self._values: dict[str, Value] = {}
        self._constants: dict[int, tuple[object, Value | None]] = {}  # by the id of their values; many share one

    def of(self, bench: Workbench, tensor: gs.Tensor) -> Value | None:
        """What is known of a tensor, or None for one that is not a short integer vector or scalar."""
        if not isinstance(tensor, gs.Constant):
            return self._values.get(tensor.name)
        stored = tensor._values
        known = self._constants.get(id(stored))
        if known is None:
            known = self._constants[id(stored)] = stored, _constant(bench, tensor)
        return known[1]

    def visit(self, bench: Workbench, node: gs.Node) -> str | None:
        """Interpret a node. A result without unknowns replaces it; a partial one is remembered for its readers."""
        step = _STEPS.get(node.op)
        if step is None or not node.inputs or len(node.outputs) != 1:
            return None
        target = node.outputs[0]
        dtype = _INT64 if node.op in ("Shape", "Size") else plain_dtype(target)
        if dtype is None or dtype.kind not in "iu":
            return None
        value = step(self, bench, node)
        if value is None or len(value.elements) > _LONGEST:
            return None
        known = value.known
        if dtype.itemsize < 4 and not known:
            return None  # an unknown dimension may not fit a narrow type
        if not value.fits(dtype):
            return None
        if known:
            if bench.is_foreign(target):
                return bench.why_bound(target)
            array = np.array(value.elements, dtype).reshape(() if value.scalar else (-1,))
            bench.make_constant(node, {target.name: array})
            return None
        if self._values.get(target.name) != value:
            self._values[target.name] = value
            bench.push(bench.readers(target))
        if node.op in ("Shape", "Size"):
            return "the dimensions that it reads are not all known before the model runs"
        return None


def _constant(bench: Workbench, tensor: gs.Constant) -> Value | None:
    dtype = plain_dtype(tensor)
    if dtype is None or dtype.kind not in "iu" or len(tensor.shape) > 1 or any(d > _LONGEST for d in tensor.shape):
        return None
    array = bench.array(tensor)
    assert array is not None
    return Value(tuple(array.reshape(-1).tolist()), array.ndim == 0)


# --- one function an operator: the value of its output, or None --------------------------------------------------

_Step = Callable[[ShapeValues, Workbench, gs.Node], Value | None]


def _shape(values: ShapeValues, bench: Workbench, node: gs.Node) -> Value | None:
    found = dims(node.inputs[0])
    if found is None:
        return None
    start, end = node.attrs.get("start", 0), node.attrs.get("end", len(found))
    return Value(found[slice(*_clamp(start, end, len(found)))])


def _clamp(start: int, end: int, size: int) -> tuple[int, int]:
    start, end = (min(max(i + size if i < 0 else i, 0), size) for i in (start, end))
    return start, end


def _size(values: ShapeValues, bench: Workbench, node: gs.Node) -> Value | None:
    found = dims(node.inputs[0])
    return None if found is None else Value((_product(found),), True)


def _product(elements: Sequence[Element]) -> Element:
    result: Element = 1
    for element in elements:
        result = _mul(result, element)
    return result


def _gather(values: ShapeValues, bench: Workbench, node: gs.Node) -> Value | None:
    data, index = values.of(bench, node.inputs[0]), values.of(bench, node.inputs[1])
    if data is None or index is None or data.scalar or not index.known or node.attrs.get("axis", 0) not in (0, -1):
        return None
    picked: list[Element] = []
    for i in index.elements:
        assert isinstance(i, int)
        if not -len(data.elements) <= i < len(data.elements):
            return None
        picked.append(data.elements[i])
    return Value(tuple(picked), index.scalar)


def _slice(values: ShapeValues, bench: Workbench, node: gs.Node) -> Value | None:
    data = values.of(bench, node.inputs[0])
    if data is None or data.scalar:
        return None
    given: dict[str, int] = {"axes": 0, "steps": 1}
    for position, key in enumerate(("starts", "ends", "axes", "steps"), start=1):
        if bench.model.opset < 10:
            found = node.attrs.get(key)
        else:
            tensor = node.inputs[position] if position < len(node.inputs) else None
            if tensor is None or not tensor.name:
                continue
            value = values.of(bench, tensor)
            if value is None or not value.known:
                return None
            found = value.elements
        if found is not None:
            if len(found) != 1:
                return None
            given[key] = int(found[0])
    if given["axes"] not in (0, -1) or given["steps"] != 1 or not given.keys() >= {"starts", "ends"}:
        return None
    return Value(data.elements[slice(*_clamp(given["starts"], given["ends"], len(data.elements)))])


def _concat(values: ShapeValues, bench: Workbench, node: gs.Node) -> Value | None:
    parts: list[Element] = []
    for tensor in node.inputs:
        value = values.of(bench, tensor)
        if value is None:
            # One unknown vector of known length still leaves its neighbours in place.
            size = dims(tensor)
            if size is None or len(size) != 1 or not isinstance(size[0], int) or size[0] > _LONGEST:
                return None
            value = Value((None,) * size[0])
        if value.scalar:
            return None
        parts.extend(value.elements)
    return Value(tuple(parts))


def _same_elements(values: ShapeValues, bench: Workbench, node: gs.Node) -> Value | None:
    """Identity, integer Cast, and what only moves between a scalar and a vector of one element."""
    value = values.of(bench, node.inputs[0])
    if value is None or node.op in ("Identity", "Cast"):
        return value
    shape = node.outputs[0].shape
    if shape is not None and len(shape) <= 1:
        return Value(value.elements, len(shape) == 0)
    return None


def _mul(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    for one, other in ((a, b), (b, a)):
        if one == 1:
            return other
    return None


def _add(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    return b if a == 0 else a if b == 0 else None


def _sub(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return a if b == 0 else None


def _div(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int) and b != 0:
        quotient = abs(a) // abs(b)  # ONNX integer division rounds toward zero
        return quotient if (a < 0) == (b < 0) else -quotient
    return a if b == 1 else None


def _elementwise(f: Callable[[Element, Element], Element]) -> _Step:
    def step(values: ShapeValues, bench: Workbench, node: gs.Node) -> Value | None:
        a, b = (values.of(bench, t) for t in node.inputs)
        if a is None or b is None:
            return None
        n, m = len(a.elements), len(b.elements)
        if n != m and 1 not in (n, m):
            return None
        pairs = zip(a.elements * (m if n == 1 else 1), b.elements * (n if m == 1 else 1), strict=True)
        return Value(tuple(f(x, y) for x, y in pairs), a.scalar and b.scalar)

    return step


_STEPS: dict[str, _Step] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Identity": _same_elements,
    "Cast": _same_elements,
    "Squeeze": _same_elements,
    "Unsqueeze": _same_elements,
    "Reshape": _same_elements,
    "Mul": _elementwise(_mul),
    "Add": _elementwise(_add),
    "Sub": _elementwise(_sub),
    "Div": _elementwise(_div),
}
