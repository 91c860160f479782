"""Rules of the operators that work on height and width and leave channels alone."""

from __future__ import annotations

from graphopt.analysis.labels.reading import carry
from graphopt.analysis.labels.registry import Unsupported, rule
from graphopt.analysis.labels.scope import NodeScope


@rule("MaxPool", "AveragePool", "LpPool")
def pool(scope: NodeScope) -> None:
    axes = scope.axes(0)
    scope.lock_axes([axes[0], *axes[2:]], f"{scope.op} slides over them")
    if len(scope.node.outputs) > 1 and scope.node.outputs[1].name:
        raise Unsupported("the indices it gives count channels")
    scope.out([None, axes[1], *[None] * (len(axes) - 2)])


@rule("Resize", "Upsample")
def resize(scope: NodeScope) -> None:
    """Channels pass where their axis keeps its size; a constant ``sizes`` is rewritten."""
    axes, before, after = scope.axes(0), scope.shape(0), scope.out_shape()
    if scope.attr("coordinate_transformation_mode", b"") in ("tf_crop_and_resize", b"tf_crop_and_resize"):
        raise Unsupported("Resize with a region of interest is not followed")
    if scope.op == "Resize" and scope.has(3):
        scope.ints(3)  # must be constant to be rewritten
    elif not scope.attr("scales") and scope.values(2 if scope.op == "Resize" and scope.opset > 10 else 1) is None:
        raise Unsupported("its scales are computed at run time; fold constants first")
    for k, labels in enumerate(axes):
        if labels is not None and (before[k] is None or before[k] != after[k]):
            scope.lock(labels, "Resize changes their number")
            axes[k] = None
    scope.out(axes)


@rule("DepthToSpace", "SpaceToDepth")
def depth_space(scope: NodeScope) -> None:
    shape, out = scope.shape(0), scope.out_shape()
    size = int(scope.attr("blocksize"))
    axes = scope.axes(0)
    scope.lock_axes([axes[0], *axes[2:]], f"{scope.op} mixes them with channels")
    axes = [None, axes[1], None, None]
    if shape[1] is None or None in shape[2:] or None in out[1:]:
        raise Unsupported("its sizes are not known")
    c = shape[1]
    if scope.op == "SpaceToDepth":
        view, order = [1, c, int(out[2] or 1), size, int(out[3] or 1), size], [0, 3, 5, 1, 2, 4]
    elif scope.attr("mode", "DCR") in ("CRD", b"CRD"):
        view, order = [1, c // size**2, size, size, int(shape[2] or 1), int(shape[3] or 1)], [0, 1, 4, 2, 5, 3]
    else:
        view, order = [1, size, size, c // size**2, int(shape[2] or 1), int(shape[3] or 1)], [0, 3, 4, 1, 5, 2]
    start = [1, *[int(d or 1) for d in shape[1:]]]
    target = [1, *[int(d or 1) for d in out[1:]]]
    scope.out(carry(scope, axes, start, lambda a: a.reshape(view).transpose(order).reshape(target), prefer=1))
