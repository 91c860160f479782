"""The report as data. Its first key names its schema; scripts read it, so keys are only ever added."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import graphopt
from graphopt.ir import Model
from graphopt.pipeline.manager import Record
from graphopt.runtime.machine import cpu_name

SCHEMA = "graphopt.report/1"


@dataclass
class Story:
    """What a run collects for its report besides measurements."""

    model: Model
    source: Path
    output: Path
    pipeline: str
    target: str
    dataset: dict[str, Any]
    records: list[Record] = field(default_factory=list)
    gates: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    latency_table: dict[str, Any] | None = None
    output_sha256: str | None = None
    written: bool = False
    error: dict[str, str] | None = None


def report(
    story: Story,
    before: dict[str, Any],
    after: dict[str, Any] | None,
    delta: dict[str, Any] | None,
) -> dict[str, Any]:
    """Assemble the report. ``after`` and ``delta`` are None when a pass failed."""
    source = story.model.source
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "status": "failed" if story.error else "ok" if story.written else "gate-failed",
        "model": {"path": str(story.source), "sha256": source.sha256 if source else None},
        "output": {"path": str(story.output), "sha256": story.output_sha256, "written": story.written},
        "pipeline": story.pipeline,
        "target": story.target,
        "validated": after is not None and story.dataset["evaluation"] > 0,
        "before": before,
        "after": after,
        "delta": delta,
        "gates": story.gates,
        "passes": [record(r) for r in story.records],
        "dataset": story.dataset,
        "notes": story.notes,
        "latency_table": story.latency_table,
        "environment": story.environment,
    }
    if story.error:
        found["error"] = story.error
    return found


def record(found: Record) -> dict[str, Any]:
    """One pass's entry."""
    entry = {
        "spec": found.spec,
        "kind": found.kind,
        "changed": found.changed,
        "seconds": round(found.seconds, 3),
        "delta": found.delta,
        "metrics": found.metrics,
        "skipped": [{k: v for k, v in asdict(s).items() if v is not None} for s in found.skipped],
    }
    if found.exactness is not None:
        entry["exactness"] = found.exactness
    return entry


def environment(threads: int, seed: int) -> dict[str, Any]:
    """What the measurements depend on besides the model and the data."""
    packages = ("onnx", "onnxruntime", "onnx-graphsurgeon", "numpy")
    return {
        "graphopt": graphopt.__version__,
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": threads,
        "seed": seed,
    }
