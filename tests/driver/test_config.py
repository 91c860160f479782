"""Settings from TOML and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt.driver.config import Settings, find, read_file
from graphopt.errors import UsageError

FULL = """
passes = "prune{macs=0.7},quantize"
target = "ort-cpu"
seed = 3
[data]
evaluation = "../data/test"
calibration = "../data/train"
calibration_images = 100
[preprocess]
preset = "imagenet"
crop = 1.0
[gates]
max_drop = 1.0
max_bytes = 1000
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    found = read_file(write(tmp_path / "m.toml", FULL))
    assert found.data == tmp_path / "../data/test"
    assert found.calibration_data == tmp_path / "../data/train"
    assert (found.passes, found.seed, found.max_drop, found.max_bytes) == ("prune{macs=0.7},quantize", 3, 1.0, 1000)
    assert found.preprocess == {"preset": "imagenet", "crop": 1.0}


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    found = Settings(passes="fold", seed=0).over(read_file(write(tmp_path / "m.toml", FULL)))
    assert (found.passes, found.seed, found.target) == ("fold", 0, "ort-cpu")


def test_the_models_own_file_is_found(tmp_path: Path) -> None:
    write(tmp_path / "m.toml", "seed = 7")
    assert find(tmp_path / "m.onnx", None).seed == 7
    assert find(tmp_path / "other.onnx", write(tmp_path / "c.toml", "seed = 8")).seed == 8


def test_pyproject_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(tmp_path / "m.onnx", None) == Settings()
    write(tmp_path / "pyproject.toml", "[tool.graphopt]\nseed = 9\n[tool.other]\nx = 1")
    assert find(tmp_path / "m.onnx", None).seed == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pases = 'fold'", "unknown key 'pases' in .*m.toml.*\n.*did you mean 'passes'"),
        ("[gates]\nmax_dorp = 1", r"unknown key 'max_dorp' in \[gates\] of .*\n.*did you mean 'max_drop'"),
        ("seed = 'x'", "'seed' in .* must be int"),
        ("[gates]\nmax_drop = true", "'max_drop' in .* must be int or float"),
        ("data = 'x'", "'data' in .* must be a table"),
        ("preprocess = 3", "must be a text or a table"),
        ("seed = ", "is not valid TOML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_file(write(tmp_path / "m.toml", text))
    import re

    assert re.search(message, str(caught.value))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such configuration file"):
        find(tmp_path / "m.onnx", tmp_path / "none.toml")
