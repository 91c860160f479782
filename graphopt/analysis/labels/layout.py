"""Rules of the operators that rearrange axes: Transpose, Reshape and their kin."""

from __future__ import annotations

from math import prod

import numpy as np

from graphopt.analysis.cost import Shape
from graphopt.analysis.labels.reading import carry
from graphopt.analysis.labels.registry import Unsupported, rule
from graphopt.analysis.labels.scope import Axes, NodeScope


@rule("Transpose")
def transpose(scope: NodeScope) -> None:
    axes = scope.axes(0)
    order = scope.attr("perm") or list(range(len(axes)))[::-1]
    scope.out([axes[int(k)] for k in order])


@rule("Squeeze")
def squeeze(scope: NodeScope) -> None:
    axes, shape = scope.axes(0), scope.shape(0)
    given = scope.ints(1, "axes")
    gone = [k for k, d in enumerate(shape) if d == 1] if given is None else [scope.axis(k, len(axes)) for k in given]
    for k in gone:
        scope.lock(axes[k], "Squeeze needs exactly one of them")
    scope.out([v for k, v in enumerate(axes) if k not in gone])


@rule("Unsqueeze")
def unsqueeze(scope: NodeScope) -> None:
    axes = scope.axes(0)
    given = scope.ints(1, "axes") or []
    rank = len(axes) + len(given)
    new = {scope.axis(k, rank) for k in given}
    old = iter(axes)
    scope.out([None if k in new else next(old) for k in range(rank)])


@rule("Reshape", "Flatten")
def reshape(scope: NodeScope) -> None:
    axes, before = scope.axes(0), scope.shape(0)
    if all(v is None for v in axes):
        scope.out([None] * len(scope.out_shape()))
        return
    if scope.op == "Reshape":
        scope.ints(1)  # must be constant to be rewritten
    start, target, after = _sizes(scope, before)
    result: Axes = []
    for ins, outs in _chunks(start, target):
        part = [axes[k] for k in ins]
        if all(v is None for v in part):
            result.extend([None] * len(outs))
            continue
        to = [target[k] for k in outs]
        result.extend(carry(scope, part, [start[k] for k in ins], lambda a, to=to: a.reshape(to)))  # type: ignore[misc]
    for k, labels in enumerate(result):
        if labels is not None and after[k] is None:
            scope.lock(labels, "they are merged with an axis whose size varies")
    scope.out(result)


def _sizes(scope: NodeScope, before: Shape) -> tuple[list[int], list[int], Shape]:
    """Sizes before and after at batch 1, and the sizes after as inference gave them."""
    after = list(scope.out_shape())
    if None in before[1:]:
        raise Unsupported("the sizes of its input are not known")
    start = [1 if d is None else int(d) for d in before]
    total = prod(start)
    target = [1 if d is None and k == 0 and before[0] is None else d for k, d in enumerate(after)]
    open_axes = [k for k, d in enumerate(target) if d is None]
    known = prod(d for d in target if d is not None)
    if len(open_axes) == 1 and known and total % known == 0:
        target[open_axes[0]] = total // known
    elif not open_axes and known != total and after[0] is None and total % max(1, known) == 0:
        target[0] = total // known
    final = [int(d) for d in target if d is not None]
    if len(final) != len(target) or prod(final) != total or not total:
        raise Unsupported("the sizes of its output are not known")
    return start, final, after


def _chunks(start: list[int], target: list[int]) -> list[tuple[list[int], list[int]]]:
    """Split both shapes into the shortest runs of axes with equal products: each is reshaped by itself."""
    chunks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(start) or j < len(target):
        ins, outs = [], []
        a = b = 1
        if i < len(start):
            ins, a, i = [i], start[i], i + 1
        if j < len(target):
            outs, b, j = [j], target[j], j + 1
        while a != b:
            if (a < b and i < len(start)) or j >= len(target):
                a, ins, i = a * start[i], [*ins, i], i + 1
            else:
                b, outs, j = b * target[j], [*outs, j], j + 1
        if (not ins or not outs) and chunks:  # trailing axes of size 1
            chunks[-1][0].extend(ins)
            chunks[-1][1].extend(outs)
        else:
            chunks.append((ins, outs))
    return chunks


@rule("Expand")
def expand(scope: NodeScope) -> None:
    axes, before = scope.axes(0), scope.shape(0)
    if any(v is not None for v in axes):
        scope.ints(1)
    after = scope.out_shape()
    lead = len(after) - len(before)
    result: Axes = [None] * len(after)
    for k, labels in enumerate(axes):
        if labels is not None and before[k] == after[k + lead]:
            result[k + lead] = labels
        else:
            scope.lock(labels, "Expand repeats them")
    scope.out(result)


@rule("Tile")
def tile(scope: NodeScope) -> None:
    repeats = scope.ints(1) or []
    scope.out([None if v is None else np.tile(v, n) for v, n in zip(scope.axes(0), repeats, strict=True)])
