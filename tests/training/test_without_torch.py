"""What there is without PyTorch: one clear error, and nothing imported before it is needed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from graphopt import training
from graphopt.errors import UsageError


def test_pytorch_is_there_to_test_training_with() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed: the training tests did not run (make test-train installs it)")


def test_one_error_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "available", lambda: False)
    with pytest.raises(UsageError, match="distill needs PyTorch") as caught:
        training.require("distill")
    assert caught.value.hint == 'install it with: pip install "graphopt[train]"'


def test_registering_every_pass_does_not_import_pytorch() -> None:
    code = (
        "import sys; from graphopt.pipeline import Registry; r = Registry(); [r.get(n) for n in r.names()]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
