"""The calibration engine: histograms, statistics, and how they are gathered."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt import Context, Model
from graphopt.analysis.activations import ActivationStatistics, Histogram, TensorStatistics, observe
from graphopt.errors import DataError, ModelError
from graphopt.runtime.target import get_target

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
ARRAYS = hnp.arrays(np.float32, st.integers(1, 200), elements=FLOATS)


class Images:
    """Calibration images out of an array, in the form of a ``Batches``."""

    synthetic = False

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        self.sizes: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def subset(self, n: int, seed: int = 0) -> Images:
        return (
            self if n >= len(self) else Images(self.x[np.sort(np.random.default_rng(seed).permutation(len(self))[:n])])
        )

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[np.ndarray]:
        total = len(self) if limit is None else min(limit, len(self))
        for start in range(0, total, batch_size):
            batch = self.x[start : min(start + batch_size, total)]
            self.sizes.append(len(batch))
            yield batch


def context(model: Model, x: np.ndarray) -> Context:
    return Context(get_target("ort-cpu"), Images(x), model)  # type: ignore[arg-type]


CONV = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,2,4,4] x) => (float[N,2,4,4] y)
<float[2,2,1,1] w = {1, 0, 0, -1}>
{ c = Conv(x, w)
  y = Relu(c) }
"""
FIXED = CONV.replace("[N,", "[3,")


