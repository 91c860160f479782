import pytest

from graphopt.data.sources import open_dataset
from graphopt.errors import DataError


@pytest.fixture
def manifest(tmp_path, write_image):
    """Write a manifest beside two images, img/a.png and img/b.png."""
    for name in "ab":
        write_image(tmp_path / "img" / f"{name}.png")

    def write(text, name="list.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("name", "text", "labels", "names"),
    [
        ("l.csv", "img/a.png,3\nimg/b.png,0\n", [3, 0], None),
        ("l.csv", "path,label\nimg/a.png,3\n\nimg/b.png,0\n", [3, 0], None),
        ("l.csv", "id,Label,Path\n1,3,img/a.png\n2,0,img/b.png\n", [3, 0], None),
        ("l.csv", "img/a.png,dog\nimg/b.png,cat\n", [1, 0], ["cat", "dog"]),
        ("l.tsv", "img/a.png\tbig dog\nimg/b.png\tcat, small\n", [0, 1], ["big dog", "cat, small"]),
        ("l.csv", '"img/a.png", 1\nimg/b.png , 2', [1, 2], None),
    ],
)
def test_labels(manifest, name, text, labels, names):
    dataset = open_dataset(manifest(text, name))
    assert dataset.labels.tolist() == labels
    assert dataset.class_names == names
    assert dataset.image(1).size == (8, 8)


def test_no_labels(manifest):
    assert open_dataset(manifest("path\nimg/a.png\nimg/b.png\n")).labels is None
    assert len(open_dataset(manifest("img/a.png\n"))) == 1


def test_classes_txt_beside_the_manifest(manifest, tmp_path):
    (tmp_path / "classes.txt").write_text("dog\nyak\ncat\n")
    dataset = open_dataset(manifest("img/a.png,cat\nimg/b.png,dog\n"))
    assert dataset.labels.tolist() == [2, 0] and len(dataset.class_names) == 3
    with pytest.raises(DataError, match="line 2: class 'ant' is not in"):
        open_dataset(manifest("img/a.png,cat\nimg/b.png,ant\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("path,label\n", "lists no images"),
        ("img/a.png,0\nimg/c.png,1\n", "line 2: no such image: img/c.png"),
        ("img/a.png,0\nimg/b.png\n", "line 2: no label, but line 1 has one"),
        ("img/a.png,0\nimg/b.png,dog\n", "line 2: label 'dog' after labels such as '0'"),
        ("img/a.png,0\nimg/b.png,-1\n", "line 2: label -1 is negative"),
        ("img/a.png,0\n,1\n", "line 2: no image path"),
        ("label,path\n1\n", "line 2: no image path"),
        ("img/a.png,0,0.7\n", "line 1: 3 columns"),
        ('img/a.png,0\n"img/b.png,1\n', "line 2: "),
    ],
)
def test_bad_rows_are_named(manifest, text, message):
    with pytest.raises(DataError, match=message):
        open_dataset(manifest(text))


def test_not_text(tmp_path):
    path = tmp_path / "l.csv"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="cannot read"):
        open_dataset(path)
