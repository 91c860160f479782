import numpy as np
import pytest

from graphopt.data.split import HELD_OUT, choose, describe, hold_out, overlap, split, without
from graphopt.data.synthetic import SyntheticDataset
from graphopt.errors import DataError


def images(n, seed=0):
    return SyntheticDataset(n, (4, 4), seed)


@pytest.mark.parametrize(("n", "expected"), [(5000, 512), (2048, 512), (500, 125), (3, 1), (2, 1)])
def test_split_is_disjoint_complete_and_leaves_most_for_evaluation(n, expected):
    calibration, evaluation = split(images(n), seed=3)
    assert len(calibration) == expected
    assert sorted([*calibration, *evaluation]) == list(range(n))
    assert calibration.dtype == evaluation.dtype == np.int64


def test_split_depends_on_the_seed_only():
    one, two, other = (split(images(1000), 100, seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert np.ptp(one) > 800  # not just the first ones, which would be few classes


def test_one_image_cannot_be_split():
    with pytest.raises(DataError, match="too few"):
        split(images(1))


def test_choose():
    assert choose(5, 10).tolist() == [0, 1, 2, 3, 4]
    chosen = choose(100, 10, seed=1)
    assert len(set(chosen.tolist())) == 10 and (np.diff(chosen) > 0).all()


def test_split_is_stated():
    calibration, evaluation = split(images(40), seed=7)
    text = describe(images(40), calibration, evaluation, 7)
    assert "10 images calibrate" in text and "30 others evaluate" in text and "seed 7" in text


def test_overlap_counts_the_same_images():
    a = images(10)
    assert overlap(a, np.arange(6), images(10), np.arange(4, 10)) == 2
    assert overlap(a, np.arange(6), images(10, seed=1), np.arange(6)) == 0


def test_without_leaves_the_images_that_the_other_selection_does_not_hold():
    a = images(10)
    assert without(a, np.arange(6), images(10), np.arange(4, 10)).tolist() == [0, 1, 2, 3]
    assert without(a, np.arange(6), images(10, seed=1), np.arange(10)).tolist() == list(range(6))


@pytest.mark.parametrize(
    ("n", "share", "expected"), [(100, 1.0, 100), (100, 0.5, 50), (10_000, 1.0, HELD_OUT), (1, 0.5, 0)]
)
def test_what_is_held_out_is_a_share_and_not_too_many(n, share, expected):
    rest = np.arange(1000, 1000 + n)
    apart, others = hold_out(rest, 1, share)
    assert len(apart) == expected
    assert sorted([*apart, *others]) == rest.tolist()
