"""Operators that speak of axes: how their axes, and lists with one number an axis, follow a change of form."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.layout.forms import Axes, narrow, rank_of, widen
from graphopt.passes.layout.plan import Anchor, Plan, attribute, axis_of, plain, put_vector, reordered, vector
from graphopt.rewrite import Workbench
from graphopt.rewrite.shapes import same

FIXED = "it works on this order of axes only"
UNKNOWN_AXES = "its axes are not constant"
_AXIS = {"Concat": 1, "Split": 0, "TopK": -1, "LpNormalization": -1}


def along_axis(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Concat, Split, TopK, LpNormalization."""
    form = anchor.form
    if not isinstance(form, Axes):
        return FIXED
    plan = plain(node, form, form, attribute("axis", form.place(axis_of(node, _AXIS[node.op], form.rank))))
    if node.op == "Concat":
        plan.ins = [form] * len(node.inputs)
    return plan


def softmax(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Softmax, LogSoftmax, Hardmax. Before opset 13 they work over all axes from the given one on."""
    form = anchor.form
    if not isinstance(form, Axes):
        return FIXED
    if bench.model.opset >= 13:
        return plain(node, form, form, attribute("axis", form.place(axis_of(node, -1, form.rank))))
    axis = axis_of(node, 1, form.rank)
    if set(form.perm[axis:]) == set(range(axis, form.rank)):
        return plain(node, form, form)
    if axis == form.rank - 1:
        return "before opset 13 it works over all axes from one on, so that its axis must stay the last"
    return "it works over several axes, which must stay together at the end"


def reduction(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Reductions over given axes, or over all."""
    axes, is_known = vector(bench, node, 1, "axes")
    if not is_known:
        return UNKNOWN_AXES
    return _over(node, anchor, axes, bool(node.attrs.get("keepdims", 1)))


def _over(node: gs.Node, anchor: Anchor, axes: np.ndarray | None, keep: bool) -> Plan | str:
    form = anchor.form
    if not isinstance(form, Axes):
        return FIXED
    rank = rank_of(node.inputs[0])
    if rank is None:
        return f"the rank of {node.inputs[0].name!r} is unknown"
    if axes is None or not axes.size:
        if not anchor.is_input and not keep:
            return FIXED
        return plain(node, form, form if keep or node.attrs.get("noop_with_empty_axes", 0) else None)
    gone = sorted({int(a) % rank for a in axes})
    if keep:
        wide: Axes = form
        small = form
    else:
        wide = form if anchor.is_input else widen(form, gone)
        small = narrow(wide, gone)
    if wide.rank != rank:
        return FIXED
    return plain(node, wide, small, put_vector(1, "axes", sorted(wide.place(a) for a in gone)))


def squeeze(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    axes, is_known = vector(bench, node, 1, "axes")
    if axes is None or not is_known:
        return UNKNOWN_AXES if not is_known else "it removes every axis of size one, whichever those are"
    if not axes.size:
        return FIXED
    return _over(node, anchor, axes, False)


def unsqueeze(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    form = anchor.form
    axes, is_known = vector(bench, node, 1, "axes")
    if axes is None or not is_known or not isinstance(form, Axes):
        return UNKNOWN_AXES if not is_known else FIXED
    rank = form.rank + len(axes) if anchor.is_input else form.rank
    new = sorted({int(a) % rank for a in axes})
    wide = widen(form, new) if anchor.is_input else form
    return plain(node, narrow(wide, new), wide, put_vector(1, "axes", sorted(wide.place(a) for a in new)))


def arg_reduction(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """ArgMax, ArgMin: over one axis, an attribute."""
    rank = rank_of(node.inputs[0])
    if rank is None:
        return f"the rank of {node.inputs[0].name!r} is unknown"
    return _over_axis(node, anchor, axis_of(node, 0, rank), bool(node.attrs.get("keepdims", 1)))


def _over_axis(node: gs.Node, anchor: Anchor, axis: int, keep: bool) -> Plan | str:
    """What works over one axis, an attribute, as a reduction over it does."""
    plan = _over(node, anchor, np.array([axis]), keep)
    if isinstance(plan, Plan):
        wide = plan.ins[0]
        plan.change = attribute("axis", wide.place(axis)) if isinstance(wide, Axes) else None
    return plan


def gather(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Gather from an activation, with indices of rank 0 or 1."""
    data, indices = node.inputs[:2]
    rank, indices_rank = rank_of(data), rank_of(indices)
    form = anchor.form
    if not isinstance(form, Axes) or (anchor.is_input and anchor.index) or isinstance(data, gs.Constant):
        return FIXED
    if rank is None or indices_rank is None:
        return f"the rank of {data.name if rank is None else indices.name!r} is unknown"
    if indices_rank > 1:
        return "its indices have several axes"
    return _over_axis(node, anchor, axis_of(node, 0, rank), indices_rank == 1)


def pad(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    form = anchor.form
    if not isinstance(form, Axes) or (anchor.is_input and anchor.index):
        return FIXED
    axes, is_known = vector(bench, node, 3, "axes")
    if not is_known:
        return UNKNOWN_AXES
    if axes is not None:
        return plain(node, form, form, put_vector(3, "axes", [form.place(int(a) % form.rank) for a in axes], axes))
    pads, _ = vector(bench, node, 1, "pads")
    if pads is None or pads.size != 2 * form.rank:
        return "its amounts are not constant"
    before, after = (reordered(form, half) for half in np.split(pads, 2))
    return plain(node, form, form, put_vector(1, "pads", np.concatenate([before, after]), pads))


def slice_(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Slice; its bounds need not be constant."""
    form = anchor.form
    if not isinstance(form, Axes) or (anchor.is_input and anchor.index):
        return FIXED
    axes, is_known = vector(bench, node, 3, "axes")
    if not is_known:
        return UNKNOWN_AXES
    if axes is None:
        starts = node.attrs.get("starts")
        shape = None if starts is not None else node.inputs[1].shape
        count = len(starts) if starts is not None else shape[0] if shape and isinstance(shape[0], int) else None
        if count is None:
            return UNKNOWN_AXES
        # As an input, it is of the type of the one beside it.
        kind = np.int64 if starts is not None else node.inputs[1].dtype
        if kind is None:
            return UNKNOWN_AXES
        axes = np.arange(count, dtype=np.dtype(kind))
    return plain(node, form, form, put_vector(3, "axes", [form.place(int(a) % form.rank) for a in axes], axes))


def tile(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Tile, and Expand to a shape of the rank that it has."""
    form = anchor.form
    if not isinstance(form, Axes) or (anchor.is_input and anchor.index) or isinstance(node.inputs[0], gs.Constant):
        return FIXED
    values, _ = vector(bench, node, 1, "repeats" if node.op == "Tile" else "shape")
    if values is None:
        return "its second input is not constant"
    if len(values) != form.rank:
        return "it changes the rank"
    name = "repeats" if node.op == "Tile" else "shape"
    return plain(node, form, form, put_vector(1, name, reordered(form, values), values))


def resize(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Resize and Upsample by constant scales, or to constant sizes."""
    form = anchor.form
    if not isinstance(form, Axes) or (anchor.is_input and anchor.index):
        return FIXED
    attrs = node.attrs
    if attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize" or "axes" in attrs:
        return "it crops, or names the axes that it resizes"
    if attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it keeps the ratio of height and width"
    place = 1 if node.op == "Upsample" or bench.model.opset < 11 else 2
    scales, scales_known = vector(bench, node, place, "scales")
    sizes, sizes_known = vector(bench, node, 3, "sizes")
    if not scales_known or not sizes_known:
        return "its scales or sizes are not constant"
    if scales is not None and scales.size == form.rank:
        wide = [a for a in range(form.rank) if scales[a] != 1]
        change = put_vector(place, "scales", reordered(form, scales), scales)
    elif sizes is not None and sizes.size == form.rank and node.inputs[0].shape is not None:
        wide = [a for a, d in enumerate(node.inputs[0].shape) if not same(d, int(sizes[a]))]
        change = put_vector(3, "sizes", reordered(form, sizes), sizes)
    else:
        return "its scales or sizes are not one an axis"
    # Runtimes interpolate over the last two axes only.
    if attrs.get("mode", "nearest") != "nearest" and any(form.place(a) < form.rank - 2 for a in wide):
        return "it interpolates over axes that would not be the last ones"
    return plain(node, form, form, change)


def normalization(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """LayerNormalization over the last axes, which must stay."""
    form = anchor.form
    if not isinstance(form, Axes) or any(t.name for t in node.outputs[1:]) or (anchor.is_input and anchor.index):
        return FIXED
    axis = axis_of(node, -1, form.rank)
    if form.perm[axis:] != tuple(range(axis, form.rank)):
        return "it normalizes over the last axes"
    return plain(node, form, form)


def channels(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """BatchNormalization and InstanceNormalization, which must find the channels at axis 1."""
    form = anchor.form
    fixed = (1,) if node.op == "BatchNormalization" else (0, 1)
    if not isinstance(form, Axes) or any(t.name for t in node.outputs[1:]) or (anchor.is_input and anchor.index):
        return FIXED
    if form.rank < 2 or any(form.perm[a] != a for a in fixed):
        return "it takes axis 1 for the channels"
    if node.attrs.get("training_mode", 0) or not node.attrs.get("spatial", 1):
        return FIXED
    return plain(node, form, form)


def global_pool(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """GlobalAveragePool and GlobalMaxPool, as reductions over the axes that were the spatial ones."""
    form = anchor.form
    if not isinstance(form, Axes) or form.rank < 3:
        return FIXED
    axes = sorted(form.place(a) for a in range(2, form.rank))

    def change(bench: Workbench, node: gs.Node) -> None:
        op = "ReduceMean" if node.op == "GlobalAveragePool" else "ReduceMax"
        if axes == list(range(2, form.rank)):
            return
        if bench.model.opset < 18:
            bench.become(node, op, [node.inputs[0]], axes=axes, keepdims=1)
        else:
            constant = bench.model.constant(f"{node.name}_axes", np.array(axes, np.int64))
            bench.become(node, op, [node.inputs[0], constant], keepdims=1)

    return plain(node, form, form, change)


def shape(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Shape: the numbers are put back in order."""
    form = anchor.form
    if not isinstance(form, Axes):
        return FIXED
    start, end = node.attrs.get("start", 0), node.attrs.get("end", form.rank)
    order = np.array(form.inverse().perm[start:end], np.int64)

    def change(bench: Workbench, node: gs.Node) -> None:
        dims = bench.emit("Shape", [node.inputs[0]], node)
        bench.become(node, "Gather", [dims, bench.model.constant(f"{node.name}_order", order)], axis=0)

    return plain(node, form, None, change)
