"""graphopt: a compiler for trained image classifiers.

Names are imported on first use, so that ``import graphopt`` (and ``graphopt --help``) stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.analysis.base import Analysis
    from graphopt.errors import DataError, GraphoptError, ModelError, PassError, UsageError
    from graphopt.ir import Model, load, save
    from graphopt.pipeline import Context, Kind, Pass, PassResult, Skipped, option

__version__ = "0.1.0"

_HOME = {
    "Analysis": "graphopt.analysis.base",
    "Context": "graphopt.pipeline",
    "DataError": "graphopt.errors",
    "GraphoptError": "graphopt.errors",
    "Kind": "graphopt.pipeline",
    "Model": "graphopt.ir",
    "ModelError": "graphopt.errors",
    "Pass": "graphopt.pipeline",
    "PassError": "graphopt.errors",
    "PassResult": "graphopt.pipeline",
    "Skipped": "graphopt.pipeline",
    "UsageError": "graphopt.errors",
    "load": "graphopt.ir",
    "option": "graphopt.pipeline",
    "save": "graphopt.ir",
}
__all__ = [
    "Analysis",
    "Context",
    "DataError",
    "GraphoptError",
    "Kind",
    "Model",
    "ModelError",
    "Pass",
    "PassError",
    "PassResult",
    "Skipped",
    "UsageError",
    "load",
    "option",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
