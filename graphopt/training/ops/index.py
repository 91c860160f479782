"""Picking, cutting and padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from graphopt.training.ops.table import NodeInfo, Run, Unsupported, operator


@operator("Gather")
def _gather(info: NodeInfo) -> Run:
    axis = info.attr("axis", 0)

    def run(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        at = axis % x.dim()
        places = torch.where(indices < 0, indices + x.shape[at], indices).to(x.device, torch.int64)
        picked = x.index_select(at, places.reshape(-1))
        return picked.reshape([*x.shape[:at], *indices.shape, *x.shape[at + 1 :]])

    return run


@operator("GatherElements")
def _gather_elements(info: NodeInfo) -> Run:
    axis = info.attr("axis", 0)

    def run(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        places = torch.where(indices < 0, indices + x.shape[axis], indices).to(x.device, torch.int64)
        return x.gather(axis, places)

    return run


@operator("Slice")
def _slice(info: NodeInfo) -> Run:
    def run(
        x: torch.Tensor,
        starts: torch.Tensor | None = None,
        ends: torch.Tensor | None = None,
        axes: torch.Tensor | None = None,
        steps: torch.Tensor | None = None,
    ) -> torch.Tensor:
        begin, end = info.ints("starts", starts) or [], info.ints("ends", ends) or []
        along = info.ints("axes", axes) or list(range(len(begin)))
        stride = info.ints("steps", steps) or [1] * len(begin)
        for b, e, a, s in zip(begin, end, along, stride, strict=True):
            n = x.shape[a]
            if s > 0:
                window = slice(*slice(b, e, s).indices(n))
                x = x[(slice(None),) * (a % x.dim()) + (window,)]
            else:  # torch has no negative strides
                # An end below -n is before the first element, not counted from the back.
                chosen = range(*slice(b, None if e < -n else e, s).indices(n))
                x = x.index_select(a, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
        return x

    return run


@operator("Pad")
def _pad(info: NodeInfo) -> Run:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        info.attr("mode", "constant")
    ]

    def run(
        x: torch.Tensor,
        given: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        axes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        pads, rank = info.ints("pads", given) or [], x.dim()
        along = [a % rank for a in (axes.tolist() if axes is not None else range(rank))]
        before, after = [0] * rank, [0] * rank
        for i, a in enumerate(along):
            before[a], after[a] = pads[i], pads[i + len(along)]
        if mode == "constant":
            flat = [v for b, a in zip(reversed(before), reversed(after), strict=True) for v in (b, a)]
            while flat and flat[-2:] == [0, 0]:
                flat = flat[:-2]
            fill = value.item() if value is not None else info.attr("value", 0.0)
            return F.pad(x, flat, value=fill) if flat else x
        if min(before + after) < 0:
            raise Unsupported(f"Pad that crops in mode {info.attr('mode')}")
        for axis in range(rank):  # torch mirrors and repeats on the last axes only
            if before[axis] or after[axis]:
                moved = x.movedim(axis, -1)
                flat_rows = moved.reshape(1, -1, moved.shape[-1])
                padded = F.pad(flat_rows, (before[axis], after[axis]), mode=mode)
                x = padded.reshape(*moved.shape[:-1], -1).movedim(-1, axis)
        return x

    return run
