"""Pooling."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from graphopt.training.ops.table import NodeInfo, Run, Unsupported, flat_pads, operator, spatial_pads

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class _Window:
    """A pooling node's window, with pads (and ``ceil_mode``'s) for an input of a given size."""

    def __init__(self, info: NodeInfo) -> None:
        self.info = info
        self.kernel = list(info.attr("kernel_shape"))
        rank = len(self.kernel)
        self.strides = list(info.attr("strides") or [1] * rank)
        self.dilations = list(info.attr("dilations") or [1] * rank)
        self.ceil = bool(info.attr("ceil_mode", 0))

    def pads(self, x: torch.Tensor) -> tuple[list[tuple[int, int]], list[int]]:
        """The declared pads, and how much more at each end ``ceil_mode`` needs for its last window."""
        size = list(x.shape[2:])
        pads = spatial_pads(self.info, size, self.kernel, self.strides, self.dilations)
        more = []
        for n, k, s, d, (before, after) in zip(size, self.kernel, self.strides, self.dilations, pads, strict=True):
            reach, length = (k - 1) * d + 1, n + before + after
            extra = 0
            if self.ceil and length >= reach:
                windows = math.ceil((length - reach) / s) + 1
                if (windows - 1) * s >= n + before:  # a window that starts in the padding is left out
                    windows -= 1
                extra = max((windows - 1) * s + reach - length, 0)
            more.append(extra)
        return pads, more


@operator("MaxPool")
def _max_pool(info: NodeInfo) -> Run:
    if info.outputs > 1:
        raise Unsupported("MaxPool that gives indices")
    window = _Window(info)
    rank = len(window.kernel)

    def run(x: torch.Tensor) -> torch.Tensor:
        pads, more = window.pads(x)
        even = all(b == a and 2 * b <= k for (b, a), k in zip(pads, window.kernel, strict=True)) and not any(more)
        if even:
            return _MAX[rank](x, window.kernel, window.strides, [b for b, _ in pads], window.dilations)
        around = [(b, a + m) for (b, a), m in zip(pads, more, strict=True)]
        low = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        return _MAX[rank](F.pad(x, flat_pads(around), value=low), window.kernel, window.strides, 0, window.dilations)

    return run


def _window_sums(x: torch.Tensor, window: _Window) -> torch.Tensor:
    """Sums over each window of a padded input [N,C,...], as a convolution by ones."""
    rank, channels = len(window.kernel), x.shape[1]
    ones = torch.ones(1, 1, *window.kernel, dtype=x.dtype, device=x.device)
    conv: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    flat = x.reshape(x.shape[0] * channels, 1, *x.shape[2:])
    total = conv(flat, ones, None, window.strides, 0, window.dilations)
    return total.reshape(x.shape[0], channels, *total.shape[2:])


@operator("AveragePool")
def _average_pool(info: NodeInfo) -> Run:
    window = _Window(info)
    rank = len(window.kernel)
    include = bool(info.attr("count_include_pad", 0))

    def run(x: torch.Tensor) -> torch.Tensor:
        pads, more = window.pads(x)
        plain = not any(more) and all(b == a and 2 * b <= k for (b, a), k in zip(pads, window.kernel, strict=True))
        if plain and rank == 2 and all(d == 1 for d in window.dilations):
            return F.avg_pool2d(x, window.kernel, window.strides, [b for b, _ in pads], False, include)
        around = [(b, a + m) for (b, a), m in zip(pads, more, strict=True)]
        total = _window_sums(F.pad(x, flat_pads(around)), window)
        inside = torch.ones_like(x[:1, :1])
        if include:  # what ceil_mode adds does not count even then
            inside = F.pad(F.pad(inside, flat_pads(pads), value=1.0), flat_pads([(0, m) for m in more]))
        else:
            inside = F.pad(inside, flat_pads(around))
        return total / _window_sums(inside, window)

    return run


@operator("LpPool")
def _lp_pool(info: NodeInfo) -> Run:
    window, p = _Window(info), info.attr("p", 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        pads, more = window.pads(x)
        around = [(b, a + m) for (b, a), m in zip(pads, more, strict=True)]
        return _window_sums(F.pad(x.abs().pow(p), flat_pads(around)), window).pow(1 / p)

    return run


def _spatial(x: torch.Tensor) -> list[int]:
    return list(range(2, x.dim()))


@operator("GlobalAveragePool")
def _global_average(info: NodeInfo) -> Run:
    return lambda x: x.mean(_spatial(x), keepdim=True) if x.dim() > 2 else x


@operator("GlobalMaxPool")
def _global_max(info: NodeInfo) -> Run:
    return lambda x: x.amax(_spatial(x), keepdim=True) if x.dim() > 2 else x


@operator("GlobalLpPool")
def _global_lp(info: NodeInfo) -> Run:
    p = info.attr("p", 2)
    return lambda x: x.abs().pow(p).sum(_spatial(x), keepdim=True).pow(1 / p)
