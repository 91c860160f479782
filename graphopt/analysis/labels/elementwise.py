"""Rules of the operators that work element by element."""

from __future__ import annotations

from graphopt.analysis.labels.builder import Axes, Axis
from graphopt.analysis.labels.registry import Unsupported, rule
from graphopt.analysis.labels.scope import NodeScope

_UNARY = (
    "Relu LeakyRelu Sigmoid HardSigmoid HardSwish Elu Selu Celu ThresholdedRelu Softplus Softsign Tanh Gelu Mish "
    "Swish Erf Exp Log Sqrt Reciprocal Abs Neg Sign Floor Ceil Round Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh "
    "Acosh Atanh Not IsNaN IsInf Identity Cast CastLike Clip Shrink Dropout BitwiseNot"
).split()
_BROADCAST = (
    "Add Sub Mul Div Pow Mod Min Max Sum Mean And Or Xor Equal Less LessOrEqual Greater GreaterOrEqual Where PRelu "
    "BitShift BitwiseAnd BitwiseOr BitwiseXor"
).split()


@rule(*_UNARY)
def unary(scope: NodeScope) -> None:
    """Labels pass through; further inputs (the bounds of Clip) are scalars."""
    axes = scope.axes(0)
    for k in range(len(scope.node.outputs)):
        scope.out(axes, k)


@rule(*_BROADCAST)
def broadcast(scope: NodeScope) -> None:
    """Align right and couple index by index; an axis of size 1 is repeated and couples nothing."""
    slots = [s for s in range(len(scope.node.inputs)) if scope.has(s)]
    shapes = {s: scope.shape(s) for s in slots}
    rank = max(len(shape) for shape in shapes.values())
    axes: Axes = []
    for position in range(rank):
        present = []  # inputs that have more than one entry on this axis
        for s in slots:
            at = position - (rank - len(shapes[s]))
            if at >= 0 and (shapes[s][at] != 1 or _single(scope, s, at, slots, shapes, position, rank)):
                present.append((s, at))
        axes.append(_couple(scope, present))
    scope.out(axes)


def _single(
    scope: NodeScope,
    slot: int,
    at: int,
    slots: list[int],
    shapes: dict[int, list[int | None]],
    position: int,
    rank: int,
) -> bool:
    """An axis of size 1 takes part only where all inputs have size 1 there: one channel is a channel too."""
    sizes = []
    for s in slots:
        k = position - (rank - len(shapes[s]))
        if k >= 0:
            sizes.append(shapes[s][k])
    return all(d == 1 for d in sizes) and not scope.is_const(slot)


def _couple(scope: NodeScope, present: list[tuple[int, int]]) -> Axis:
    variables = [(s, at) for s, at in present if not scope.is_const(s)]
    if not variables:
        return None  # the axis comes from a constant alone and stays as it is
    first_slot, first_at = variables[0]
    labels = scope.axes(first_slot)[first_at]
    for s, at in variables[1:]:
        labels = scope.tie(labels, scope.axes(s)[at], "it is combined with a tensor whose channels cannot change")
    for s, at in present:
        if scope.is_const(s):
            scope.attach(s, at, labels)
    return labels


@rule("QuantizeLinear", "DequantizeLinear")
def quantize(scope: NodeScope) -> None:
    """Scale and zero point per axis are indexed by the channels; one scale for all couples nothing."""
    shape = scope.shape(0)
    if scope.attr("block_size", 0):
        raise Unsupported("blocked quantization is not followed")
    if scope.is_const(0):  # a quantized weight: whoever reads it says what its axes are
        axes: Axes = [scope.hidden(int(d)) if d else None for d in shape]
        for k, labels in enumerate(axes):
            scope.attach(0, k, labels)
    else:
        axes = scope.axes(0)
    if len(shape):
        axis = scope.axis(int(scope.attr("axis", 1)), len(shape)) if len(shape) > 1 else 0
        for slot in (1, 2):
            if scope.has(slot) and scope.shape(slot) not in ([], [1]):
                scope.attach(slot, 0, axes[axis])
    scope.out(axes)
