"""Rules of normalisations, and of reductions and softmax: all that computes statistics along an axis."""

from __future__ import annotations

from graphopt.analysis.labels.builder import Axes
from graphopt.analysis.labels.registry import Unsupported, rule
from graphopt.analysis.labels.scope import NodeScope


@rule("BatchNormalization", "InstanceNormalization")
def per_channel(scope: NodeScope) -> None:
    """Scale, bias, mean and variance are indexed by the channel, which is normalised by itself."""
    axes = scope.axes(0)
    for slot in range(1, len(scope.node.inputs)):
        if scope.has(slot):
            scope.attach(slot, 0, axes[1])
    if scope.op == "InstanceNormalization":
        scope.lock_axes(axes[2:], "InstanceNormalization takes its statistics over them")
    scope.out(axes)
    if len(scope.node.outputs) > 1:
        for k in range(1, len(scope.node.outputs)):
            scope.out([None], k)
        scope.lock(axes[1], "BatchNormalization in training mode is not followed")


@rule(
    "LayerNormalization",
    "RMSNormalization",
    "GroupNormalization",
    "LpNormalization",
    "LRN",
    "MeanVarianceNormalization",
)
def across_channels(scope: NodeScope) -> None:
    """Removing a channel changes the statistics of those that stay: not an exact removal."""
    axes = scope.axes(0)
    rank = len(axes)
    if scope.builder.norms and _can_pad(scope, axes):
        _padded_norm(scope, axes)
        return
    if scope.op in ("LayerNormalization", "RMSNormalization"):
        hit = axes[scope.axis(int(scope.attr("axis", -1)), rank) :]
    elif scope.op == "LpNormalization":
        hit = [axes[scope.axis(int(scope.attr("axis", -1)), rank)]]
    elif scope.op == "MeanVarianceNormalization":
        hit = [axes[scope.axis(int(k), rank)] for k in scope.attr("axes", [0, 2, 3])]
    else:
        hit = axes[1:]
    free = not scope.builder.norms and _can_pad(scope, axes)
    scope.lock_axes(
        hit, f"{scope.op} takes its statistics over them" + ("; the option norms frees them" if free else "")
    )
    scope.out(axes)
    for k in range(1, len(scope.node.outputs)):
        scope.out([None] * rank, k)


def _can_pad(scope: NodeScope, axes: Axes) -> bool:
    """Whether zeros in the place of what is removed keep the statistics: those of the last axis alone."""
    last, labels = len(axes) - 1, axes[-1]
    if scope.op not in ("LayerNormalization", "RMSNormalization") or labels is None or scope.shape(0)[last] is None:
        return False
    if scope.axis(int(scope.attr("axis", -1)), len(axes)) != last or any(t.name for t in scope.node.outputs[1:]):
        return False
    parameters = [slot for slot in (1, 2) if scope.has(slot)]
    return all(scope.is_const(slot) and scope.shape(slot) == [labels.size] for slot in parameters)


def _padded_norm(scope: NodeScope, axes: Axes) -> None:
    """A sum over channels like that of a product: what is masked before it counts as zero."""
    last, labels = len(axes) - 1, axes[-1]
    for slot in (1, 2):
        if scope.has(slot):
            scope.attach(slot, 0, labels)
    scope.contraction(0, [], [(0, last, labels)], [])
    scope.out(axes)


@rule("Softmax", "LogSoftmax", "Hardmax", "CumSum")
def along_axis(scope: NodeScope) -> None:
    """Every entry along the axis depends on all the others."""
    axes = scope.axes(0)
    rank = len(axes)
    if scope.op == "CumSum":
        given = scope.ints(1)
        at = slice(None) if not given else slice(scope.axis(given[0], rank), scope.axis(given[0], rank) + 1)
    elif scope.opset < 13:
        at = slice(scope.axis(int(scope.attr("axis", 1)), rank), None)  # coerced to two dimensions
    else:
        k = scope.axis(int(scope.attr("axis", -1)), rank)
        at = slice(k, k + 1)
    scope.lock_axes(axes[at], f"{scope.op} runs over them")
    scope.out(axes)


_REDUCTIONS = "Mean Max Min Prod LogSum LogSumExp".split()
_SUMS = "Sum L1 L2 SumSquare".split()  # to which zeros add nothing


@rule(*[f"Reduce{kind}" for kind in (*_REDUCTIONS, *_SUMS)])
def reduction(scope: NodeScope) -> None:
    """The reduced axes disappear. A sum over channels is one like that of a product; others fix them."""
    axes = scope.axes(0)
    given = scope.ints(1, "axes")
    if not given:
        given = [] if scope.attr("noop_with_empty_axes", 0) else list(range(len(axes)))
    reduced = [scope.axis(k, len(axes)) for k in given]
    if scope.op.removeprefix("Reduce") in _SUMS:
        summed = [k for k in reduced if axes[k] is not None and scope.shape(0)[k] is not None]
        scope.contraction(0, [], [(0, k, axes[k]) for k in summed], [])
        axes = [None if k in summed else v for k, v in enumerate(axes)]
    _reduce(scope, axes, reduced, bool(scope.attr("keepdims", 1)))


@rule("ArgMax", "ArgMin")
def arg_reduction(scope: NodeScope) -> None:
    axes = scope.axes(0)
    _reduce(scope, axes, [scope.axis(int(scope.attr("axis", 0)), len(axes))], bool(scope.attr("keepdims", 1)))


def _reduce(scope: NodeScope, axes: Axes, reduced: list[int], keep: bool) -> None:
    for k in reduced:
        scope.lock(axes[k], f"{scope.op} runs over the channels")
    scope.out([None if k in reduced else v for k, v in enumerate(axes) if keep or k not in reduced])


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(scope: NodeScope) -> None:
    axes = scope.axes(0)
    if len(axes) < 3:
        raise Unsupported("its input has no spatial axes")
    _reduce(scope, axes, list(range(2, len(axes))), True)
