"""What a module adds to graphopt besides passes: rules of operators, criteria. A file that adds any can be loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_modules: set[str] = set()


def add(function: Callable[..., Any]) -> None:
    """Note that a function was registered."""
    _modules.add(function.__module__)


def extends(module: str) -> bool:
    """Whether a module registered anything."""
    return module in _modules
