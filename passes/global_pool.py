"""Means and maxima over whole images, as the global poolings that they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.rewrite import RewritePass, Rule, Workbench
from graphopt.rewrite.kernels import why_not_written
from graphopt.rewrite.operands import RESHAPES, constant_axes, reduced_axes
from graphopt.rewrite.shapes import known

_GLOBAL = {
    "ReduceMean": "GlobalAveragePool",
    "AveragePool": "GlobalAveragePool",
    "ReduceMax": "GlobalMaxPool",
    "MaxPool": "GlobalMaxPool",
}
_RANKS = (3, 4, 5)  # those that ONNX Runtime pools


@dataclass(frozen=True)
class GlobalPool(RewritePass):
    """Make a global pooling of a ReduceMean or ReduceMax over all spatial axes, and of an AveragePool or MaxPool whose
    kernel covers the whole image.

    A mean that belongs to a normalisation stays, and so does one that drops its axes, unless a Reshape or the like
    follows, which can drop them instead.
    """

    name = "global-pool"
    kind = Kind.EXACT
    resumes = True
    requires = ("fold",)  # axes must be initializers

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (
            Rule("reductions", ("ReduceMean", "ReduceMax"), pool_reduction, reach=2),
            Rule("poolings", ("AveragePool", "MaxPool"), pool_kernel),
        )


def pool_reduction(bench: Workbench, node: gs.Node) -> str | None:
    """Replace a ReduceMean or ReduceMax over exactly the spatial axes of [N,C,...]."""
    x, y = node.inputs[0], node.outputs[0]
    if x.shape is None:
        return f"the rank of {x.name!r} is unknown"
    rank = len(x.shape)
    axes = reduced_axes(bench, node, rank)
    if isinstance(axes, str):
        return axes
    if rank < 3 or axes != list(range(2, rank)):
        return None  # a mean over other axes is common, and nothing like a pooling
    reason = _why_not_pooled(bench, node, rank)
    if reason:
        return reason
    if node.attrs.get("keepdims", 1):
        bench.become(node, _GLOBAL[node.op], [x])
        return None
    after = _only_reader(bench, y)
    if after is None:
        return "it drops the axes that it reduces (keepdims=0): a global pooling would need one more node to do so"
    reason = bench.why_shared(y)
    if reason:
        return reason
    return _pool_before(bench, node, after, rank)


def _why_not_pooled(bench: Workbench, node: gs.Node, rank: int) -> str | None:
    if rank not in _RANKS:
        return f"its input has rank {rank}; ONNX Runtime pools ranks 3 to 5"
    if _normalises(bench, node):
        return "it is the mean or the variance of a normalisation"
    return why_not_written(bench, _GLOBAL[node.op], node.inputs[0], ((1, 2, *(2,) * (rank - 2)),))


def _normalises(bench: Workbench, node: gs.Node) -> bool:
    """Whether a mean is subtracted from what it was taken of, or is one of squares.

    [N,T,C] and [N,C,L] look alike: without this, the means of a LayerNormalization would become poolings.
    """
    x, y = node.inputs[0], node.outputs[0]
    if any(r.op == "Sub" and x.name in {t.name for t in r.inputs} for r in bench.readers(y)):
        return True
    before = bench.standard_producer(x, "Mul", "Pow")
    if before is None:
        return False
    return bench.scalar(before.inputs[1]) == 2 if before.op == "Pow" else before.inputs[0].name == before.inputs[1].name


def _only_reader(bench: Workbench, tensor: gs.Tensor) -> gs.Node | None:
    """The one Reshape or the like that reads a tensor as its data."""
    readers = bench.readers(tensor)
    if len(readers) != 1 or readers[0].op not in RESHAPES or not bench.is_standard(readers[0]):
        return None
    return readers[0] if readers[0].inputs[0].name == tensor.name else None


def _pool_before(bench: Workbench, node: gs.Node, after: gs.Node, rank: int) -> str | None:
    """Pool, and let the node after it make of [N,C,1,...] what it made of [N,C]."""
    if any(t.name == node.outputs[0].name for t in after.inputs[1:]):
        return "its result is also the shape that it is given"
    axes: list[int] | None = None
    if after.op in ("Squeeze", "Unsqueeze"):
        given = constant_axes(bench, after)
        if given is None and len(after.inputs) > 1 and after.inputs[1].name:
            return f"the axes of {after.name!r} are not constant"
        if given is not None:
            full = 2 + (len(given) if after.op == "Unsqueeze" else 0)
            axes = sorted({a % full for a in given})
    if after.op == "Unsqueeze":
        return _pool_unsqueezed(bench, node, after, axes, rank)
    pooled = bench.emit(_GLOBAL[node.op], [node.inputs[0]], node, stem=node.name)
    if axes is not None:
        axes = [*axes, *range(2, rank)]
        if bench.model.opset < 13:
            after.attrs["axes"] = axes
        else:
            bench.set_input(after, 1, bench.model.constant(f"{after.name}_axes", np.array(axes, np.int64)))
    elif after.op == "Flatten":
        axis = int(after.attrs.get("axis", 1))
        after.attrs["axis"] = axis + 2 if axis < 0 else axis
    bench.set_input(after, 0, pooled)
    return None


def _pool_unsqueezed(bench: Workbench, node: gs.Node, after: gs.Node, axes: list[int] | None, rank: int) -> str | None:
    if axes != list(range(2, rank)):
        return f"it drops its axes (keepdims=0), and {after.name!r} brings back others"
    bench.become(after, _GLOBAL[node.op], [node.inputs[0]])
    return None


def pool_kernel(bench: Workbench, node: gs.Node) -> str | None:
    """Replace an AveragePool or MaxPool by a global one if its kernel is as large as the image, without padding."""
    kernel = [int(k) for k in node.attrs.get("kernel_shape", ())]
    shape = node.inputs[0].shape
    if shape is None or len(shape) != len(kernel) + 2:
        return None
    size = list(shape)[2:]
    unknown = [i for i, d in enumerate(size) if not known(d)]
    if any(k != int(d) for k, d in zip(kernel, size, strict=True) if known(d)):
        return None
    if unknown:
        return f"whether its kernel {kernel} covers the image is unknown: the size is {size}"
    reason = _why_partial(node)
    if not reason and len(node.outputs) > 1 and node.outputs[1].name:
        indices = node.outputs[1]
        if bench.readers(indices) or bench.why_bound(indices):
            reason = "it also returns where the maxima are"
    if not reason and len(shape) not in _RANKS:
        reason = f"its input has rank {len(shape)}; ONNX Runtime pools ranks 3 to 5"
    op = _GLOBAL[node.op]
    reason = reason or why_not_written(bench, op, node.inputs[0], ((1, 2, *(2,) * len(kernel)),))
    if reason:
        return f"its kernel covers the image, but {reason}"
    while len(node.outputs) > 1:
        bench.drop_output(node)
    bench.become(node, op, [node.inputs[0]])
    return None


def _why_partial(node: gs.Node) -> str | None:
    """Why a kernel of the image's size may see less than the image, or see it more than once."""
    automatic = node.attrs.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID"):
        return f"its padding is automatic ({automatic})"
    if automatic == "NOTSET" and any(node.attrs.get("pads", ())):
        return "it pads the image"
    if any(d != 1 for d in node.attrs.get("dilations", ())):
        return "its kernel is dilated"
    return None
