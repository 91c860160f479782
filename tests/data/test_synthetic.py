import numpy as np
import pytest

from graphopt.data.model_io import image_input
from graphopt.data.preprocess import Preprocess
from graphopt.data.synthetic import SyntheticDataset, synthetic_batches
from graphopt.errors import DataError

INPUT = image_input("x", ("n", 3, 32, 32), np.float32)


def test_batches_are_marked_and_seeded():
    make = [synthetic_batches(INPUT, Preprocess.parse("imagenet"), 5, seed=s) for s in (1, 1, 2)]
    one, same, other = (np.concatenate(list(b.batches(2))) for b in make)
    assert make[0].synthetic and make[0].labels is None and "synthetic" in make[0].description
    assert make[0].subset(2).synthetic
    assert one.shape == (5, 3, 32, 32) and one.dtype == np.float32
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_images_do_not_depend_on_how_many_there_are():
    np.testing.assert_array_equal(SyntheticDataset(3, (9, 9)).image(2), SyntheticDataset(50, (9, 9)).image(2))
    with pytest.raises(IndexError):
        SyntheticDataset(3, (9, 9)).image(3)


def test_statistics_are_those_of_photographs():
    images = np.stack([SyntheticDataset(40, (32, 32)).image(i) for i in range(40)]).astype(np.float64)
    assert 100 < images.mean() < 140 and 40 < images.std() < 80
    assert images.min() == 0 and images.max() == 255
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    neighbours = (centred[:, :, 1:] * centred[:, :, :-1]).mean() / (centred**2).mean()
    assert 0.75 < neighbours < 0.99  # smooth, with edges
    colours = np.corrcoef(centred[..., 0].ravel(), centred[..., 1].ravel())[0, 1]
    assert 0.6 < colours < 0.99


@pytest.mark.parametrize("shape", [("n", 1, 28, 28), ("n", 17, 23, 3), (1, 1, 1, 3)])
def test_any_size_and_channels(shape):
    made = synthetic_batches(image_input("x", shape, np.float32), Preprocess.parse("unit"), 2)
    assert next(made.batches(2)).shape == (2, *shape[1:])


def test_an_open_size_is_an_error():
    with pytest.raises(DataError, match="need a size"):
        synthetic_batches(image_input("x", ("n", 3, "h", "w"), np.float32), Preprocess.parse("unit"), 2)
