"""Convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from graphopt.training.ops.table import NodeInfo, Run, Unsupported, flat_pads, operator, simple, spatial_pads

simple("MatMul", torch.matmul)

_CONV: dict[int, Callable[..., torch.Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., torch.Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


@operator("Conv")
def _conv(info: NodeInfo) -> Run:
    group = info.attr("group", 1)
    strides, dilations = info.attr("strides"), info.attr("dilations")
    pads = info.attr("pads") or []
    half = len(pads) // 2
    if (
        info.attr("auto_pad", "NOTSET") == "NOTSET"
        and pads[:half] == pads[half:]
        and strides
        and dilations
        and half in _CONV
    ):
        function = _CONV[half]

        def direct(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
            return function(x, w, b, strides, pads[:half], dilations, group)

        return direct

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        rank = w.dim() - 2
        if rank not in _CONV:
            raise Unsupported(f"a convolution over {rank} axes")
        step, spread = strides or [1] * rank, dilations or [1] * rank
        around = spatial_pads(info, x.shape[2:], w.shape[2:], step, spread)
        if any(before != after for before, after in around):
            x, around = F.pad(x, flat_pads(around)), [(0, 0)] * rank
        return _CONV[rank](x, w, b, step, [p for p, _ in around], spread, group)

    return run


@operator("ConvTranspose")
def _conv_transpose(info: NodeInfo) -> Run:
    group, mode = info.attr("group", 1), info.attr("auto_pad", "NOTSET")

    def run(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        rank = w.dim() - 2
        strides, dilations = info.attr("strides") or [1] * rank, info.attr("dilations") or [1] * rank
        extra = list(info.attr("output_padding") or [0] * rank)
        full = _TRANSPOSED[rank](x, w, b, strides, 0, 0, group, dilations)
        pads = info.attr("pads") or [0] * 2 * rank
        begins, wanted = list(pads[:rank]), []
        for i in range(rank):
            natural = (x.shape[2 + i] - 1) * strides[i] + (w.shape[2 + i] - 1) * dilations[i] + 1 + extra[i]
            shape = info.attr("output_shape")
            if shape is not None or mode.startswith("SAME"):
                size = shape[-rank:][i] if shape is not None else x.shape[2 + i] * strides[i]
                total = max(natural - size, 0)
                begins[i] = total // 2 if mode != "SAME_LOWER" else total - total // 2
                wanted.append(size)
            else:
                wanted.append(natural - pads[i] - pads[i + rank])
        for i, (begin, size) in enumerate(zip(begins, wanted, strict=True)):
            short = begin + size - full.shape[2 + i]
            if short > 0:  # output padding lies outside of what the kernel reaches: only the bias is there
                place = [0, 0] * rank
                place[2 * (rank - 1 - i) + 1] = short
                tail = F.pad(full - _spread(b, rank), place) + _spread(b, rank) if b is not None else F.pad(full, place)
                full = tail
            full = full.narrow(2 + i, begin, size)
        return full

    return run


def _spread(b: torch.Tensor, rank: int) -> torch.Tensor:
    return b.reshape(1, -1, *[1] * rank)


@operator("Gemm")
def _gemm(info: NodeInfo) -> Run:
    alpha, beta = info.attr("alpha", 1.0), info.attr("beta", 1.0)
    left, right = bool(info.attr("transA", 0)), bool(info.attr("transB", 0))

    def run(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        a, b = (a.t() if left else a), (b.t() if right else b)
        if c is None:
            return alpha * (a @ b) if alpha != 1 else a @ b
        if c.dim() <= 2:
            return torch.addmm(c, a, b, beta=beta, alpha=alpha)
        return alpha * (a @ b) + beta * c

    return run


@operator("Einsum")
def _einsum(info: NodeInfo) -> Run:
    equation = info.attr("equation")

    def run(*xs: torch.Tensor) -> Any:
        return torch.einsum(equation.replace(" ", ""), *xs)

    return run
