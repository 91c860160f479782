"""Forms in which a tensor may be kept instead of its own: axes in another order, or one axis with its elements so.

A form says how the kept tensor follows from the original. The form of a constant is applied to its values at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.rewrite.shapes import Dim, known


@cache
def _order(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))


@dataclass(frozen=True)
class Axes:
    """Kept as after a Transpose by ``perm``."""

    perm: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.perm)

    @property
    def trivial(self) -> bool:
        return self.perm == _order(len(self.perm))

    def inverse(self) -> Axes:
        return Axes(tuple(sorted(range(self.rank), key=self.perm.__getitem__)))

    def place(self, axis: int) -> int:
        """Where an axis of the original is in the kept tensor."""
        return self.perm.index(axis)

    def then(self, perm: Sequence[int]) -> Axes:
        """The form after a further Transpose of the kept tensor."""
        return Axes(tuple(self.perm[p] for p in perm))

    def shape(self, shape: Sequence[Dim]) -> list[Dim]:
        return [shape[p] for p in self.perm]

    def array(self, array: np.ndarray) -> np.ndarray:
        """Values of a constant that broadcasts to this rank; missing axes count as leading ones."""
        full = array.reshape((1,) * (self.rank - array.ndim) + array.shape)
        return np.ascontiguousarray(full.transpose(self.perm))

    def moves(self, shape: Sequence[Dim]) -> bool:
        """Whether the elements of a tensor change places, and not only axes of size one."""
        wide = [p for p in self.perm if not (known(shape[p]) and shape[p] == 1)]
        return wide != sorted(wide)


@dataclass(frozen=True)
class Block:
    """Kept with the elements of one axis in another order: those of axes ``dims``, flattened, as if transposed before.

    This is what flattening a transposed tensor gives. No one operator converts to or from it; weights take it in.
    """

    rank: int
    axis: int
    dims: tuple[int, ...]
    perm: tuple[int, ...]

    @property
    def trivial(self) -> bool:
        return not Axes(self.perm).moves(self.dims)

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    def at(self, rank: int, axis: int) -> Block:
        """The same order on an axis of another tensor."""
        return Block(rank, axis, self.dims, self.perm)

    def shape(self, shape: Sequence[Dim]) -> list[Dim]:
        return list(shape)

    def array(self, array: np.ndarray) -> np.ndarray:
        axis = self.axis - (self.rank - array.ndim)
        if axis < 0 or array.shape[axis] == 1:
            return array
        order = np.arange(self.size).reshape(self.dims).transpose(self.perm).reshape(-1)
        return np.take(array, order, axis)


Form = Axes | Block


def rank_of(tensor: gs.Tensor) -> int | None:
    return None if tensor.shape is None else len(tensor.shape)


def narrow(form: Axes, gone: Sequence[int]) -> Axes:
    """The form of a tensor without the axes ``gone`` of the one that has ``form``."""
    kept = [a for a in range(form.rank) if a not in gone]
    return Axes(tuple(kept.index(a) for a in form.perm if a not in gone))


def widen(form: Axes, gone: Sequence[int]) -> Axes:
    """A form that is ``form`` without the axes ``gone``: each of them stays behind the axis that it follows."""
    rank = form.rank + len(gone)
    kept = [a for a in range(rank) if a not in gone]
    order: list[int] = []

    def follow(axis: int) -> None:
        while axis < rank and axis in gone:
            order.append(axis)
            axis += 1

    follow(0)
    for small in form.perm:
        order.append(kept[small])
        follow(kept[small] + 1)
    return Axes(tuple(order))
