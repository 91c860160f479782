"""Scales and zero points: of activations from calibration, of weights from their values, of biases from both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_TINY = float(np.finfo(np.float32).tiny)
_INT32_MAX = 2**31 - 1
_PAIR = 128  # steps that two weights may sum to where 16 bits hold two products with uint8 values


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
class Limits:
    """How a layer's weights are stored: integers up to ``most``, reduced range or not; what was added to its output
    when it was rewritten; whether its bias stays float."""

    most: int = 127
    reduce_range: bool = False
    per_channel: bool = True
    offset: float = 0.0
    float_bias: bool = False


@dataclass(frozen=True)
class QuantizedWeights:
    """Integer weights (int8, also those of 4 bits) with float32 scales [channels] or [1], zero point 0, and the bias in
    int32, if there is one."""

    values: np.ndarray
    scales: np.ndarray
    bias: np.ndarray | None = None
    bias_scales: np.ndarray | None = None
    widened: int = 0


def quantize_weights(
    weight: np.ndarray,
    axis: int,
    bias: np.ndarray | None,
    input_scale: float | None,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    input_means: np.ndarray | None = None,
    group: int = 1,
    most: int = 127,
) -> QuantizedWeights:
    """Quantize the weights of a Conv, Gemm or MatMul symmetrically, and its bias to their product's scale.

    ``axis`` is that of the output channels, ``bias`` [channels]. An int32 accumulator holds products and bias
    together: where it could overflow, the channel's weight scale is widened until it cannot (``widened`` counts such
    channels). ``input_scale`` None: the layer reads floats, and the bias stays float. ``most``: the largest integer, 7
    for 4 bits; with so few, scales are chosen for the least squared error of the weights.

    ``reduce_range`` is for CPUs that add two products in 16 bits: the two largest weights of a channel then sum to at
    most 128 steps, so that no pair of products with uint8 values can saturate. Where one weight stands out, that is
    finer than the usual 7 bits for all.

    With ``input_means`` [input channels], the mean shift that rounding the weights gives each output channel is taken
    out of its bias (Nagel et al. 2019, Data-Free Quantization, section 4.2, with means measured instead of derived).
    """
    real = np.asarray(weight, np.float64)
    rows = np.moveaxis(real, axis, 0).reshape(weight.shape[axis], -1)
    peak = _peaks(rows, most, reduce_range)
    if not per_channel:
        peak = np.full_like(peak, peak.max(initial=0.0))
    # Neither a scale nor its product with the input's, the bias's scale, may vanish in float32.
    smallest = 2 * _TINY / min(input_scale or 1.0, 1.0)
    scales = np.where(peak > 0, np.maximum(peak / most, smallest), 1.0)
    if per_channel and most < 127:
        scales = _least_error(rows, scales, most)
    widened = 0
    if bias is not None and input_scale is not None:
        needed = least_scales(bias, input_scale, rows.shape[1], most)
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
    wide = scales32.astype(np.float64).reshape(shape)
    values = np.clip(np.rint(real / wide), -most, most).astype(np.int8)
    kept = scales32 if per_channel else scales32[:1]
    if input_means is not None:
        shift = mean_shift(real - values * wide, axis, input_means, group)
        bias = shift if bias is None else np.asarray(bias, np.float64) + shift
    if bias is None or input_scale is None:
        return QuantizedWeights(values, kept, None if bias is None else bias.astype(np.float32), None, widened)
    bias_scales = (np.float32(input_scale) * scales32).astype(np.float32)
    steps = np.rint(np.asarray(bias, np.float64) / bias_scales.astype(np.float64))
    room = _room(rows.shape[1], most)
    bias_values = np.clip(steps, -room, room).astype(np.int32)
    bias_kept = bias_scales if per_channel else bias_scales[:1]
    return QuantizedWeights(values, kept, bias_values, bias_kept, widened)


def least_scales(bias: np.ndarray, input_scale: float | None, inputs: int, most: int) -> np.ndarray:
    """Weight scales, like ``bias``, below which it and the products of ``inputs`` could overflow 32 bits."""
    if input_scale is None:
        return np.full(np.shape(bias), 2 * _TINY)
    # float32 rounds both scales
    return np.asarray(np.abs(np.asarray(bias, np.float64)) / (input_scale * _room(inputs, most)) * (1 + 1e-6))


def channel_caps(weight: np.ndarray, most: int, reduce_range: bool) -> np.ndarray:
    """The largest integers that may stand for a weight [groups, inputs, outputs], like it; see ``quantize_weights`` on
    ``reduce_range``."""
    caps = np.full(weight.shape, float(most))
    if not reduce_range or weight.shape[1] < 2 or 2 * most <= _PAIR:
        return caps
    two = -np.partition(-np.abs(weight), 1, axis=1)[:, :2]
    first = np.clip(np.rint(most * two[:, 0] / np.maximum(two.sum(axis=1), 1e-30)), _PAIR // 2, most)
    caps[:] = (_PAIR - first)[:, None]
    largest = np.abs(weight).argmax(axis=1)[:, None]
    np.put_along_axis(caps, largest, first[:, None], axis=1)
    return caps


def _room(inputs: int, most: int) -> int:
    """What the products leave to the bias."""
    return max(_INT32_MAX - inputs * 255 * most, 1 << 16)


def _peaks(rows: np.ndarray, most: int, reduce_range: bool) -> np.ndarray:
    """What the largest integer stands for, by channel: rows [channels, inputs]."""
    if reduce_range and rows.shape[1] > 1 and 2 * most > _PAIR:
        # rounding adds half a step to each
        return np.asarray(np.partition(np.abs(rows), -2, axis=1)[:, -2:].sum(axis=1))
    return np.asarray(np.abs(rows).max(axis=1, initial=0.0))


def _least_error(rows: np.ndarray, scales: np.ndarray, most: int) -> np.ndarray:
    """Scales [channels] with the least squared error of the rounded rows, of parts of those given."""
    best, chosen = np.full(scales.shape, np.inf), scales.copy()
    for ratio in np.linspace(1.0, 0.4, 31):
        tried = scales * ratio
        rounded = np.clip(np.rint(rows / tried[:, None]), -most, most) * tried[:, None]
        cost = np.square(rounded - rows).sum(axis=1)
        chosen = np.where(cost < best, tried, chosen)
        best = np.minimum(cost, best)
    return chosen


def mean_shift(error: np.ndarray, axis: int, means: np.ndarray, group: int = 1) -> np.ndarray:
    """Mean of ``error`` (shaped as weights) applied to an input with channel ``means``: float64 [output channels]."""
    rows = np.moveaxis(error, axis, 0)
    rows = rows.reshape(rows.shape[0], rows.shape[1], -1).sum(axis=2)
    per_group = means.reshape(group, -1)[np.arange(len(rows)) // (len(rows) // group)]
    return (rows * per_group).sum(axis=1)
