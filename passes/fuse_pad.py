"""A Pad before a Conv or a pooling, as padding of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.rewrite import RewritePass, Rule, Workbench


@dataclass(frozen=True)
class FusePad(RewritePass):
    """Give a Conv or a pooling the padding of the Pad before it.

    Conv and AveragePool pad with zeros, MaxPool with the lowest value there is.
    """

    name = "fuse-pad"
    kind = Kind.EXACT
    resumes = True

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (Rule("pads", ("Conv", "ConvInteger", "MaxPool", "AveragePool"), _blame_pad),)


def _blame_pad(bench: Workbench, node: gs.Node) -> str | None:
    pad = bench.standard_producer(node.inputs[0], "Pad")
    if pad is None:
        return None
    reason = why_not_padded(bench, node, pad)
    if reason:
        return f"it cannot take in the padding of {pad.name!r}: {reason}"
    pads = constant_pads(bench, pad) or []
    if node.op == "AveragePool" and any(pads):
        node.attrs["count_include_pad"] = 1
    node.attrs["pads"] = _total(node, pads)
    node.attrs.pop("auto_pad", None)
    bench.set_input(node, 0, pad.inputs[0])
    return None


def why_not_padded(bench: Workbench, node: gs.Node, pad: gs.Node) -> str | None:
    """Why the zeros of ``pad`` cannot be padding of the Conv or pooling after it, in words."""
    target = pad.outputs[0]
    reason = bench.why_shared(target)
    if reason:
        return reason
    if pad.attrs.get("mode", "constant") != "constant":
        return f"it pads in mode {pad.attrs['mode']}"
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"the padding after it is automatic ({node.attrs['auto_pad']})"
    pads = constant_pads(bench, pad)
    if pads is None or len(pads) < 6:
        return "its amounts are not constant"
    rank = len(pads) // 2
    if any(pads[i] for i in (0, 1, rank, rank + 1)) or min(pads) < 0:
        return "it pads batch or channels, or crops"
    fill = _fill(bench, pad)
    if fill is None:
        return "its fill value is not constant"
    if node.op in ("MaxPool", "AveragePool"):
        kernel = [int(k) for k in node.attrs.get("kernel_shape", ())]
        if any(p >= k for p, k in zip(_total(node, pads), [*kernel, *kernel], strict=False)):
            return "a pooling must pad by less than its kernel"
    if node.op == "MaxPool":
        return _why_not_maxpool(node, fill)
    if fill != 0:
        return "its fill value is not zero"
    if node.op == "AveragePool":
        return _why_not_averagepool(node)
    if node.op == "ConvInteger" and len(node.inputs) > 2 and node.inputs[2].name:
        return "zero is not what its zero point stands for"
    return None


def _total(node: gs.Node, pads: list[int]) -> list[int]:
    """Spatial padding of a node together with ``pads`` of all axes."""
    rank = len(pads) // 2
    own = [int(p) for p in node.attrs.get("pads", [0] * (2 * (rank - 2)))]
    return [a + b for a, b in zip(own, [*pads[2:rank], *pads[rank + 2 :]], strict=True)]


def _why_not_maxpool(node: gs.Node, fill: float) -> str | None:
    dtype = node.inputs[0].dtype
    if dtype is None or np.dtype(dtype).kind != "f":
        return "its values are not float"
    if not (fill == -np.inf or fill <= np.finfo(np.dtype(dtype)).min):
        return "a MaxPool pads with the lowest value there is, not with this one"
    if node.attrs.get("ceil_mode", 0):
        return "the MaxPool rounds its size up, which depends on where padding ends"
    if len(node.outputs) > 1 and node.outputs[1].name:
        return "the MaxPool also returns where the maxima are"
    return None


def _why_not_averagepool(node: gs.Node) -> str | None:
    if any(node.attrs.get("pads", ())) and not node.attrs.get("count_include_pad", 0):
        return "the AveragePool leaves its own padding out of the mean"
    if node.attrs.get("ceil_mode", 0):
        return "the AveragePool rounds its size up, which depends on where padding ends"
    return None


def _fill(bench: Workbench, pad: gs.Node) -> float | None:
    if len(pad.inputs) > 2 and pad.inputs[2].name:
        array = bench.array(pad.inputs[2])
        return None if array is None or not array.size else float(array.reshape(-1)[0])
    return float(pad.attrs.get("value", 0.0))


def constant_pads(bench: Workbench, node: gs.Node) -> list[int] | None:
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
