"""Every command in the README runs, and says what the README says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PASS = '''
from dataclasses import dataclass

from graphopt import Kind, Pass, PassResult


@dataclass(frozen=True)
class MyPass(Pass):
    """Do nothing."""

    name = "my-pass"
    kind = Kind.EXACT

    def run(self, model, ctx):
        return PassResult(False)
'''


def blocks(text: str) -> list[str]:
    """Lines of the shell blocks, without comments."""
    found = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    return [line.split("#")[0].strip() for block in found for line in block.splitlines() if line.strip()]


@pytest.fixture
def folder(root: Path, tmp_path: Path, classifier: Path) -> Path:
    """A folder with everything that the README's commands name."""
    shutil.copytree(root / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.opt.*"))
    (tmp_path / "build").mkdir()
    (tmp_path / "my_pass.py").write_text(PASS)
    rng = np.random.default_rng(0)
    for name in "abcd":
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(4):
            pixels = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k}.png")
    return tmp_path


def test_the_commands_of_the_readme_run(root: Path, folder: Path) -> None:
    commands = blocks((root / "README.md").read_text())
    assert len(commands) > 8
    for command in commands:
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (root / "Makefile").read_text(), re.M), f"no target {words[1]}"
            continue
        assert words[0] == "graphopt"
        done = subprocess.run(
            [sys.executable, "-c", "from graphopt.cli import main; main()", *words[1:]],
            capture_output=True,
            text=True,
            cwd=folder,
            env=os.environ,
        )
        # Random images say nothing about accuracy, so there the gate may fail; that is exit code 1, no other.
        allowed = (0, 1) if "images/" in words else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stderr}\n{done.stdout}"
    assert (folder / "build" / "model.onnx").exists() and (folder / "models" / "fashion-resnet.opt.onnx").exists()


def test_every_page_that_the_readme_links_to_exists(root: Path) -> None:
    for page in [root / "README.md", *(root / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_exit_codes_are_those_of_the_errors(root: Path) -> None:
    from graphopt import errors

    text = (root / "README.md").read_text()
    assert {errors.UsageError.exit_code, errors.ModelError.exit_code, errors.DataError.exit_code} == {2}
    assert errors.PassError.exit_code == errors.GraphoptError.exit_code == 3
    assert "| 2 | usage, configuration, or input" in text and "| 3 | a pass or the tool itself failed" in text


def test_the_passes_table_is_complete(root: Path) -> None:
    from graphopt.pipeline import Registry

    text = (root / "README.md").read_text()
    for name in Registry().names():
        kind = Registry().get(name).kind.value
        assert f"| `{name}` | {kind} |" in text
