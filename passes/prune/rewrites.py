"""What counts channels besides weights: groups, target shapes, slice bounds, split sizes, pads, indices."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels.indexing import equal_parts
from graphopt.passes.prune.surgery import Edit, rewrites


@rewrites("Conv", "ConvTranspose")
def conv(edit: Edit) -> None:
    """A depthwise convolution has as many groups as channels stay; others keep their groups."""
    groups = int(edit.node.attrs.get("group", 1))
    kept = edit.kept_out()[1] if len(edit.kept_out()) > 1 else None
    x = edit.labels.tensors[edit.node.inputs[0].name]
    if groups == 1 or kept is None or x[1] is None:
        return
    per_group, per_out = x[1].size // groups, kept.size // groups  # before removal, as the rule saw them
    if per_group == 1 or per_out == 1:
        edit.node.attrs["group"] = int(kept.sum()) // per_out


@rewrites("Reshape", "Expand")
def target_shape(edit: Edit) -> None:
    """Entries that name a channel count; 0 and -1 mean the right thing by themselves."""
    shape, kept = edit.ints(1), edit.kept_out()
    if all(m is None for m in kept):
        return
    if shape is None:
        _computed_shape(edit, kept)
        return
    lead = len(kept) - len(shape)
    for k, mask in enumerate(kept):
        at = k - lead
        if mask is not None and at >= 0 and shape[at] > 0 and (edit.node.op == "Reshape" or shape[at] == mask.size):
            shape[at] = int(mask.sum())
    edit.put(1, None, shape)


def _computed_shape(edit: Edit, kept: list[np.ndarray | None]) -> None:
    """Overwrite entries of a shape that is computed at run time."""
    node, model = edit.node, edit.model
    old = node.inputs[1]
    rank = old.shape[0] if old.shape and isinstance(old.shape[0], int) else len(kept)
    masks = kept[len(kept) - rank :]
    others = np.array([int(m is None) for m in masks], dtype=np.int64)
    counts = np.array([0 if m is None else int(m.sum()) for m in masks], dtype=np.int64)
    for op, value in (("Mul", others), ("Add", counts)):
        new = gs.Variable(model.fresh_name(f"{node.name}_shape"), dtype=np.int64, shape=[rank])
        by = model.constant(f"{node.name}_kept", value)
        edit.before.append(gs.Node(op, model.fresh_name(f"{node.name}_shape"), {}, [node.inputs[1], by], [new]))
        node.inputs[1] = new


@rewrites("Resize")
def resize(edit: Edit) -> None:
    sizes, kept = edit.ints(3), edit.kept_out()
    if sizes is None:
        return
    axes = edit.node.attrs.get("axes") or list(range(len(kept)))
    for k, axis in enumerate(axes):
        mask = kept[int(axis)]
        if mask is not None:
            sizes[k] = int(mask.sum())
    edit.put(3, None, sizes)


@rewrites("Slice")
def slice_(edit: Edit) -> None:
    kept = edit.kept_in()
    if all(m is None for m in kept):
        return
    starts, ends, given = edit.ints(1, "starts"), edit.ints(2, "ends"), edit.ints(3, "axes")
    assert starts is not None and ends is not None
    steps = edit.ints(4) or [1] * len(starts)
    for k, axis in enumerate(range(len(starts)) if given is None else given):
        mask = kept[axis]
        if mask is not None and steps[k] != 1:  # what is left is at irregular distances
            _gather_instead(edit, axis, _renumbered(mask, np.arange(mask.size)[starts[k] : ends[k] : steps[k]]))
            starts[k], ends[k], steps[k] = 0, np.iinfo(np.int64).max, 1
        elif mask is not None:
            first, last, _ = slice(starts[k], ends[k]).indices(mask.size)
            starts[k] = int(mask[:first].sum())
            ends[k] = int(mask[: max(first, last)].sum())
    edit.put(1, "starts", starts)
    edit.put(2, "ends", ends)
    if edit.ints(4) is not None:
        edit.put(4, None, steps)


def _gather_instead(edit: Edit, axis: int, indices: list[int]) -> None:
    """Leave it to a Gather before the Slice which entries of an axis it sees."""
    node, model = edit.node, edit.model
    picked = gs.Variable(model.fresh_name(f"{node.name}_picked"), dtype=node.inputs[0].dtype)
    order = model.constant(f"{node.name}_order", np.array(indices, dtype=np.int64))
    edit.before.append(
        gs.Node("Gather", model.fresh_name(f"{node.name}_gather"), {"axis": axis}, [node.inputs[0], order], [picked])
    )
    node.inputs[0] = picked


@rewrites("Gather")
def gather(edit: Edit) -> None:
    kept = edit.kept_in()
    axis = int(edit.node.attrs.get("axis", 0))
    if not kept or kept[axis] is None:
        return
    mask, indices = kept[axis], edit.ints(1)
    assert mask is not None and indices is not None
    edit.put(1, None, _renumbered(mask, np.array(indices, dtype=np.int64)))


def _renumbered(mask: np.ndarray, indices: np.ndarray) -> list[int]:
    """Indices of what stays, counted among what stays."""
    at = np.where(indices < 0, indices + mask.size, indices)
    return [int(v) for v in (np.cumsum(mask) - 1)[at[mask[at]]]]


@rewrites("Split")
def split(edit: Edit) -> None:
    node, kept = edit.node, edit.kept_in()
    axis = int(node.attrs.get("axis", 0))
    mask = kept[axis] if kept else None
    if mask is None:
        return
    sizes = edit.ints(1, "split")
    given = sizes or equal_parts(mask.size, len(node.outputs))
    left = [int(p.sum()) for p in np.split(mask, np.cumsum(given)[:-1])]
    if sizes is not None:
        edit.put(1, "split", left)
    elif edit.model.opset < 13:
        node.attrs["split"] = left
    else:
        node.attrs.pop("num_outputs", None)
        node.inputs = [node.inputs[0], edit.model.constant(f"{node.name}_sizes", np.array(left, dtype=np.int64))]


@rewrites("Pad")
def pad(edit: Edit) -> None:
    pads, kept = edit.ints(1, "pads"), edit.kept_out()
    if pads is None or all(m is None for m in kept):
        return
    given = edit.ints(3)
    axes = list(range(len(kept))) if given is None else given
    for k, axis in enumerate(axes):
        mask = kept[axis]
        before, after = pads[k], pads[k + len(axes)]
        if mask is not None and (before or after):
            pads[k] = int(mask[:before].sum())
            pads[k + len(axes)] = int(mask[mask.size - after :].sum())
    edit.put(1, "pads", pads)


@rewrites("LayerNormalization", "RMSNormalization")
def norm(edit: Edit) -> None:
    """Statistics are taken over as many channels as before: zeros stand for those that are gone."""
    node, model = edit.node, edit.model
    kept = edit.kept_in()
    mask = kept[-1] if kept else None
    if mask is None:
        return
    missing, left = int((~mask).sum()), int(mask.sum())
    dtype = node.inputs[0].dtype
    whole = gs.Variable(model.fresh_name(f"{node.name}_padded"), dtype=dtype)
    normed = gs.Variable(model.fresh_name(f"{node.name}_normed"), dtype=dtype)

    def ints(*values: int) -> gs.Constant:
        return model.constant(f"{node.name}_kept", np.array(values, dtype=np.int64))

    pads = ints(*[0] * (2 * len(kept) - 1), missing)
    edit.before.append(gs.Node("Pad", model.fresh_name(f"{node.name}_pad"), {}, [node.inputs[0], pads], [whole]))
    cut = [normed, ints(0), ints(left), ints(len(kept) - 1)]
    edit.behind.append(gs.Node("Slice", model.fresh_name(f"{node.name}_cut"), {}, cut, [node.outputs[0]]))
    node.inputs[0], node.outputs[0] = whole, normed
    for slot in range(1, len(node.inputs)):
        values = edit.values(slot)
        if values is not None:
            padded = np.concatenate([values, np.zeros(missing, values.dtype)])
            node.inputs[slot] = model.constant(f"{node.inputs[slot].name}_padded", padded)
