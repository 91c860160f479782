"""Channel shuffles: a Reshape, Transposes and Reshapes that together only reorder one axis.

Followed one by one, the axis would have to stay rectangular in between, and channels would be tied that have nothing
to do with each other. Taken together, they are a Gather, which is what removal writes in their place.
"""

from __future__ import annotations

from math import prod

import numpy as np

from graphopt.analysis.cost import Shape
from graphopt.analysis.labels.builder import Shuffle
from graphopt.analysis.labels.scope import NodeScope
from graphopt.ir.view import is_standard

_TOO_BIG = 1 << 24
_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


def find_shuffle(scope: NodeScope) -> Shuffle | None:
    """The shuffle that begins with this node, if its tensors are read by nothing else."""
    builder = scope.builder
    start = _known(builder.many.get(scope.node.inputs[0].name))
    if start is None or prod(start) > _TOO_BIG:
        return None
    first = moved = np.arange(prod(start)).reshape(start)
    chain, node = [scope.index], scope.node
    while True:
        after = _apply(NodeScope(builder, scope.index, node), moved)
        if after is None:
            return None
        moved = after
        found = _along_one_axis(first, moved) if len(chain) > 2 else None
        if found is not None:
            return Shuffle(tuple(chain), *found)
        tensor = node.outputs[0]
        if len(tensor.outputs) != 1 or tensor.name in builder.bound:
            return None
        node = tensor.outputs[0]
        number = builder.numbers.get(id(node))
        if number is None or node.op not in _MOVES or not is_standard(node) or node.inputs[0] is not tensor:
            return None
        chain.append(number)


def _apply(scope: NodeScope, x: np.ndarray) -> np.ndarray | None:
    if scope.op == "Transpose":
        try:
            return x.transpose([int(k) for k in scope.attr("perm") or range(x.ndim)[::-1]])
        except ValueError:
            return None
    to = _known(scope.builder.many.get(scope.node.outputs[0].name))
    return x.reshape(to) if to is not None and prod(to) == x.size else None


def _known(shape: Shape | None) -> list[int] | None:
    sizes = [int(d) for d in shape or [] if d is not None]
    return sizes if shape is not None and len(sizes) == len(shape) else None


def _along_one_axis(before: np.ndarray, after: np.ndarray) -> tuple[int, np.ndarray] | None:
    if before.shape != after.shape:
        return None
    for axis, size in enumerate(before.shape):
        line = tuple(slice(None) if k == axis else 0 for k in range(before.ndim))
        stride = int(np.prod(before.shape[axis + 1 :], dtype=np.int64))
        order = after[line] // stride % size
        if size > 1 and np.array_equal(before.take(order, axis=axis), after):
            return axis, order
    return None
