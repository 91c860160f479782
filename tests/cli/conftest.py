"""Running the command as a user does: a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def graphopt(tmp_path: Path) -> Run:
    """Run ``graphopt`` with arguments in the test's folder; returns code, stdout, stderr."""

    def run(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from graphopt.cli import main; main()", *map(str, args)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **env}, timeout=300
        )

    return run


PASSES = '''
"""Passes that tests load by file."""
from dataclasses import dataclass

import numpy as np

from graphopt import Kind, Pass, PassError, PassResult, option


@dataclass(frozen=True)
class Idle(Pass):
    """Do nothing."""

    name = "idle"
    kind = Kind.EXACT

    def run(self, model, ctx):
        return PassResult(False)


@dataclass(frozen=True)
class Ruin(Pass):
    """Ruin the classifier's last layer."""

    name = "ruin"
    kind = Kind.LOSSY
    how: str = option("zero", "what to do", choices=("zero", "nan", "crash", "refuse", "shift"))

    def run(self, model, ctx):
        if self.how == "crash":
            raise KeyError("no such thing")
        if self.how == "refuse":
            raise PassError("nothing to ruin", "give a model with weights")
        weight = next(n for n in model.graph.nodes if n.op == "Gemm").inputs[1]
        with model.edit():
            if self.how == "shift":
                weight.values = np.roll(weight.values, 1, axis=0)
            else:
                weight.values = weight.values * np.float32(0 if self.how == "zero" else np.nan)
        return PassResult(True)
'''


@pytest.fixture
def pass_file(tmp_path: Path) -> Path:
    path = tmp_path / "more_passes.py"
    path.write_text(PASSES)
    return path
