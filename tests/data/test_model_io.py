import numpy as np
import pytest

from graphopt.data.model_io import image_input
from graphopt.errors import ModelError


@pytest.mark.parametrize(
    ("shape", "layout", "channels", "size", "batch"),
    [
        (("batch", 3, 32, 32), "nchw", 3, (32, 32), None),
        ((None, 224, 192, 3), "nhwc", 3, (224, 192), None),
        ((1, 1, 28, 28), "nchw", 1, (28, 28), 1),
        ((8, 28, 28, 1), "nhwc", 1, (28, 28), 8),
        (("n", 3, "h", "w"), "nchw", 3, (None, None), None),
        ((-1, None, 0, 3), "nhwc", 3, (None, None), None),
        (("n", 4, 4, 3), "nhwc", 3, (4, 4), None),
        (("n", 3, 4, 4), "nchw", 3, (4, 4), None),
    ],
)
def test_layout_is_read_off_the_shape(shape, layout, channels, size, batch):
    got = image_input("x", shape, np.float32)
    assert (got.layout, got.channels, (got.height, got.width), got.batch) == (layout, channels, size, batch)


def test_item_shape_follows_the_layout():
    assert image_input("x", (None, 3, None, None), np.float32).item_shape(5, 7) == (3, 5, 7)
    assert image_input("x", (None, None, None, 3), np.float32).item_shape(5, 7) == (5, 7, 3)


def test_explicit_layout_settles_what_the_shape_does_not_tell():
    assert image_input("x", ("n", "c", "h", "w"), np.float32, layout="nchw").channels == 3
    assert image_input("x", ("n", 3, 9, 3), np.float32, layout="nhwc").height == 3


@pytest.mark.parametrize("shape", [("n", "c", "h", "w"), ("n", 3, 9, 3), ("n", 3, 3, 3), ("n", 16, 32, 32)])
def test_ambiguous_layout_is_an_error_with_a_hint(shape):
    with pytest.raises(ModelError, match="cannot tell the layout") as caught:
        image_input("x", shape, np.float32)
    assert "layout=" in caught.value.hint


@pytest.mark.parametrize("shape", [(), ("n", 10), ("n", 3, 32), ("n", 3, 8, 32, 32)])
def test_only_rank_four_is_a_batch_of_images(shape):
    with pytest.raises(ModelError, match="not a batch of images"):
        image_input("x", shape, np.float32)


def test_wrong_layout_and_type_are_errors():
    with pytest.raises(ModelError, match="32 channels"):
        image_input("x", ("n", 3, 32, 32), np.float32, layout="nhwc")
    with pytest.raises(ModelError, match="int64"):
        image_input("x", ("n", 3, 32, 32), np.int64)
