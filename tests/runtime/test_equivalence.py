import numpy as np
import pytest

from graphopt.errors import ModelError
from graphopt.runtime.equivalence import compare_arrays, compare_outputs
from graphopt.runtime.feeds import random_feed, random_feeds
from graphopt.runtime.session import Port, SessionIO

F32 = np.dtype(np.float32)


def io(*shapes, dtype=F32):
    return SessionIO(tuple(Port(f"x{i}", s, dtype) for i, s in enumerate(shapes)), ())


def test_feeds_follow_the_model(make_model):
    feeds = random_feeds(make_model(), (1, 3), seed=5)
    assert [f["image"].shape for f in feeds] == [(1, 3, 8, 8), (3, 3, 8, 8)]
    assert feeds[0]["image"].dtype == np.float32
    again = random_feeds(make_model(), (1, 3), seed=5)
    np.testing.assert_array_equal(feeds[1]["image"], again[1]["image"])
    assert not np.array_equal(feeds[1]["image"], random_feeds(make_model(), (1, 3), seed=6)[1]["image"])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((None, 3, None, None), (2, 3, 224, 224)),
        (("n", None, None, 3), (2, 224, 224, 3)),
        ((4, 3, 8, 8), (4, 3, 8, 8)),
        (("n", 3, "s", "s"), (2, 3, 224, 224)),
        (("n", "c", "h", "w"), (2, 3, 224, 224)),
    ],
)
def test_open_dimensions_are_filled(shape, expected):
    assert random_feed(io(shape), batch=2)["x0"].shape == expected


def test_given_sizes_and_shared_names():
    assert random_feed(io(("n", 3, "h", "w")), height=5, width=6)["x0"].shape == (1, 3, 5, 6)
    two = random_feed(io(("n", 3, 4, 4), (7, "n")), batch=3)
    assert two["x1"].shape == (7, 3)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "bool", "float16"])
def test_values_suit_the_type(dtype):
    got = random_feed(io((1, 3, 8, 8), dtype=np.dtype(dtype)))["x0"]
    assert got.dtype == dtype and got.std() > 0


def test_equal_models_are_equal(make_model):
    same = compare_outputs(make_model(), make_model(), random_feeds(make_model()))
    assert same.equal and same.max_abs == 0 == same.max_rel and same.reason == ""


def test_reordered_sums_are_equal_and_mistakes_are_not(make_model):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 10))
    feeds = random_feeds(make_model(), (1, 3, 8))
    nearly = compare_outputs(make_model(weights), make_model(weights * (1 + 1e-6)), feeds)
    assert nearly.equal and 0 < nearly.max_rel < 1e-4
    weights_off = weights.copy()
    weights_off[0, 0] += 0.05
    off = compare_outputs(make_model(weights), make_model(weights_off), feeds)
    assert not off.equal and off.output == "scores"
    assert "scores differs by" in off.reason and "allowed: 0.0001" in off.reason
    assert compare_outputs(make_model(weights), make_model(weights_off), feeds, rtol=1.0).equal


def test_names_and_shapes_must_match(make_model):
    feeds = random_feeds(make_model())
    renamed = compare_outputs(make_model(), make_model(output="other"), feeds)
    assert not renamed.equal and "scores in one and other in the other" in renamed.reason
    wider = compare_outputs(make_model(), make_model(np.ones((3, 4))), feeds)
    assert not wider.equal and "[1, 3]" in wider.reason and "[1, 4]" in wider.reason
    with pytest.raises(ModelError, match="fails to run"):
        compare_outputs(make_model(), make_model(shape=("n", 3, 9, 9)), feeds)


def test_non_finite_values():
    nan, inf = float("nan"), float("inf")
    a = np.array([1, nan, inf, -inf], dtype=np.float32)
    assert compare_arrays(a, a.copy(), "y").equal
    for b in ([1, 2, inf, -inf], [1, nan, -inf, inf], [1, inf, nan, -inf], [nan] * 4):
        got = compare_arrays(a, np.array(b, dtype=np.float32), "y")
        assert not got.equal and "different places" in got.reason
    assert compare_arrays(np.array([nan]), np.array([nan])).equal
    assert compare_arrays(np.zeros((0, 3)), np.zeros((0, 3))).equal


def test_tolerance_is_relative_to_the_whole_tensor():
    a = np.array([1000.0, 0.001], dtype=np.float32)
    assert compare_arrays(a, a + np.float32(0.05)).equal
    assert not compare_arrays(a, a + np.float32(0.2)).equal
    zero = np.zeros(3, np.float32)
    assert compare_arrays(zero, zero + np.float32(1e-11)).equal
    assert not compare_arrays(zero, zero + np.float32(1e-3)).equal


def test_integers_must_be_equal_and_halves_may_be_coarser():
    a = np.array([1, 1000], dtype=np.int64)
    assert compare_arrays(a, a.copy()).equal
    assert not compare_arrays(a, a + np.array([0, 1])).equal
    assert not compare_arrays(a, a.astype(np.int32)).equal
    half = np.array([1.0, 2.0], dtype=np.float16)
    assert compare_arrays(half, half + np.float16(0.002)).equal


def test_the_worst_output_is_named_over_all_feeds(make_model):
    feeds = [{"image": np.full((1, 3, 8, 8), v, np.float32)} for v in (0.0, 1.0, 0.0)]
    got = compare_outputs(make_model(), make_model(np.eye(3) * 1.5), feeds)
    assert not got.equal and got.max_abs == pytest.approx(0.5) and got.max_rel == pytest.approx(0.5)
    assert "0.5" in got.reason
