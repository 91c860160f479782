"""What is known of shapes, asked in the ways that rules need."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

Dim = int | str | None
_INTEGERS = (int, np.integer)


def known(dim: object) -> bool:
    """Whether a dimension is a number. Zero and negative ones count as unknown: exporters write them for that."""
    if type(dim) is int:
        return dim > 0
    return isinstance(dim, _INTEGERS) and not isinstance(dim, bool) and int(dim) > 0


def same(a: object, b: object) -> bool:
    """Whether two dimensions are equal for sure: by number, or by name, which stands for one number in a run."""
    if known(a) and known(b):
        return int(a) == int(b)  # type: ignore[call-overload]
    return isinstance(a, str) and bool(a) and a == b


def equal_shapes(a: gs.Tensor, b: gs.Tensor) -> bool:
    """Whether two tensors have one shape for sure."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(same(x, y) for x, y in zip(a.shape, b.shape, strict=True))


def spread(constant: gs.Tensor, source: gs.Tensor) -> bool:
    """Whether ``constant`` broadcasts to the shape of ``source`` without changing it."""
    if source.shape is None or len(constant.shape) > len(source.shape):
        return not constant.shape
    pairs = zip(reversed(constant.shape), reversed(list(source.shape)), strict=False)
    return all(a == 1 or same(a, b) for a, b in pairs)


def static(tensor: gs.Tensor) -> tuple[int, ...] | None:
    """The shape of a tensor if all of it is known."""
    shape = tensor.shape
    if shape is None or not all(known(d) for d in shape):
        return None
    return tuple(int(d) for d in shape)
