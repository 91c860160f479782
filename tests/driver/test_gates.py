"""Gates: what they compare, and which cannot be checked."""

from __future__ import annotations

import pytest

from graphopt.driver.config import Settings
from graphopt.driver.gates import Measured, check_possible, judge
from graphopt.errors import UsageError


def measured(**changes: float | None) -> Measured:
    values: dict[str, float | None] = {
        "top1_before": 0.81,
        "top1_after": 0.80,
        "agreement": 0.95,
        "speedup": 2.0,
        "bytes": 1000,
    }
    return Measured(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "passed"),
    [
        (Settings(max_drop=1.0), True),  # exactly the limit, in spite of binary fractions
        (Settings(max_drop=0.99), False),
        (Settings(min_accuracy=80.0), True),
        (Settings(min_accuracy=80.1), False),
        (Settings(min_speedup=2.0), True),
        (Settings(min_speedup=2.1), False),
        (Settings(max_bytes=1000), True),
        (Settings(max_bytes=999), False),
    ],
)
def test_limits_are_inclusive(settings: Settings, passed: bool) -> None:
    (gate,) = judge(settings, measured())
    assert gate.passed is passed


def test_no_gates_no_verdicts() -> None:
    assert judge(Settings(), measured()) == []


def test_without_labels_disagreement_counts_as_drop() -> None:
    (gate,) = judge(Settings(max_drop=4.0), measured(top1_before=None, top1_after=None))
    assert gate.value == pytest.approx(5.0) and not gate.passed and "no labels" in gate.note


def test_an_accuracy_that_rises_is_a_negative_drop() -> None:
    (gate,) = judge(Settings(max_drop=0.0), measured(top1_after=0.82))
    assert gate.value == pytest.approx(-1.0) and gate.passed


@pytest.mark.parametrize(
    ("settings", "images", "labels", "word"),
    [
        (Settings(max_drop=1.0), False, False, "--max-drop"),
        (Settings(min_accuracy=1.0), False, False, "--min-accuracy"),
        (Settings(min_accuracy=1.0), True, False, "labelled"),
    ],
)
def test_gates_that_cannot_be_checked_are_refused(settings: Settings, images: bool, labels: bool, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        check_possible(settings, images, labels)


def test_gates_that_can_be_checked_are_not_refused() -> None:
    check_possible(Settings(max_drop=1.0), True, False)
    check_possible(Settings(min_accuracy=1.0, max_drop=1.0), True, True)
    check_possible(Settings(max_bytes=1, min_speedup=1.0), False, False)
