"""Schedules with a clock that the tests turn: no test depends on how fast the machine is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from graphopt.training.schedule import EVALUATIONS, Budget, Schedule, Step, rate_factor

WARMUP = 10


def run(seconds: float, pace: Callable[[int], float], evaluation: float = 0.0) -> tuple[Schedule, list[Step], float]:
    """A training of so many seconds, whose steps take ``pace(number)`` seconds."""
    now = [100.0]
    schedule = Schedule(Budget(minutes=seconds / 60), WARMUP, evaluation, clock=lambda: now[0])
    steps = []
    for step in schedule:
        steps.append(step)
        now[0] += pace(step.number) + evaluation * step.evaluate
    return schedule, steps, now[0] - 100.0


@pytest.mark.parametrize(
    "pace",
    [
        lambda n: 0.1,
        lambda n: 0.3 if n < 100 else 0.1,  # the machine becomes faster
        lambda n: 0.1 if n < 300 else 0.3,
        lambda n: 5.0 if n < 3 else 0.1,  # the first steps say nothing of the others
        lambda n: 0.2 if n // 50 % 2 else 0.1,
    ],
)
def test_the_time_is_used_whatever_the_speed(pace):
    schedule, steps, took = run(100.0, pace, evaluation=0.5)
    assert 94.0 <= took <= 101.0
    assert sum(s.evaluate for s in steps) == EVALUATIONS and steps[-1].evaluate and not schedule.out_of_time
    assert steps[-1].rate < 0.01 and max(s.rate for s in steps) > 0.9
    assert [s.number for s in steps] == list(range(len(steps)))


def test_the_rate_falls_by_equal_parts_of_the_cosine():
    _, steps, _ = run(100.0, lambda n: 0.1 if n < 300 else 0.3)
    ends = [s.number for s in steps if s.evaluate]
    for part, end in enumerate(ends[:-1], start=1):
        assert steps[end + 1].rate == pytest.approx(rate_factor(end, part / EVALUATIONS, WARMUP))
    fallen = [s.rate for s in steps if s.number > WARMUP]
    assert fallen == sorted(fallen, reverse=True)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 30.0])
def test_its_parts_give_the_same_steps_again(seconds):
    schedule, steps, _ = run(seconds, lambda n: 0.3 if n % 3 else 0.1)
    again = Schedule(Budget(steps=schedule.repeating, stop=len(steps)), WARMUP)
    assert list(again) == steps
    assert again.repeating == schedule.repeating


def test_a_machine_that_stops_ends_it():
    schedule, steps, took = run(100.0, lambda n: 0.1 if n < 200 else 30.0)
    assert schedule.out_of_time and took <= 130.0
    assert isinstance(schedule.repeating, tuple) and len(schedule.repeating) == EVALUATIONS + 1
    assert list(Schedule(Budget(steps=schedule.repeating, stop=len(steps)), WARMUP)) == steps


@pytest.mark.parametrize("total", [1, 7, 20, 105])
def test_a_number_of_steps(total):
    steps = list(Schedule(Budget(steps=total), WARMUP))
    assert len(steps) == total and steps[-1].evaluate
    assert sum(s.evaluate for s in steps) <= EVALUATIONS + 2
    for step in steps:
        assert step.rate == pytest.approx(rate_factor(step.number, step.number / total, WARMUP))
    assert list(Schedule(Budget(steps=total, stop=5), WARMUP)) == steps[:5]


def test_nothing_is_planned_before_the_first_step():
    schedule = Schedule(Budget(minutes=1.0), WARMUP)
    steps = schedule.repeating
    assert isinstance(steps, tuple) and len(steps) == EVALUATIONS + 1 and min(steps) >= 1
