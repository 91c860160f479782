"""Passes as data, for listings."""

from __future__ import annotations

import inspect
from typing import Any

from graphopt.pipeline import Pass, Pipeline


def pipeline_entry(pipeline: Pipeline) -> dict[str, Any]:
    """Name and passes of a pipeline."""
    return {"name": pipeline.name, "passes": [step.name for step in pipeline.passes]}


def pass_entry(cls: type[Pass]) -> dict[str, Any]:
    """Name, kind, help and options of a pass class."""
    return {
        "name": cls.name,
        "kind": cls.kind.value,
        "requires": list(cls.requires),
        "summary": cls.summary(),
        "help": inspect.getdoc(cls) or "",
        "options": [
            {"name": o.name, "default": o.default, "allowed": o.allowed, "help": o.help} for o in cls.options()
        ],
    }
