import numpy as np
import pytest

from graphopt.data.checks import check_labels, near_chance, suspicions
from graphopt.data.loader import Batches
from graphopt.data.model_io import image_input
from graphopt.data.preprocess import Preprocess
from graphopt.data.sources import open_dataset
from graphopt.data.synthetic import SyntheticDataset
from graphopt.errors import DataError

INPUT = image_input("x", ("n", 3, 32, 32), np.float32)
PHOTOS = np.stack([SyntheticDataset(20, (32, 32)).image(i) for i in range(20)])


def fed(tmp_path, x=PHOTOS, y=None, spec="imagenet", target=INPUT):
    path = tmp_path / "set.npz"
    np.savez(path, x=x, **({} if y is None else {"y": y}))
    return Batches(open_dataset(path), None, Preprocess.parse(spec), target)


@pytest.mark.parametrize("spec", ["imagenet", "inception", "efficientnet-lite", "unit", "raw"])
def test_good_data_raises_no_suspicion(tmp_path, spec):
    assert suspicions(fed(tmp_path, y=np.arange(20) % 10, spec=spec), 10) == []


def test_ready_made_floats_raise_none_with_the_right_spec(tmp_path):
    assert suspicions(fed(tmp_path, x=PHOTOS / 255, spec="imagenet{scale=1}")) == []


@pytest.mark.parametrize(
    ("x", "spec", "message"),
    [
        (PHOTOS / 255, "imagenet", "within 0..1, but preprocess 'imagenet'"),
        (PHOTOS / 127.5 - 1, "unit", "normalized already"),
        (PHOTOS * 4.0, "unit", "beyond the 0..255"),
        (np.zeros_like(PHOTOS), "unit", "blank"),
        (PHOTOS, "raw{scale=255}", "no usual preprocessing exceeds"),
        (PHOTOS[:, :8, :8], "unit", "much smaller than the model's input"),
        (PHOTOS.transpose(0, 3, 1, 2).reshape(PHOTOS.shape), "unit", "reshaped"),
    ],
)
def test_suspicions(tmp_path, x, spec, message):
    warnings = suspicions(fed(tmp_path, x=x, spec=spec))
    assert len(warnings) == 1 and message in warnings[0]


def test_colour_for_a_gray_model_is_said(tmp_path):
    gray = image_input("x", ("n", 1, 32, 32), np.float32)
    assert "converted to gray" in suspicions(fed(tmp_path, spec="unit", target=gray))[0]
    assert suspicions(fed(tmp_path, x=PHOTOS[..., 0], spec="unit", target=gray)) == []


def test_a_layout_against_the_shape_is_said(tmp_path):
    odd = image_input("x", ("n", 3, 3, 4), np.float32)
    assert odd.layout == "nhwc"
    warnings = suspicions(fed(tmp_path, spec="unit{layout=nchw,crop=1}", target=odd))
    assert warnings == ["input 'x' of shape ['n', 3, 3, 4] looks like nhwc, but layout=nchw is asked for"]
    assert suspicions(fed(tmp_path, spec="unit{layout=nchw}")) == []


def test_notes_of_the_dataset_are_passed_on(image_folder, write_image):
    write_image(image_folder / "loose.png")
    target = image_input("x", ("n", 3, 8, 8), np.float32)
    batches = Batches(open_dataset(image_folder), None, Preprocess.parse("unit"), target)
    assert any("outside the class folders" in w for w in suspicions(batches, 3))


def test_labels_outside_the_classes_are_an_error(tmp_path):
    batches = fed(tmp_path, y=np.arange(20) % 11)
    check_labels(batches, 11)
    check_labels(batches, None)
    with pytest.raises(DataError, match=r"label 10 of .*x\[10\] is outside the model's 10 classes \(0..9\)"):
        suspicions(batches, 10)


@pytest.mark.parametrize(
    ("top1", "classes", "n", "suspicious"),
    [
        (0.10, 10, 5000, True),
        (0.12, 10, 100, True),
        (0.19, 10, 5000, True),
        (0.25, 10, 5000, False),
        (0.80, 10, 20, False),
        (0.001, 1000, 5000, True),
        (0.0, 1000, 500, True),
        (0.02, 1000, 500, False),
        (0.55, 2, 10000, True),
        (0.75, 2, 10000, False),
        (0.5, 10, 0, False),
    ],
)
def test_near_chance(top1, classes, n, suspicious):
    assert (near_chance(top1, classes, n) is not None) == suspicious
