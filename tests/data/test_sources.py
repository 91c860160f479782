import numpy as np
import pytest
from PIL import Image

from graphopt.data.sources import open_dataset
from graphopt.errors import DataError


def test_class_folders_are_labels_in_sorted_order(image_folder):
    dataset = open_dataset(image_folder)
    assert len(dataset) == 6
    assert dataset.name == "pictures"
    assert dataset.class_names == ["ant", "bee", "cow"]
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert dataset.image(0).size == (8, 8)
    assert dataset.notes == ()


def test_classes_txt_gives_the_label_order(image_folder):
    (image_folder / "classes.txt").write_text("\ufeffcow\nzebra\nbee\nant\n\n", encoding="utf-8")
    dataset = open_dataset(str(image_folder))
    assert dataset.class_names == ["cow", "zebra", "bee", "ant"]
    assert dataset.labels.tolist() == [3, 3, 3, 2, 2, 0]
    assert dataset.notes == ()  # a class without a folder is fine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant\nbee\n", "cow is not in .*classes.txt"),
        ("ant\n\nbee\ncow", "line 2: empty class name"),
        ("ant\nbee\ncow\nant", "line 4: class 'ant' is there twice"),
        ("\n", "names no classes"),
    ],
)
def test_bad_classes_txt_is_an_error(image_folder, text, message):
    (image_folder / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(image_folder)


def test_a_flat_folder_has_no_labels(tmp_path, write_image):
    for i in range(3):
        write_image(tmp_path / f"{i}.JPG", seed=i)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 3 and dataset.labels is None and dataset.class_names is None


def test_what_is_left_out_is_said(image_folder, write_image):
    write_image(image_folder / "loose.png")
    (image_folder / "yak").mkdir()
    dataset = open_dataset(image_folder)
    assert len(dataset) == 6
    assert any("'yak'" in n for n in dataset.notes) and any("1 images outside" in n for n in dataset.notes)


def test_fingerprint_is_the_content_not_the_place(image_folder, tmp_path, write_image):
    import shutil

    before = open_dataset(image_folder).fingerprint
    shutil.copytree(image_folder, tmp_path / "copy")
    assert open_dataset(tmp_path / "copy").fingerprint == before
    write_image(image_folder / "cow" / "1.png", size=(9, 9))
    assert open_dataset(image_folder).fingerprint != before


def test_missing_empty_and_unknown_paths_are_errors(tmp_path):
    with pytest.raises(DataError, match="no dataset at"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no images"):
        open_dataset(tmp_path)
    (tmp_path / "ant").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_dataset(tmp_path)
    weights = tmp_path / "x.npy"
    weights.write_bytes(b"")
    with pytest.raises(DataError, match="not a dataset") as caught:
        open_dataset(weights)
    assert ".npz" in caught.value.hint


def test_a_folder_one_level_too_high_gets_a_hint(image_folder):
    with pytest.raises(DataError, match="only folders") as caught:
        open_dataset(image_folder.parent)
    assert "pictures" in caught.value.hint


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_a_damaged_image_is_named(image_folder, damage):
    path = image_folder / "bee" / "0.png"
    data = path.read_bytes()
    path.write_bytes({"garbage": b"garbage", "truncated": data[: len(data) // 2], "empty": b""}[damage])
    dataset = open_dataset(image_folder)
    with pytest.raises(DataError, match=r"cannot decode image .*bee.0\.png"):
        dataset.image(3)


def test_a_decompression_bomb_is_an_error(image_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    dataset = open_dataset(image_folder)
    with pytest.raises(DataError, match="too large to decode"):
        dataset.image(0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_pil_only_warns_of_is_an_error_too(image_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(DataError, match="8x8 pixels"):
        open_dataset(image_folder).image(0)
