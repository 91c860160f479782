"""The wheel, built and installed into an empty environment, runs a pipeline there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest


def test_a_pipeline_runs_from_an_installed_wheel(root: Path, tmp_path: Path, classifier: Path, images: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(root)],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    installed = subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr[-2000:]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    where = subprocess.run(
        [python, "-c", "import graphopt, graphopt.passes.fold as f; print(graphopt.__file__, f.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert where.returncode == 0, where.stderr
    assert where.stdout.count(str(tmp_path)) == 2, f"imported from elsewhere: {where.stdout}"
    done = subprocess.run(
        [
            *(tmp_path / "env" / "bin" / "graphopt", "run", classifier, "--passes", "prune{macs=0.8},quantize"),
            *("--data", images, "--format", "json"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["status"] == "ok" and report["pipeline"] == "simplify,prune{macs=0.8},quantize"


@pytest.fixture(autouse=True)
def _clean_build_folder(root: Path):
    """setuptools leaves ``build/`` in the source tree; a later build would pick stale files up from it."""
    yield
    import shutil

    shutil.rmtree(root / "build", ignore_errors=True)