@given(st.lists(ARRAYS, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_merged_histograms_equal_the_histogram_of_all(parts: list[np.ndarray]) -> None:
    whole, merged = Histogram(), Histogram()
    whole.add(np.concatenate(parts))
    for part in reversed(parts):
        one = Histogram()
        one.add(part)
        merged.merge(one)
    assert merged == whole
    assert whole.count == sum(p.size for p in parts)


@given(ARRAYS, st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_quantile_is_within_a_bin_of_numpys(values: np.ndarray, q: float) -> None:
    histogram = Histogram()
    histogram.add(values)
    # A quantile of few values lies anywhere between two neighbours in the order: the bound is theirs.
    low, high = (float(np.quantile(values, q, method=m)) for m in ("lower", "higher"))
    index = np.clip(np.array([np.floor(q * values.size) - 1, np.ceil(q * values.size)]), 0, values.size - 1)
    ordered = np.sort(values)
    low, high = min(low, float(ordered[int(index[0])])), max(high, float(ordered[int(index[1])]))
    found = histogram.quantile(q)
    assert low - abs(low) / 127 - 1e-38 <= found <= high + abs(high) / 127 + 1e-38


def test_quantile_of_many_values_is_numpys_up_to_a_bin() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    for q in (0.0001, 0.01, 0.25, 0.75, 0.99, 0.9999):
        assert histogram.quantile(q) == pytest.approx(float(np.quantile(values, q)), rel=1 / 128)


def test_an_empty_histogram_has_no_quantile() -> None:
    histogram = Histogram()
    histogram.add(np.zeros(0, np.float32))
    assert np.isnan(histogram.quantile(0.5))


def test_bins_ascend_and_hold_their_values() -> None:
    values = np.array([-3.0, -0.5, 0.0, 1e-20, 0.5, 7.25], np.float32)
    histogram = Histogram()
    histogram.add(values)
    low, high, counts = histogram.bins()
    assert counts.tolist() == [1] * 6
    assert np.all(low <= values) and np.all(values <= high)
    assert np.all(np.diff(low) > 0)


def test_extremes_are_exact_when_the_histogram_samples() -> None:
    values = np.zeros((1, 100_000), np.float32)
    values[0, 54_321], values[0, 12_344] = 9.0, -4.0
    statistics = TensorStatistics(histogram=Histogram())
    statistics.add(values, sample=1000)
    assert (statistics.low, statistics.high) == (-4.0, 9.0)
    assert statistics.histogram is not None and 500 < statistics.histogram.count <= 1000


def test_a_percentile_stays_within_the_extremes() -> None:
    statistics = TensorStatistics(histogram=Histogram())
    statistics.add(np.full((2, 8), 3.14159, np.float32))
    assert statistics.range(99.0) == (pytest.approx(3.14159), pytest.approx(3.14159))
    assert statistics.range() == (statistics.low, statistics.high)


def test_a_percentile_cuts_rare_values() -> None:
    statistics = TensorStatistics(histogram=Histogram())
    values = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(1, -1)
    values[0, 0] = 1000
    statistics.add(values)
    assert statistics.range()[1] == 1000
    assert statistics.range(99.0)[1] == pytest.approx(0.995, rel=0.01)


def test_statistics_match_numpy_on_a_model() -> None:
    model = Model.from_text(CONV)
    x = np.random.default_rng(1).normal(size=(50, 2, 4, 4)).astype(np.float32)
    found = context(model, x).analysis(ActivationStatistics(("x", "c", "y")), model)
    expected = np.stack([x[:, 0], -x[:, 1]], axis=1)
    assert found["c"].low == pytest.approx(float(expected.min()))
    assert found["y"].low == 0 and found["y"].high == pytest.approx(float(expected.max()))
    assert found["x"].high == pytest.approx(float(x.max()))
    means = found["c"].channel_means
    assert means is not None
    np.testing.assert_allclose(means, expected.mean(axis=(0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("method", ["extremes", "histogram"])
def test_statistics_are_the_same_again(method: str) -> None:
    model = Model.from_text(CONV)
    x = np.random.default_rng(2).normal(size=(70, 2, 4, 4)).astype(np.float32)
    question = ActivationStatistics(("c",), method)  # type: ignore[arg-type]
    one, two = (context(model, x).analysis(question, model)["c"] for _ in range(2))
    assert (one.low, one.high) == (two.low, two.high)
    assert one.histogram == two.histogram
    assert np.array_equal(one.channel_means, two.channel_means)  # type: ignore[arg-type]


def test_images_are_limited() -> None:
    model = Model.from_text(CONV)
    x = np.repeat(np.arange(40, dtype=np.float32), 2 * 4 * 4).reshape(40, 2, 4, 4)
    ctx = context(model, x)
    few, every = (ctx.analysis(ActivationStatistics(("x",), images=n), model)["x"] for n in (12, None))
    assert (few.images, every.images) == (12, 40)
    assert few.high > 12 and few.low < 28  # not the first, which are of the first classes


def test_a_fixed_batch_is_filled_up() -> None:
    model = Model.from_text(FIXED)
    x = np.arange(4 * 32, dtype=np.float32).reshape(4, 2, 4, 4)
    ctx = context(model, x)
    shapes = [b["c"].shape for b in observe(model, ctx, ("c",))]
    assert shapes == [(3, 2, 4, 4)] * 2
    assert ctx.analysis(ActivationStatistics(("c",)), model)["c"].high == x[:, 0].max()


def test_batches_shrink_as_tensors_grow() -> None:
    model = Model.from_text(CONV.replace("4,4]", "1024,1024]"))
    images = Images(np.zeros((2, 2, 1024, 1024), np.float32))
    ctx = Context(get_target("ort-cpu"), images, model)  # type: ignore[arg-type]
    list(observe(model, ctx, ("c", "y")))
    assert images.sizes == [1, 1]


def test_no_tensors_need_no_run() -> None:
    model = Model.from_text(CONV)
    images = Images(np.zeros((2, 2, 4, 4), np.float32))
    assert Context(get_target("ort-cpu"), images, model).analysis(ActivationStatistics(()), model) == {}  # type: ignore[arg-type]
    assert images.sizes == []


def test_an_unknown_tensor_is_named() -> None:
    model = Model.from_text(CONV)
    with pytest.raises(ModelError, match="'nowhere'"):
        context(model, np.zeros((1, 2, 4, 4), np.float32)).analysis(ActivationStatistics(("nowhere",)), model)


@pytest.mark.parametrize("bad", [0, 39])
def test_a_tensor_that_is_not_finite_is_named(bad: int) -> None:
    model = Model.from_text(CONV)
    x = np.zeros((40, 2, 4, 4), np.float32)
    x[bad, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="'c'"):
        context(model, x).analysis(ActivationStatistics(("c",), "histogram"), model)


def test_no_images_are_an_error_of_their_own() -> None:
    model = Model.from_text(CONV)
    with pytest.raises(DataError, match="no calibration images"):
        context(model, np.zeros((0, 2, 4, 4), np.float32)).analysis(ActivationStatistics(("c",)), model)


def test_a_scalar_has_statistics() -> None:
    statistics = TensorStatistics(histogram=Histogram())
    for value in (2.0, -1.0):
        statistics.add(np.array(value, np.float32), 10)
    assert (statistics.low, statistics.high, statistics.images) == (-1.0, 2.0, 2)
    assert statistics.histogram is not None and statistics.histogram.count == 2
    assert statistics.channel_means is None


def test_two_inputs_are_refused() -> None:
    model = Model.from_text("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N,2] x, float[N,2] z) => (float[N,2] y) { y = Add(x, z) }
    """)
    with pytest.raises(ModelError, match="2"):
        context(model, np.zeros((1, 2), np.float32)).analysis(ActivationStatistics(("y",)), model)


def _size(statistics: TensorStatistics) -> int:
    return len(pickle.dumps(statistics))


@pytest.mark.parametrize("method", ["extremes", "histogram"])
def test_statistics_do_not_grow_with_the_number_of_images(method: str) -> None:
    """The values are the same ones over and over, so that the bins in use are, too."""
    model = Model.from_text(CONV)
    few = np.random.default_rng(3).normal(size=(8, 2, 4, 4)).astype(np.float32)
    question = ActivationStatistics(("x", "c", "y"), method)  # type: ignore[arg-type]
    small, large = (context(model, x).analysis(question, model) for x in (few, np.tile(few, (40, 1, 1, 1))))
    for name in ("x", "c", "y"):
        assert _size(large[name]) <= _size(small[name]) + 16
        assert large[name].images == 40 * small[name].images


@given(st.lists(hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-8, 8, width=32)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_statistics_by_part_equal_those_of_all(parts: list[np.ndarray]) -> None:
    whole, grown = TensorStatistics(histogram=Histogram()), TensorStatistics(histogram=Histogram())
    whole.add(np.concatenate(parts))
    for part in parts:
        grown.add(part)
    assert (whole.low, whole.high, whole.images) == (grown.low, grown.high, grown.images)
    assert whole.histogram == grown.histogram
    assert whole.channel_means is not None and grown.channel_means is not None
    np.testing.assert_allclose(whole.channel_means, grown.channel_means, rtol=1e-5, atol=1e-6)
    assert whole.range(99.0) == grown.range(99.0)


def test_a_model_as_it_was_read_from_a_file(tmp_path) -> None:
    from graphopt.ir import load, save

    save(Model.from_text(CONV), tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx")
    x = np.ones((2, 2, 4, 4), np.float32)
    assert context(model, x).analysis(ActivationStatistics(("c",)), model)["c"].low == -1


# --- methods ------------------------------------------------------------------------------------------------------


def statistics_of(values: np.ndarray) -> TensorStatistics:
    found = TensorStatistics(histogram=Histogram())
    found.add(values.astype(np.float32))
    return found


@pytest.mark.parametrize("method", ["minmax", "average", "percentile", "entropy", "mse"])
@given(st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_two_halves_merge_into_the_whole(method: str, cut: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_t(3, (7, 4, 5)).astype(np.float32)
    merged = statistics_of(x[:cut])
    merged.merge(statistics_of(x[cut:]))
    whole = statistics_of(x)
    assert merged.bounds(method, 99.0) == pytest.approx(whole.bounds(method, 99.0), rel=1e-6)  # type: ignore[arg-type]
    assert np.allclose(merged.channel_means, whole.channel_means)  # type: ignore[arg-type]
    assert merged.images == whole.images == 7


def test_merging_with_nothing_changes_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    one, none = statistics_of(x), TensorStatistics()
    none.merge(one)
    assert none.bounds("mse") == one.bounds("mse")
    one.merge(TensorStatistics())
    assert one.bounds("mse") == none.bounds("mse") and one.images == 3


@pytest.mark.parametrize(("method", "most"), [("average", 6), ("percentile", 6), ("entropy", 10), ("mse", 24)])
def test_all_but_minmax_cut_off_a_rare_extreme(method: str, most: float) -> None:
    x = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
    x[3, 5] = 30.0
    low, high = statistics_of(x).bounds(method, 99.99)  # type: ignore[arg-type]
    assert -7 < low < -2 and 2 < high < most


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_what_has_no_tails_keeps_its_range(method: str) -> None:
    x = np.random.default_rng(0).uniform(0, 6, size=(16, 4096))
    low, high = statistics_of(x).bounds(method, 99.99)  # type: ignore[arg-type]
    assert low == pytest.approx(0, abs=0.05) and high == pytest.approx(6, rel=0.05)


def test_least_squares_are_no_worse_than_the_extremes() -> None:
    from graphopt.passes.quantize.ranges import activation_params

    x = np.random.default_rng(0).laplace(size=(64, 4096)).astype(np.float32)
    errors = {}
    for method in ("minmax", "mse"):
        params = activation_params(*statistics_of(x).bounds(method))  # type: ignore[arg-type]
        restored = params.scale * (params.quantize(x).astype(np.float64) - params.zero_point)
        errors[method] = float(np.mean((restored - x) ** 2))
    assert errors["mse"] < 0.8 * errors["minmax"]


@pytest.mark.parametrize("method", ["minmax", "average", "percentile", "entropy", "mse"])
def test_a_tensor_of_one_value_has_a_range(method: str) -> None:
    assert statistics_of(np.zeros((4, 8))).bounds(method) == (0.0, 0.0)  # type: ignore[arg-type]
    low, high = statistics_of(np.full((4, 8), 2.5)).bounds(method)  # type: ignore[arg-type]
    assert low <= high == pytest.approx(2.5)


def test_the_mean_of_extremes_is_over_images_whatever_the_batches() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 10, 4)).astype(np.float32)
    together, apart, joined = (TensorStatistics() for _ in range(3))
    together.add(x)
    joined.add(x.reshape(60, 4), images=6)
    for image in x:
        apart.add(image[None])
    assert together.bounds("average") == pytest.approx(apart.bounds("average"))
    assert joined.bounds("average") == pytest.approx(apart.bounds("average"))
