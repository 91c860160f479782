"""Rules of the operators that sum over channels: convolutions and matrix products."""

from __future__ import annotations

from math import prod

import numpy as np

from graphopt.analysis.cost import Shape, is_constant
from graphopt.analysis.labels.builder import Axes, Axis
from graphopt.analysis.labels.registry import Unsupported, rule
from graphopt.analysis.labels.scope import NodeScope

_FIXED = "it meets channels that cannot change"


def _spatial(shape: Shape) -> int:
    return prod(1 if d is None else d for d in shape[2:])


def _static(shape: Shape) -> list[int]:
    if any(d is None for d in shape):
        raise Unsupported("the shape of its weight is not known")
    return [int(d) for d in shape if d is not None]


def _batch_free(scope: NodeScope, axes: Axes) -> None:
    """Batch and spatial axes of a convolution's input cannot lose entries."""
    for position, labels in enumerate(axes):
        if position != 1:
            scope.lock(labels, f"{scope.op} slides over them or takes them for the batch")


@rule("Conv")
def conv(scope: NodeScope) -> None:
    weight = _static(scope.shape(1))
    x, groups = scope.axes(0), int(scope.attr("group", 1))
    _batch_free(scope, x)
    y, _ = _grouped(scope, x[1], weight[0], weight[1], groups)
    whole = groups > 1 and (weight[1] == 1 or weight[0] == groups)  # groups are dropped whole
    scope.attach(1, 0, y, _FIXED)
    scope.attach(1, 1, None if whole or x[1] is None else x[1][: weight[1]], _FIXED)
    for axis in range(2, len(weight)):
        scope.attach(1, axis, None)
    if scope.has(2):
        scope.attach(2, 0, y)
    spatial = _spatial(scope.sizes(scope.node.outputs[0]))
    scope.out([None, y, *[None] * (len(weight) - 2)])
    _record(scope, y, weight[0], weight[1], groups, spatial * prod(weight[2:]))


@rule("ConvTranspose")
def conv_transpose(scope: NodeScope) -> None:
    """The weight is [Cin, Cout/groups, ...]: its axes are swapped with respect to Conv."""
    weight = _static(scope.shape(1))
    x, groups = scope.axes(0), int(scope.attr("group", 1))
    _batch_free(scope, x)
    per_group, outputs = weight[0] // groups, weight[1] * groups
    y, per_out = _grouped(scope, x[1], outputs, per_group, groups)
    scope.attach(1, 1, per_out, _FIXED)
    scope.attach(1, 0, x[1] if x[1] is not None else None, _FIXED)
    for axis in range(2, len(weight)):
        scope.attach(1, axis, None)
    if scope.has(2):
        scope.attach(2, 0, y)
    scope.out([None, y, *[None] * (len(weight) - 2)])
    scale = _spatial(scope.sizes(scope.node.inputs[0])) * prod(weight[2:])
    summed = [(0, 1, x[1])] if per_group > 1 or groups == 1 else []
    scope.contraction(scale, [x[1], per_out], summed, [weight[0], weight[1]])


def _grouped(scope: NodeScope, x: Axis, outputs: int, per_group: int, groups: int) -> tuple[np.ndarray, Axis]:
    """Couple the channels of a convolution; returns those of its output, and those of one group of it.

    Depthwise (and in general one channel in or out per group): a group is dropped as a whole and ``group`` is
    rewritten. Other grouped convolutions keep their groups, and every group loses the same positions, so that the
    weight stays rectangular.
    """
    per_out = outputs // groups
    if groups == 1:
        y = scope.fresh(outputs)
        return y, y
    if per_group == 1 or per_out == 1:
        if x is None:  # the input is fixed, so the groups are, and with them the outputs
            y = scope.fresh(outputs)
            scope.lock(y, "each of its groups reads an input channel that cannot be removed")
        else:
            blocks = x.reshape(groups, per_group)
            for k in range(1, per_group):
                scope.builder.tie(blocks[:, 0], blocks[:, k])
            y = np.repeat(blocks[:, 0], per_out)
        return y, None
    y = scope.fresh(outputs)
    _tie_rows(scope, y.reshape(groups, per_out))
    if x is not None:
        _tie_rows(scope, x.reshape(groups, per_group))
    return y, y[:per_out]


def _tie_rows(scope: NodeScope, table: np.ndarray) -> None:
    for row in table[1:]:
        scope.builder.tie(table[0], row)


