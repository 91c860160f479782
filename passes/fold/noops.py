"""Operators that the values of their constant inputs or attributes turn into nothing, or into part of a neighbour."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.cleanup import bypass
from graphopt.passes.fold.workbench import Workbench

_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}


def remove_single(bench: Workbench, node: gs.Node) -> None:
    """Remove a Concat, Sum, Max, Min or Mean of one tensor."""
    if len(node.inputs) == 1:
        bypass(bench, node)


def remove_neutral(bench: Workbench, node: gs.Node) -> None:
    """Remove x + 0, x - 0, x * 1, x / 1, where that does not broadcast x to another shape.

    Of these, only x + 0 could tell: it makes 0 of -0, which is float noise.
    """
    for index in (1, 0) if node.op in ("Add", "Mul") else (1,):
        other = bench.array(node.inputs[index])
        if other is None or other.size > 65536 or not (other == _NEUTRAL[node.op]).all():
            continue
        source = node.inputs[1 - index]
        if _fits(other.shape, source):
            if index == 0:
                bench.set_input(node, 1, node.inputs[0])
                bench.set_input(node, 0, source)
            bypass(bench, node)
            return


def _fits(shape: tuple[int, ...], source: gs.Tensor) -> bool:
    """Whether a tensor of this shape broadcasts to the shape of ``source`` without changing it."""
    if source.shape is None or len(shape) > len(source.shape):
        return not shape
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(list(source.shape)), strict=False))


def remove_transpose(bench: Workbench, node: gs.Node) -> None:
    """Remove a Transpose that keeps the order of axes; merge one with the Transpose before it."""
    perm = _perm(node)
    if perm is None:
        return
    if perm == sorted(perm):
        bypass(bench, node)
        return
    before = bench.producer(node.inputs[0])
    if before is None or before.op != "Transpose" or not bench.is_standard(before):
        return
    first = _perm(before)
    source = before.inputs[0]
    if first is None or len(first) != len(perm):
        return
    node.attrs["perm"] = [first[p] for p in perm]
    bench.set_input(node, 0, source)  # the node waits again, and the one before is removed when nobody reads it
    bench.counts["no_ops_removed"] += 1


def _perm(node: gs.Node) -> list[int] | None:
    perm = node.attrs.get("perm")
    if perm is not None:
        return [int(p) for p in perm]
    shape = node.inputs[0].shape
    return None if shape is None else list(reversed(range(len(shape))))


def remove_pad(bench: Workbench, node: gs.Node) -> None:
    """Remove a Pad by zero elements."""
    pads = _pads(bench, node)
    if pads is not None and not any(pads):
        bypass(bench, node)


def fold_pad(bench: Workbench, node: gs.Node) -> None:
    """Give a Conv the zero padding of the Pad before it."""
    pad = bench.producer(node.inputs[0])
    if pad is None or pad.op != "Pad" or not bench.is_standard(pad):
        return
    reason = _why_not_padded(bench, node, pad)
    if reason:
        bench.skip(pad, f"it cannot become padding of {node.name!r}: {reason}")
        return
    pads, rank = _pads(bench, pad) or [], len(node.inputs[1].shape)
    spatial = rank - 2
    own = [int(p) for p in node.attrs.get("pads", [0] * (2 * spatial))]
    added = [*pads[2:rank], *pads[rank + 2 :]]
    node.attrs["pads"] = [a + b for a, b in zip(own, added, strict=True)]
    node.attrs.pop("auto_pad", None)
    bench.set_input(node, 0, pad.inputs[0])
    bench.counts["pads_folded"] += 1


def _why_not_padded(bench: Workbench, conv: gs.Node, pad: gs.Node) -> str:
    target = pad.outputs[0]
    reason = bench.why_bound(target)
    if reason or len(bench.readers(target)) > 1:
        return reason or "other nodes read its output as well"
    if pad.attrs.get("mode", "constant") != "constant":
        return f"it pads in mode {pad.attrs['mode']}"
    if conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"that pads automatically ({conv.attrs['auto_pad']})"
    if conv.inputs[1].shape is None:
        return "the rank of its weights is unknown"
    rank = len(conv.inputs[1].shape)
    pads = _pads(bench, pad)
    if pads is None or len(pads) != 2 * rank:
        return "its amounts are not constant"
    if any(pads[i] for i in (0, 1, rank, rank + 1)) or min(pads) < 0:
        return "it pads batch or channels, or crops"
    value: object = pad.attrs.get("value", 0.0)
    if len(pad.inputs) > 2 and pad.inputs[2].name:
        array = bench.array(pad.inputs[2])
        value = None if array is None else float(array.reshape(-1)[0])
    return "" if value == 0 else "its fill value is not zero"


def _pads(bench: Workbench, node: gs.Node) -> list[int] | None:
    """Amounts for all axes, first those before, then those after; None if unknown."""
    if "pads" in node.attrs:
        return [int(p) for p in node.attrs["pads"]]
    amounts = bench.array(node.inputs[1]) if len(node.inputs) > 1 else None
    if amounts is None:
        return None
    pads = [int(p) for p in amounts.reshape(-1)]
    if len(node.inputs) < 4 or not node.inputs[3].name:
        return pads
    axes, shape = bench.array(node.inputs[3]), node.inputs[0].shape
    if axes is None or shape is None:
        return None
    full = np.zeros((2, len(shape)), np.int64)
    full[:, axes.reshape(-1)] = np.reshape(pads, (2, -1))
    return [int(p) for p in full.reshape(-1)]
