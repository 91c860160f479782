"""Shapes: reading them, changing them, making tensors of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from graphopt.training.ops.table import NodeInfo, Run, operator


@operator("Shape")
def _shape(info: NodeInfo) -> Run:
    start, end = info.attr("start", 0), info.attr("end")
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator("Size")
def _size(info: NodeInfo) -> Run:
    return lambda x: torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape")
def _reshape(info: NodeInfo) -> Run:
    literal = bool(info.attr("allowzero", 0))

    def run(x: torch.Tensor, shape: torch.Tensor | None = None) -> torch.Tensor:
        dims = info.ints("shape", shape) or []
        if not literal:
            dims = [x.shape[i] if d == 0 else d for i, d in enumerate(dims)]
        return x.reshape(dims)

    return run


@operator("Flatten")
def _flatten(info: NodeInfo) -> Run:
    axis = info.attr("axis", 1)

    def run(x: torch.Tensor) -> torch.Tensor:
        at = axis + x.dim() if axis < 0 else axis
        return (
            x.reshape(math.prod(x.shape[:at]), -1)
            if x.numel()
            else x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))
        )

    return run


@operator("Squeeze")
def _squeeze(info: NodeInfo) -> Run:
    def run(x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        axes = info.ints("axes", given)
        return x.squeeze() if axes is None else x.squeeze(axes)

    return run


@operator("Unsqueeze")
def _unsqueeze(info: NodeInfo) -> Run:
    def run(x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        axes = info.ints("axes", given) or []
        rank = x.dim() + len(axes)
        for axis in sorted(a % rank for a in axes):
            x = x.unsqueeze(axis)
        return x

    return run


@operator("Transpose")
def _transpose(info: NodeInfo) -> Run:
    order = info.attr("perm")
    return lambda x: x.permute(order if order is not None else list(range(x.dim()))[::-1])


@operator("Concat")
def _concat(info: NodeInfo) -> Run:
    axis = info.attr("axis")
    return lambda *xs: torch.cat(xs, axis)


@operator("Split")
def _split(info: NodeInfo) -> Run:
    axis = info.attr("axis", 0)

    def run(x: torch.Tensor, given: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        sizes = info.ints("split", given)
        if sizes is None:
            count = info.attr("num_outputs", info.outputs)
            each = -(-x.shape[axis] // count)
            sizes = [each] * (count - 1)
            sizes.append(x.shape[axis] - sum(sizes))
        return torch.split(x, sizes, axis)

    return run


@operator("Expand")
def _expand(info: NodeInfo) -> Run:
    def run(x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
        return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))

    return run


@operator("Tile")
def _tile(info: NodeInfo) -> Run:
    return lambda x, repeats: x.repeat(repeats.tolist())


@operator("Constant")
def _constant(info: NodeInfo) -> Run:
    attrs = info.node.attrs
    if "value" in attrs:
        value: Any = attrs["value"]
        array = np.asarray(value.values if hasattr(value, "values") else value)
    else:
        name, kind = next((k, t) for k, t in _LITERALS.items() if k in attrs)
        array = np.asarray(attrs[name], kind)
    return lambda: torch.from_numpy(np.array(array))


_LITERALS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


@operator("ConstantOfShape")
def _constant_of_shape(info: NodeInfo) -> Run:
    value: Any = info.attr("value")
    array = (
        np.zeros(1, np.float32) if value is None else np.asarray(value.values if hasattr(value, "values") else value)
    )
    one = torch.from_numpy(np.array(array)).reshape(())
    return lambda shape: one.expand(shape.tolist()).clone()


@operator("Range")
def _range(info: NodeInfo) -> Run:
    return lambda start, limit, delta: torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@operator("DepthToSpace")
def _depth_to_space(info: NodeInfo) -> Run:
    block, mode = info.attr("blocksize"), info.attr("mode", "DCR")

    def run(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        if mode == "CRD":
            return torch.nn.functional.pixel_shuffle(x, block)
        y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, c // block**2, h * block, w * block)

    return run


@operator("SpaceToDepth")
def _space_to_depth(info: NodeInfo) -> Run:
    block = info.attr("blocksize")
    order = (0, 1, 3, 5, 2, 4) if info.attr("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)

    def run(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // block, block, w // block, block).permute(order)
        return y.reshape(n, c * block**2, h // block, w // block)

    return run
