import threading

import numpy as np
import pytest

from graphopt.data.loader import Batches
from graphopt.data.model_io import image_input
from graphopt.data.preprocess import Preprocess
from graphopt.data.sources import open_dataset
from graphopt.errors import DataError, UsageError

INPUT = image_input("x", ("n", 3, 8, 8), np.float32)
OPEN = image_input("x", ("n", 3, "h", "w"), np.float32)
UNIT = Preprocess.parse("unit")


@pytest.fixture
def dataset(image_folder):
    return open_dataset(image_folder)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
def test_batches_hold_every_image_in_order(dataset, workers, batch_size):
    batches = Batches(dataset, None, UNIT, INPUT, workers=workers)
    got = list(batches.batches(batch_size))
    assert [len(b) for b in got[:-1]] == [batch_size] * (len(got) - 1)
    expected = np.stack([UNIT.apply(dataset.image(i), INPUT) for i in range(6)])
    np.testing.assert_array_equal(np.concatenate(got), expected)
    assert got[0].dtype == np.float32 and got[0].shape[1:] == (3, 8, 8)


def test_indices_limit_and_labels(dataset):
    batches = Batches(dataset, [5, 0, 3], UNIT, INPUT)
    assert len(batches) == 3
    assert batches.labels.tolist() == [2, 0, 1]
    assert batches.class_names == ["ant", "bee", "cow"]
    assert not batches.synthetic and batches.description == "3 images of pictures"
    assert [len(b) for b in batches.batches(2)] == [2, 1]
    assert [len(b) for b in batches.batches(2, limit=1)] == [1]
    assert list(batches.batches(2, limit=0)) == []
    with pytest.raises(ValueError, match="at least 1"):
        list(batches.batches(0))
    with pytest.raises(ValueError, match="outside"):
        Batches(dataset, [6], UNIT, INPUT)


@pytest.mark.parametrize("spec", ["imagenet", "efficientnet-lite", "unit", "raw"])
def test_levels_are_what_pixels_become(dataset, spec):
    batches = Batches(dataset, [4, 1], Preprocess.parse(spec), INPUT)
    factor, offset = batches.levels()
    assert factor.shape == offset.shape == (3,)
    numbers = batches.picture(0).astype(np.float64) * factor + offset
    np.testing.assert_allclose(batches.item(0), numbers.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "known"),
    [(np.linspace(0, 255, 384), False), (np.arange(384) % 256, True), (np.arange(384), False)],
    ids=["fractions", "pixels", "above 255"],
)
def test_only_pixels_have_levels(tmp_path, x, known):
    path = tmp_path / "images.npz"
    np.savez(path, x=x.reshape(2, 8, 8, 3).astype(np.float32))
    assert (Batches(open_dataset(path), None, UNIT, INPUT).levels() is not None) == known


def test_subset_is_seeded(dataset):
    batches = Batches(dataset, None, UNIT, INPUT)
    one, again = batches.subset(3, seed=1), batches.subset(3, seed=1)
    assert len(one) == 3 and one.indices.tolist() == again.indices.tolist()
    assert {tuple(batches.subset(3, seed=s).indices) for s in range(9)} != {tuple(one.indices)}
    assert batches.subset(99) is batches


def test_stopping_early_leaves_no_threads(dataset):
    before = threading.active_count()
    stream = Batches(dataset, None, UNIT, INPUT).batches(1)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_a_damaged_image_stops_the_stream_by_name(dataset, image_folder):
    (image_folder / "bee" / "1.png").write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"bee.1\.png"):
        list(Batches(dataset, None, UNIT, INPUT).batches(2))


def test_open_sizes_must_agree_within_a_batch(image_folder, write_image):
    write_image(image_folder / "ant" / "1.png", size=(8, 9))
    dataset = open_dataset(image_folder)
    with pytest.raises(DataError, match=r"different sizes.*ant.1\.png") as caught:
        list(Batches(dataset, None, UNIT, OPEN).batches(3))
    assert "size=" in caught.value.hint
    assert [b.shape[2:] for b in Batches(dataset, [0, 1], UNIT, OPEN).batches(1)] == [(8, 8), (8, 9)]
    sized = Batches(dataset, None, Preprocess.parse("unit{size=6}"), OPEN)
    assert next(sized.batches(3)).shape == (3, 3, 6, 6)


def test_a_misfit_shows_before_any_image_is_read(dataset):
    with pytest.raises(UsageError, match="does not fit"):
        Batches(dataset, None, Preprocess.parse("unit{size=9}"), INPUT)
