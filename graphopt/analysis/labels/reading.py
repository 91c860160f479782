"""Carry labels through an operator that moves elements: run it on an array of labels, and read the labels back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphopt.analysis.labels.builder import Axes, Probes
from graphopt.analysis.labels.registry import Unsupported
from graphopt.analysis.labels.scope import NodeScope

_TOO_BIG = 1 << 26


def carry(
    scope: NodeScope,
    axes: Axes,
    shape: list[int],
    move: Callable[[np.ndarray], np.ndarray],
    prefer: int | None = None,
    offset: int = 0,
) -> Axes:
    """Labels of ``move(x)`` for x of ``shape`` with labels ``axes``, each labelled axis by itself.

    Where a labelled axis is spread over several axes of the result (C into G, K), what is kept must stay
    rectangular: the labels go to axis ``prefer``, by default the last of them, and are tied over the others.
    Where two labelled axes meet in one, the first is locked. ``offset``: the number of the result's first axis.
    """
    if int(np.prod(shape, dtype=np.int64)) > _TOO_BIG:
        raise Unsupported("the tensor is too large to follow element by element")
    result: Axes | None = None
    for k, labels in enumerate(axes):
        if labels is None:
            continue
        view = [1] * len(shape)
        view[k] = -1
        moved = move(np.broadcast_to(labels.reshape(view), shape))
        if result is None:
            result = [None] * moved.ndim
        varying = _varying(moved)
        if not varying:
            # A single label: nothing tells which axis it sits on, and one channel cannot be removed anyway.
            scope.lock(labels, f"{scope.op} of a single channel is not followed")
            continue
        at = prefer if prefer in varying else varying[-1]
        rows = np.moveaxis(moved, at, -1).reshape(-1, moved.shape[at])
        vector = np.ascontiguousarray(rows[0])
        for row in np.unique(rows[1:], axis=0) if len(varying) > 1 else []:
            if not np.array_equal(row, vector):
                scope.builder.tie(vector, np.ascontiguousarray(row))
        earlier = result[at]
        if scope.builder.probes is not None:
            if earlier is not None and int(vector[0]) in scope.builder.probes.known:
                continue
            _probe(scope.builder.probes, scope, moved, [j for j in varying if j != at], result, offset)
        elif earlier is not None:
            scope.lock(earlier, f"{scope.op} merges them with another axis of channels")
        result[at] = vector
    return result if result is not None else [None] * move(np.broadcast_to(np.int64(0), shape)).ndim


def _probe(probes: Probes, scope: NodeScope, moved: np.ndarray, axes: list[int], result: Axes, offset: int) -> None:
    """Label the axes of a split that its own labels do not sit on, where entries that are alike share a label."""
    for j in axes:
        lines = np.moveaxis(moved, j, 0).reshape(moved.shape[j], -1)
        alike = np.unique(lines, axis=0, return_inverse=True)[1].ravel()
        labels = scope.hidden(int(alike.max()) + 1)
        probes.placed.append((labels, scope.index, offset + j))
        probes.known.update(labels.tolist())
        if result[j] is None:
            result[j] = labels[alike]


def _varying(moved: np.ndarray) -> list[int]:
    return [j for j in range(moved.ndim) if moved.shape[j] > 1 and bool(np.any(moved != moved.take([0], axis=j)))]