def _record(scope: NodeScope, y: np.ndarray, outputs: int, per_group: int, groups: int, scale: int) -> None:
    x = scope.axes(0)[1]
    if groups == 1:
        scope.contraction(scale, [y, x], [(0, 1, x)], [outputs, per_group])
    elif per_group == 1 or outputs == groups:
        scope.contraction(scale * per_group, [y], [], [outputs])
    else:
        first = None if x is None else x[:per_group]
        scope.contraction(scale, [y, first], [(0, 1, x)], [outputs, per_group])


@rule("Gemm")
def gemm(scope: NodeScope) -> None:
    a, b = scope.shape(0), scope.shape(1)
    rows, inner_a = (1, 0) if scope.attr("transA", 0) else (0, 1)
    inner_b, columns = (1, 0) if scope.attr("transB", 0) else (0, 1)
    y = _product(scope, inner_a, inner_b, columns)
    left = scope.axes(0)[rows]
    if scope.has(2):
        bias = scope.shape(2)
        if bias and bias[-1] != 1:
            scope.attach(2, len(bias) - 1, y, _FIXED)
        if len(bias) == 2 and bias[0] != 1:
            scope.attach(2, 0, left, _FIXED)
    scope.out([left, y])
    inner = scope.axes(0)[inner_a]
    sizes = [b[columns], a[inner_a] or b[inner_b], scope.sizes(scope.node.inputs[0])[rows]]
    inputs = [(0, inner_a, inner), (1, inner_b, scope.axes(1)[inner_b])]
    scope.contraction(weighted(scope), [y, inner, left], inputs, sizes)


def weighted(scope: NodeScope) -> int:
    """1 if a factor is constant; 0 for a product of two activations, whose MACs do not count."""
    return int(any(is_constant(t, scope.builder.producers) for t in scope.node.inputs[:2]))


def _product(scope: NodeScope, inner_a: int, inner_b: int, columns: int) -> Axis:
    """Couple the contracted axes of inputs 0 and 1; returns the labels of the columns of input 1."""
    a, b = scope.axes(0), scope.axes(1)
    if scope.is_weight(1):
        scope.attach(1, inner_b, a[inner_a], _FIXED)
        size = scope.shape(1)[columns]
        y: Axis = scope.fresh(size)
        scope.attach(1, columns, y, _FIXED)
        return y
    if scope.is_const(0):
        scope.attach(0, inner_a, b[inner_b])
    else:
        scope.tie(a[inner_a], b[inner_b], f"{scope.op} sums over them together with an axis that cannot change")
        if scope.shape(0)[inner_a] is None:
            scope.lock(a[inner_a], f"{scope.op} sums over them and over the batch")
    return b[columns]


@rule("MatMul")
def matmul(scope: NodeScope) -> None:
    a, b = scope.shape(0), scope.shape(1)
    if len(a) < 2 or len(b) < 2:
        raise Unsupported("a product with a vector is not followed")
    y = _product(scope, len(a) - 1, len(b) - 2, len(b) - 1)
    out = scope.out_shape()
    left, right = scope.axes(0), scope.axes(1)
    rows: Axis = left[-2]
    if scope.is_const(0):
        rows = scope.fresh(a[-2])
        scope.attach(0, len(a) - 2, rows)
    lead: Axes = []
    for k in range(len(out) - 2):
        pa, pb = k - (len(out) - len(a)), k - (len(out) - len(b))
        have_a = pa >= 0 and a[pa] != 1
        have_b = pb >= 0 and b[pb] != 1
        la = left[pa] if have_a else None
        lb = right[pb] if have_b else None
        if have_a and have_b:
            if scope.is_const(1):
                scope.attach(1, pb, la)
                lead.append(la)
            elif scope.is_const(0):
                scope.attach(0, pa, lb)
                lead.append(lb)
            else:
                scope.batch(la, lb)
                lead.append(scope.tie(la, lb, _FIXED))
        else:
            lead.append(la if have_a else lb)
    scope.out([*lead, rows, y])
    inner = scope.axes(0)[-1] if not scope.is_const(0) else right[-2]
    axes: list[Axis] = [y, inner, rows, *lead]
    of_one = scope.sizes(scope.node.outputs[0])
    sizes = [of_one[-1], a[-1] or b[-2], of_one[-2], *of_one[:-2]]
    scope.contraction(weighted(scope), axes, [(0, len(a) - 1, left[-1]), (1, len(b) - 2, right[-2])], sizes)
