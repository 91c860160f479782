"""Scales and zero points: of activations from calibration, of weights from their values, of biases from both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TINY = float(np.finfo(np.float32).tiny)
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class QuantParams:
    """Per-tensor parameters: real = scale * (quantized - zero_point)."""

    scale: float
    zero_point: int
    dtype: str = "uint8"

    @property
    def low(self) -> float:
        """The smallest number that can be expressed."""
        return float(self.scale * (np.iinfo(self.dtype).min - self.zero_point))

    @property
    def high(self) -> float:
        """The largest number that can be expressed."""
        return float(self.scale * (np.iinfo(self.dtype).max - self.zero_point))

    def quantize(self, values: np.ndarray) -> np.ndarray:
        limits = np.iinfo(self.dtype)
        scaled = np.rint(np.asarray(values, np.float64) / self.scale) + self.zero_point
        return np.clip(scaled, limits.min, limits.max).astype(self.dtype)


def activation_params(low: float, high: float, dtype: str = "uint8", symmetric: bool = False) -> QuantParams:
    """Parameters that cover [low, high] and hold 0 exactly (padding and Relu need it)."""
    low, high = min(low, 0.0), max(high, 0.0)
    limits = np.iinfo(dtype)
    if symmetric:
        bound = max(-low, high)
        middle = 0 if limits.min < 0 else 128
        scale = np.float32(max(bound / (limits.max - middle), _TINY))
        return QuantParams(float(scale), middle, dtype)
    steps = limits.max - limits.min
    scale = np.float32(max((high - low) / steps, _TINY)) if high > low else np.float32(1)
    zero = int(np.clip(np.rint(limits.min - low / float(scale)), limits.min, limits.max))
    return QuantParams(float(scale), zero, dtype)


@dataclass(frozen=True)
class QuantizedWeights:
    """int8 weights with float32 scales [channels] or [1], zero point 0, and the bias in int32, if there is one."""

    values: np.ndarray
    scales: np.ndarray
    bias: np.ndarray | None = None
    bias_scales: np.ndarray | None = None
    widened: int = 0


def quantize_weights(
    weight: np.ndarray,
    axis: int,
    bias: np.ndarray | None,
    input_scale: float,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    input_means: np.ndarray | None = None,
    group: int = 1,
) -> QuantizedWeights:
    """Quantize the weights of a Conv, Gemm or MatMul symmetrically, and its bias to their product's scale.

    ``axis`` is that of the output channels, ``bias`` [channels]. An int32 accumulator holds products and bias
    together: where it could overflow, the channel's weight scale is widened until it cannot (``widened`` counts such
    channels). ``reduce_range`` is for CPUs that add two products in 16 bits: the two largest weights of a channel then
    sum to at most 128 steps, so that no pair of products with uint8 values can saturate. Where one weight stands out,
    that is finer than the usual 7 bits for all.

    With ``input_means`` [input channels], the mean shift that rounding the weights gives each output channel is taken
    out of its bias (Nagel et al. 2019, Data-Free Quantization, section 4.2, with means measured instead of derived).
    """
    limit = 127
    rows = np.moveaxis(np.asarray(weight, np.float64), axis, 0).reshape(weight.shape[axis], -1)
    peak = np.abs(rows).max(axis=1, initial=0.0)
    if reduce_range and rows.shape[1] > 1:
        peak = np.partition(np.abs(rows), -2, axis=1)[:, -2:].sum(axis=1)  # rounding adds half a step to each
    if not per_channel:
        peak = np.full_like(peak, peak.max(initial=0.0))
    # Neither a scale nor its product with the input's, the bias's scale, may vanish in float32.
    smallest = 2 * _TINY / min(input_scale, 1.0)
    scales = np.where(peak > 0, np.maximum(peak / limit, smallest), 1.0)
    widened = 0
    room = max(_INT32_MAX - rows.shape[1] * 255 * limit, 1 << 16)  # what the products leave to the bias
    if bias is not None:
        needed = np.abs(np.asarray(bias, np.float64)) / (input_scale * room) * (1 + 1e-6)  # float32 rounds both scales
        # Channels of zeros alone (pruned ones) still have a bias: its own size gives them a scale.
        scales = np.where((peak == 0) & (needed > 0), np.maximum(needed * (1 << 8), smallest), scales)
        narrow = needed > scales
        widened = int(narrow.sum())
        scales = np.where(narrow, needed, scales)
        if not per_channel:
            scales = np.full_like(scales, scales.max(initial=0.0))
    scales32 = scales.astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    quantized = np.rint(np.asarray(weight, np.float64) / scales32.astype(np.float64).reshape(shape))
    values = np.clip(quantized, -limit, limit).astype(np.int8)
    kept = scales32 if per_channel else scales32[:1]
    if input_means is not None:
        error = np.asarray(weight, np.float64) - values * scales32.astype(np.float64).reshape(shape)
        shift = mean_shift(error, axis, input_means, group)
        bias = shift if bias is None else np.asarray(bias, np.float64) + shift
    if bias is None:
        return QuantizedWeights(values, kept, widened=widened)
    bias_scales = (np.float32(input_scale) * scales32).astype(np.float32)
    steps = np.rint(np.asarray(bias, np.float64) / bias_scales.astype(np.float64))
    bias_values = np.clip(steps, -room, room).astype(np.int32)
    bias_kept = bias_scales if per_channel else bias_scales[:1]
    return QuantizedWeights(values, kept, bias_values, bias_kept, widened)


def mean_shift(error: np.ndarray, axis: int, means: np.ndarray, group: int = 1) -> np.ndarray:
    """Mean of ``error`` (shaped as weights) applied to an input with channel ``means``: float64 [output channels]."""
    rows = np.moveaxis(error, axis, 0)
    rows = rows.reshape(rows.shape[0], rows.shape[1], -1).sum(axis=2)
    per_group = means.reshape(group, -1)[np.arange(len(rows)) // (len(rows) // group)]
    return (rows * per_group).sum(axis=1)
