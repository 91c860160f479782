"""Scales, zero points, int32 biases and their overflow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphopt.passes.quantize.ranges import activation_params, mean_shift, quantize_weights

RANGES = st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(sorted)


@given(RANGES)
@settings(max_examples=200, deadline=None)
def test_zero_is_exact_and_the_range_is_covered(bounds: list[float]) -> None:
    low, high = bounds
    params = activation_params(low, high)
    assert 0 <= params.zero_point <= 255
    assert params.quantize(np.zeros(1))[0] == params.zero_point
    assert params.low <= min(low, 0) + 0.51 * params.scale
    assert params.high >= max(high, 0) - 0.51 * params.scale


@given(RANGES, st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_rounding_error_is_at_most_a_step(bounds: list[float], where: float) -> None:
    low, high = min(bounds[0], 0), max(bounds[1], 0)
    params = activation_params(low, high)
    value = low + where * (high - low)
    back = params.scale * (int(params.quantize(np.array([value]))[0]) - params.zero_point)
    assert abs(back - value) <= 1.01 * params.scale


def test_a_range_from_zero_has_zero_point_zero() -> None:
    assert activation_params(0.0, 6.0).zero_point == 0
    assert activation_params(0.5, 6.0).low == 0


def test_a_tensor_of_zeros_has_a_usable_scale() -> None:
    params = activation_params(0.0, 0.0)
    assert params.scale == 1 and params.zero_point == 0


def test_symmetric_parameters_sit_in_the_middle() -> None:
    assert activation_params(-1.0, 3.0, "int8", True).zero_point == 0
    assert activation_params(-1.0, 3.0, "uint8", True).zero_point == 128


def test_weights_are_symmetric_by_channel() -> None:
    weight = np.array([[1.0, -2.0], [0.5, 0.25]], np.float32)
    result = quantize_weights(weight, 0, None, 1.0)
    np.testing.assert_allclose(result.scales, [2 / 127, 0.5 / 127], rtol=1e-6)
    assert result.values.tolist() == [[64, -127], [127, 64]]
    assert result.bias is None


def test_weights_of_a_gemm_have_their_channels_last() -> None:
    weight = np.array([[1.0, 10.0], [-1.0, 5.0]], np.float32)
    result = quantize_weights(weight, 1, None, 1.0)
    np.testing.assert_allclose(result.scales, [1 / 127, 10 / 127], rtol=1e-6)


def test_one_scale_a_tensor() -> None:
    result = quantize_weights(np.array([[1.0], [4.0]], np.float32), 0, np.ones(2), 0.1, per_channel=False)
    assert result.scales.shape == (1,) and result.bias_scales is not None and result.bias_scales.shape == (1,)


@pytest.mark.parametrize("spread", ["normal", "outlier", "equal", "single"])
def test_no_pair_of_products_can_saturate(spread: str) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 1 if spread == "single" else 50))
    if spread == "outlier":
        weight[:, 7] *= 20
    elif spread == "equal":
        weight[:] = np.sign(weight)
    values = quantize_weights(weight, 0, None, 1.0, reduce_range=True).values.astype(int)
    pairs = np.sort(np.abs(values), axis=1)[:, -2:].sum(axis=1)
    assert 126 <= pairs.max() <= 128 and 255 * pairs.max() < 2**15
    if spread == "outlier":
        assert np.abs(values).max() > 64  # finer than 7 bits for all


def test_a_bias_has_the_scale_of_the_products() -> None:
    result = quantize_weights(np.array([[1.27]], np.float32), 0, np.array([0.5]), 0.02)
    assert result.bias is not None and result.bias_scales is not None
    np.testing.assert_allclose(result.bias_scales, 0.02 * result.scales, rtol=1e-6)
    np.testing.assert_allclose(result.bias * result.bias_scales, [0.5], atol=1e-4)


@given(st.floats(1e-12, 1e3), st.floats(-1e8, 1e8), st.integers(1, 5000))
@example(1.0, 817671.0, 2180)  # at the edge, where only rounding overflows
@settings(max_examples=200, deadline=None)
def test_no_accumulator_overflows(peak: float, bias: float, inputs: int) -> None:
    weight = np.full((1, inputs), peak, np.float32)
    result = quantize_weights(weight, 0, np.array([bias]), 0.05, input_means=np.full(inputs, 6.0))
    assert result.bias is not None
    products = 255 * int(np.abs(result.values.astype(np.int64)).sum())
    assert abs(int(result.bias[0])) + products <= 2**31 - 1


def test_a_huge_bias_widens_its_channel_alone() -> None:
    weight = np.array([[1e-9, 1e-9], [1.0, 1.0]], np.float32)
    result = quantize_weights(weight, 0, np.array([1000.0, 0.1]), 0.01)
    assert result.widened == 1
    assert result.bias is not None and result.bias_scales is not None
    np.testing.assert_allclose(result.bias * result.bias_scales, [1000.0, 0.1], rtol=1e-2)
    np.testing.assert_allclose(result.scales[1], 1 / 127, rtol=1e-6)


def test_a_channel_without_weights_keeps_its_bias() -> None:
    result = quantize_weights(np.zeros((2, 3), np.float32), 0, np.array([0.3, 0.0]), 0.02)
    assert result.bias is not None and result.bias_scales is not None
    np.testing.assert_allclose(result.bias * result.bias_scales, [0.3, 0.0], rtol=1e-4)
    assert not result.values.any() and result.widened == 0


def test_mean_shift_of_a_grouped_conv() -> None:
    rng = np.random.default_rng(0)
    error, means = rng.normal(size=(4, 2, 3, 3)), rng.normal(size=4)
    shift = mean_shift(error, 0, means, group=2)
    expected = [(error[o].sum(axis=(1, 2)) * means[o // 2 * 2 : o // 2 * 2 + 2]).sum() for o in range(4)]
    np.testing.assert_allclose(shift, expected)


def test_correction_takes_out_the_mean_error() -> None:
    rng = np.random.default_rng(3)
    weight, x = rng.normal(size=(8, 32)), rng.uniform(0, 1, size=(4000, 32))
    plain = quantize_weights(weight, 0, np.zeros(8), 1 / 255)
    corrected = quantize_weights(weight, 0, np.zeros(8), 1 / 255, input_means=x.mean(axis=0))

    def bias_error(q: object) -> float:
        restored = q.values * q.scales[:, None]  # type: ignore[attr-defined]
        y = x @ restored.T + q.bias * q.bias_scales  # type: ignore[attr-defined]
        return float(np.abs((y - x @ weight.T).mean(axis=0)).max())

    assert bias_error(corrected) < 0.02 * bias_error(plain) + 1e-4


def test_correction_gives_a_bias_where_there_was_none() -> None:
    result = quantize_weights(np.random.default_rng(0).normal(size=(2, 3)), 0, None, 0.01, input_means=np.ones(3))
    assert result.bias is not None and result.bias.shape == (2,)


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 1, 3, 3), (4, 7)])
def test_error_is_at_most_half_a_step(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    result = quantize_weights(weight, 0, None, 1.0)
    steps = result.scales.reshape(-1, *[1] * (len(shape) - 1))
    assert np.all(np.abs(result.values * steps - weight) <= 0.5001 * steps)
