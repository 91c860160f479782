"""Training: the IR as a differentiable program on PyTorch, which is imported only when something trains.

This package itself imports without PyTorch. Its modules need it: call ``require`` before importing them.
"""

from __future__ import annotations

import importlib.util

from graphopt.errors import UsageError

INSTALL = 'pip install "graphopt[train]"'


def available() -> bool:
    """Whether PyTorch is installed; nothing is imported."""
    return importlib.util.find_spec("torch") is not None


def require(what: str) -> None:
    """Raise UsageError, with the line that installs it, where PyTorch is missing."""
    if not available():
        raise UsageError(f"{what} needs PyTorch, which is not installed", f"install it with: {INSTALL}")
