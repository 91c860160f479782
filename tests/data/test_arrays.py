import numpy as np
import pytest

from graphopt.data.sources import open_dataset
from graphopt.errors import DataError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def saved(tmp_path, **arrays):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    return path


def test_images_come_out_channels_last(tmp_path):
    for x in (X, X.transpose(0, 3, 1, 2)):
        dataset = open_dataset(saved(tmp_path, x=x, y=np.arange(5)))
        assert len(dataset) == 5 and dataset.labels.tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(dataset.image(3), X[3])
    gray = open_dataset(saved(tmp_path, x=X[..., 0]))
    assert gray.labels is None
    np.testing.assert_array_equal(gray.image(2), X[2, ..., :1])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_read_the_same_mapped_or_not(tmp_path, save, order):
    x = np.asarray(RNG.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8), order=order)
    save(tmp_path / "big.npz", x=x, y=np.zeros((50, 1), np.int32))
    dataset = open_dataset(tmp_path / "big.npz")
    np.testing.assert_array_equal(dataset.image(49), x[49])
    assert isinstance(dataset._x, np.memmap) == (save is np.savez)
    assert dataset.labels.shape == (50,)


def test_other_types_become_float(tmp_path):
    for x in (X.astype(np.int64), X.astype(np.float64), X.astype(np.float16)):
        image = open_dataset(saved(tmp_path, x=x)).image(1)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, X[1])


def test_fingerprint_is_the_content(tmp_path):
    one = open_dataset(saved(tmp_path, x=X)).fingerprint
    assert open_dataset(saved(tmp_path, x=X.copy())).fingerprint == one
    assert open_dataset(saved(tmp_path, x=X + 1)).fingerprint != one


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X}, "no array 'x' .it has images."),
        ({"x": X, "y": np.zeros(4, int)}, "x has 5 images but y has 4 labels"),
        ({"x": X, "y": np.eye(5)}, r"y has shape \[5, 5\]"),
        ({"x": X, "y": np.full(5, 0.5)}, "no labels"),
        ({"x": X, "y": np.full(5, -1)}, "no labels"),
        ({"x": X, "y": np.array(list("abcde"))}, "y has type"),
        ({"x": X[..., :2]}, "no single axis looks like"),
        ({"x": np.zeros((5, 3, 9, 3), np.uint8)}, "no single axis looks like"),
        ({"x": np.zeros((5, 12), np.uint8)}, "no batch of images"),
        ({"x": X[:0]}, "x is empty"),
        ({"x": X > 3}, "no pixel type"),
        ({"x": np.array([{}], dtype=object)}, "cannot read"),
    ],
)
def test_bad_files_are_errors(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        open_dataset(saved(tmp_path, **arrays))


def test_damaged_files_are_errors(tmp_path):
    path = saved(tmp_path, x=X)
    data = path.read_bytes()
    for broken in (b"", b"no zip", data[: len(data) // 2], data[:200] + b"\0" * 100 + data[300:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"cannot read .*set\.npz"):
            open_dataset(path)


def test_nan_pixels_are_an_error(tmp_path):
    x = X.astype(np.float32)
    x[2, 0, 0, 0] = np.nan
    dataset = open_dataset(saved(tmp_path, x=x))
    with pytest.raises(DataError, match=r"x\[2\] holds NaN"):
        dataset.image(2)
