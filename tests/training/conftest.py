"""Everything here needs PyTorch, an extra; ``make test-train`` installs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

HAVE_TORCH = importlib.util.find_spec("torch") is not None
NEEDS_NONE = {"test_without_torch.py"}


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Without PyTorch the files that import it are not read; ``test_without_torch.py`` says that they were skipped."""
    wanted = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if wanted and not HAVE_TORCH and collection_path.name not in NEEDS_NONE else None


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    if HAVE_TORCH:
        import torch

        torch.set_num_threads(1)
