"""Resize and Upsample: separable interpolation, written as one small matrix an axis."""

from __future__ import annotations

import math

import torch

from graphopt.training.ops.table import NodeInfo, Run, Unsupported, operator


def _positions(mode: str, size: int, wanted: int, scale: float) -> torch.Tensor:
    """Where each of ``wanted`` samples lies in the input, float64."""
    out = torch.arange(wanted, dtype=torch.float64)
    if mode == "align_corners":
        return out * (size - 1) / (wanted - 1) if wanted > 1 else torch.zeros(wanted, dtype=torch.float64)
    if mode == "asymmetric":
        return out / scale
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and wanted > 1):
        return (out + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return torch.zeros(wanted, dtype=torch.float64)
    if mode == "half_pixel_symmetric":
        adjustment = wanted / (scale * size)
        return size / 2 * (1 - adjustment) + (out + 0.5) / scale - 0.5
    raise Unsupported(f"Resize with coordinates {mode!r}")


def _matrix(info: NodeInfo, kind: str, size: int, wanted: int, scale: float) -> torch.Tensor:
    """Weights [wanted, size] of the interpolation of one axis."""
    default = "asymmetric" if info.node.op == "Upsample" or info.opset < 11 else "half_pixel"
    at = _positions(info.attr("coordinate_transformation_mode", default), size, wanted, scale)
    weights = torch.zeros(wanted, size, dtype=torch.float64)
    rows = torch.arange(wanted)
    if kind == "nearest":
        rounding = info.attr("nearest_mode", "round_prefer_floor" if default == "half_pixel" else "floor")
        place = {
            "round_prefer_floor": torch.ceil(at - 0.5),
            "round_prefer_ceil": torch.floor(at + 0.5),
            "floor": torch.floor(at),
            "ceil": torch.ceil(at),
        }[rounding]
        weights[rows, place.clamp(0, size - 1).long()] = 1
        return weights
    low = torch.floor(at)
    for offset, share in _taps(info, kind, at - low):
        place = low + offset
        if info.attr("exclude_outside", 0):
            share = torch.where((place < 0) | (place > size - 1), torch.zeros_like(share), share)
        weights.index_put_((rows, place.clamp(0, size - 1).long()), share, accumulate=True)
    return weights / weights.sum(1, keepdim=True)


def _taps(info: NodeInfo, kind: str, t: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    if kind == "linear":
        return [(0, 1 - t), (1, t)]
    a = info.attr("cubic_coeff_a", -0.75)

    def near(x: torch.Tensor) -> torch.Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: torch.Tensor) -> torch.Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [(-1, far(t + 1)), (0, near(t)), (1, near(1 - t)), (2, far(2 - t))]


@operator("Resize", "Upsample")
def _resize(info: NodeInfo) -> Run:
    kind = info.attr("mode", "nearest")
    if info.attr("antialias", 0):
        raise Unsupported("Resize with antialiasing")
    if info.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("Resize that keeps the aspect ratio")
    known: dict[tuple[int, int, float], torch.Tensor] = {}

    def run(x: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
        given = list(rest)
        if info.node.op == "Resize" and info.opset >= 11:
            given = given[1:]  # the region of interest serves one coordinate mode, which is not supported
        scales = given[0] if given and given[0] is not None and given[0].numel() else None
        sizes = given[1] if len(given) > 1 else None
        axes = [a % x.dim() for a in info.attr("axes") or range(x.dim())]
        factors = scales.tolist() if scales is not None else info.attr("scales")
        for i, axis in enumerate(axes):
            size = x.shape[axis]
            wanted = int(sizes[i]) if sizes is not None else math.floor(size * factors[i])
            scale = wanted / size if sizes is not None else factors[i]
            if scale == 1:
                continue
            key = (size, wanted, scale)
            if key not in known:
                known[key] = _matrix(info, kind.removeprefix("bi"), size, wanted, scale)
            weights = known[key].to(x.device, x.dtype)
            x = torch.matmul(x.movedim(axis, -1), weights.t()).movedim(-1, axis)
        return x

    return run
