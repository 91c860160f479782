"""QuantizeLinear and DequantizeLinear, with gradients that pass straight through the rounding.

Between the two, integers are numbers of the executor's float type, so that gradients reach what is before them. Bengio,
Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons" (2013); the gradient of a scale
is that of Esser et al., "Learned Step Size Quantization" (2020), which follows from the two operators by itself.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch

from graphopt.training.ops.table import NodeInfo, Run, Unsupported, operator

LIMITS: dict[str, tuple[int, int]] = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": (-(2**31), 2**31 - 1),
}


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class _FakeQuantize(torch.autograd.Function):
    """Quantize and read back with one scale: what the two operators do after each other, in fewer steps."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: float, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        ctx.bounds = (low - zero, high - zero)
        return torch.div(x, scale).round_().clamp_(low - zero, high - zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, scale = ctx.saved_tensors
        low, high = ctx.bounds
        (grad,) = grads
        steps = torch.div(x, scale)
        whole = torch.round(steps)
        inside = (whole >= low) & (whole <= high)
        gx = grad * inside if ctx.needs_input_grad[0] else None
        gs = None
        if ctx.needs_input_grad[1]:
            whole.clamp_(low, high).sub_(steps.mul_(inside))
            gs = (grad * whole).sum().reshape(scale.shape)
        return gx, gs, None, None, None


def quantize(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | float, low: int, high: int) -> torch.Tensor:
    """Integers in a float type; ``scale`` and ``zero`` broadcast against ``x``."""
    return torch.clamp(_Round.apply(x / scale) + zero, low, high)


def fake_quantize(x: torch.Tensor, scale: torch.Tensor, zero: float, low: int, high: int) -> torch.Tensor:
    """Quantize and read back with one scale [] for the whole tensor."""
    return torch.as_tensor(_FakeQuantize.apply(x, scale, zero, low, high))


def along(values: torch.Tensor, x: torch.Tensor, axis: int, block: int = 0) -> torch.Tensor:
    """Scales or zero points, shaped to broadcast against ``x``: of the tensor, of an axis, or of blocks on it."""
    values = values.to(x.device)
    if values.numel() == 1 and values.dim() <= 1:
        return values.reshape(())
    if block:
        at = axis % x.dim()
        return values.repeat_interleave(block, at).narrow(at, 0, x.shape[at])
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def kind_of(info: NodeInfo) -> str:
    """The integer type that a QuantizeLinear writes."""
    zero = info.node.inputs[2] if len(info.node.inputs) > 2 else None
    if zero is not None and zero.name and zero.dtype is not None:
        return str(zero.dtype)
    code = info.attr("output_dtype", 0)
    return str(onnx.helper.tensor_dtype_to_np_dtype(code)) if code else "uint8"


@operator("QuantizeLinear")
def _quantize(info: NodeInfo) -> Run:
    kind = kind_of(info)
    if kind not in LIMITS:
        raise Unsupported(f"QuantizeLinear to {kind}")
    low, high = LIMITS[kind]
    axis, block = info.attr("axis", 1), info.attr("block_size", 0)

    def run(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        shift = along(zero.to(x.dtype), x, axis, block) if zero is not None else 0.0
        return quantize(x, along(scale, x, axis, block), shift, low, high)

    return run


@operator("DequantizeLinear")
def _dequantize(info: NodeInfo) -> Run:
    axis, block = info.attr("axis", 1), info.attr("block_size", 0)

    def run(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None) -> torch.Tensor:
        x = x.to(scale.device, scale.dtype)
        if zero is not None:
            x = x - along(zero.to(scale.dtype), x, axis, block)
        return x * along(scale, x, axis, block)

    return run
