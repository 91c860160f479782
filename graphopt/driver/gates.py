"""The limits that a result must hold before it replaces anything."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.driver.config import Settings
from graphopt.errors import UsageError


@dataclass(frozen=True)
class Gate:
    """One limit and what was measured. ``unit`` is for the reader."""

    name: str
    limit: float
    value: float
    passed: bool
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What gates look at; None is what was not measured. Fractions for accuracies and agreement."""

    top1_before: float | None
    top1_after: float | None
    agreement: float | None
    speedup: float | None
    bytes: int


def check_possible(settings: Settings, has_images: bool, has_labels: bool) -> None:
    """Raise UsageError for a gate that this run has no means to check, before any work is done."""
    for name, limit in (("--max-drop", settings.max_drop), ("--min-accuracy", settings.min_accuracy)):
        if limit is not None and not has_images:
            raise UsageError(
                f"the gate {name} cannot be checked without images to evaluate on",
                "give --data (and no --no-eval), or drop the gate",
            )
    if settings.min_accuracy is not None and not has_labels:
        raise UsageError(
            "the gate --min-accuracy needs labelled images, and these have no labels",
            "use class folders, or --max-drop, which falls back to agreement with the input model",
        )


def judge(settings: Settings, measured: Measured) -> list[Gate]:
    """The gates that were asked for, with their verdicts. The limits themselves still pass."""
    gates: list[Gate] = []
    if settings.max_drop is not None:
        if measured.top1_before is not None and measured.top1_after is not None:
            value, note = 100 * (measured.top1_before - measured.top1_after), ""
        else:
            value = 100 * (1 - (measured.agreement or 0.0))
            note = "no labels: images on which the output model disagrees with the input model count as lost"
        gates.append(
            Gate(
                "max-drop",
                settings.max_drop,
                round(value, 6),
                round(value, 6) <= settings.max_drop,
                "points",
                note,
            )
        )
    if settings.min_accuracy is not None:
        value = 100 * (measured.top1_after or 0.0)
        passed = round(value, 6) >= settings.min_accuracy
        gates.append(Gate("min-accuracy", settings.min_accuracy, round(value, 6), passed, "%"))
    if settings.min_speedup is not None:
        value = measured.speedup or 0.0
        gates.append(Gate("min-speedup", settings.min_speedup, value, value >= settings.min_speedup, "x"))
    if settings.max_bytes is not None:
        passed = measured.bytes <= settings.max_bytes
        gates.append(Gate("max-bytes", settings.max_bytes, measured.bytes, passed, "bytes"))
    return gates
