"""Rules of the operators that rearrange axes: Transpose, Reshape and their kin."""

from __future__ import annotations

from math import prod

import numpy as np

from graphopt.analysis.labels.builder import Axes, Axis
from graphopt.analysis.labels.reading import carry
from graphopt.analysis.labels.registry import Unsupported, rule
from graphopt.analysis.labels.scope import NodeScope
from graphopt.analysis.labels.shuffle import find_shuffle


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
    axes = scope.axes(0)
    if all(v is None for v in axes):
        scope.out([None] * len(scope.out_shape()))
        return
    shuffle = find_shuffle(scope)
    if shuffle is not None:
        labels = axes[shuffle.axis]
        axes[shuffle.axis] = None if labels is None else labels[shuffle.order]
        scope.builder.arriving[shuffle.chain[-1]] = axes
        scope.builder.shuffles.append(shuffle)
        scope.out([None] * len(scope.out_shape()))
        return
    # For several images, so that it shows where the batch goes when it is merged with other axes.
    start, target = _sizes(scope, True)
    of_one = _sizes(scope, False)[1]
    whole = [None if v is None else np.tile(v, n // v.size) for v, n in zip(axes, start, strict=True)]
    result: Axes = []
    for ins, outs in _chunks(start, target):
        part = [whole[k] for k in ins]
        if all(v is None for v in part):
            result.extend([None] * len(outs))
            continue
        to = [target[k] for k in outs]
        prefer = next((j for j, k in enumerate(outs) if (scope.index, k) in scope.builder.rows), None)
        moved = carry(scope, part, [start[k] for k in ins], lambda a, to=to: a.reshape(to), prefer, outs[0])  # type: ignore[misc]
        result.extend(moved)
    for k, labels in enumerate(result):
        if labels is not None:
            result[k] = _of_one(scope, labels, of_one[k])
            if scope.op == "Reshape" and target[k] != of_one[k] and scope.values(1) is None:
                scope.lock(labels, "how many of them the batch holds is computed at run time; fold constants first")
    scope.out(result)


def _of_one(scope: NodeScope, labels: np.ndarray, size: int) -> Axis:
    """The labels of one image, ``size`` of them, if those of several images repeat them; else none, and a lock."""
    if labels.size % size == 0 and np.array_equal(labels, np.tile(labels[:size], labels.size // size)):
        return labels[:size]
    scope.lock(labels, "they are merged with the batch, which varies faster")
    return None


def _sizes(scope: NodeScope, many: bool) -> tuple[list[int], list[int]]:
    """Sizes before and after; one that inference did not find follows from the others."""
    start = scope.sizes(scope.node.inputs[0], many)
    target = scope.sizes(scope.node.outputs[0], many)
    if None in start[1:]:
        raise Unsupported("the sizes of its input are not known")
    before = [1 if d is None else int(d) for d in start]
    total = prod(before)
    open_axes = [k for k, d in enumerate(target) if d is None]
    known = prod(d for d in target if d is not None)
    if len(open_axes) == 1 and known and total % known == 0:
        target[open_axes[0]] = total // known
    after = [int(d) for d in target if d is not None]
    if len(after) != len(target) or prod(after) != total or not total:
        raise Unsupported("the sizes of its output are not known")
    return before, after


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
    """Labels pass. An axis of size 1 is repeated as often as is needed: any may go, or what the tensor loses whose
    shape it takes on."""
    axes, before, after = scope.axes(0), scope.sizes(scope.node.inputs[0]), scope.sizes(scope.node.outputs[0])
    fixed, model = scope.out_shape(), _shape_of(scope)
    result: Axes = []
    for k, size in enumerate(after):
        at = k - (len(after) - len(before))
        there = None if model is None or k < len(after) - len(model) else model[k - (len(after) - len(model))]
        if at >= 0 and (before[at] == size or size is None):  # the axis is not repeated
            labels = axes[at]
            if scope.is_const(0) and size not in (None, 1):
                labels = scope.hidden(size) if there is None else there
                scope.attach(0, at, labels)
            if model is not None:
                labels = scope.tie(labels, there, "Expand gives them the size of an axis that cannot change")
        else:
            scope.lock(axes[at] if at >= 0 else None, "Expand repeats them")
            labels = there if model is not None or fixed[k] is None else scope.hidden(int(size or 1))
        result.append(labels)
    scope.out(result)


def _shape_of(scope: NodeScope) -> Axes | None:
    """Labels of the tensor whose shape a Shape node hands to this one; None if the target comes otherwise."""
    source = scope.builder.producers.get(scope.node.inputs[1].name)
    if source is None or source.op != "Shape" or source.attrs.get("start", 0) or "end" in source.attrs:
        return None
    return scope.builder.axes.get(source.inputs[0].name)


@rule("Tile")
def tile(scope: NodeScope) -> None:
    repeats = scope.ints(1) or []
    scope.out([None if v is None else np.tile(v, n) for v, n in zip(scope.axes(0), repeats, strict=True)])
