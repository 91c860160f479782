"""How long to train, and how fast at each step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

EVALUATIONS = 20  # during one training
_UNMEASURED = 4  # first steps, which are slower
_MEASURED = 0.05  # part of the time in which steps are measured at most, before the rate begins to fall


@dataclass(frozen=True)
class Budget:
    """Either ``minutes`` or ``steps`` is given. ``stop`` ends it sooner, on the schedule of ``steps``.

    ``steps`` is a number, or the parts of a schedule: steps before the learning rate falls, then those of each of the
    parts in which it falls, which are equal parts of the cosine.
    """

    minutes: float | None = None
    steps: int | tuple[int, ...] | None = None
    stop: int | None = None


@dataclass(frozen=True)
class Step:
    """One step: its number, its learning rate as a part of the highest, and whether an evaluation follows."""

    number: int
    rate: float
    evaluate: bool


def rate_factor(step: int, done: float, warmup: int) -> float:
    """The learning rate as a part of the highest, when ``done`` (0 to 1) of the schedule is over: half a cosine down to
    zero, times a linear warm-up over so many steps.

    Loshchilov and Hutter, "SGDR" (2017).
    """
    return min(1.0, (step + 1) / (warmup + 1)) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Schedule:
    """The steps of a training, in turn.

    With a budget of minutes, each part of the fall gets the steps that there is time for at the speed of the part
    before: however the machine's speed changes, the time is used, and the rate is zero at its end. ``evaluation``:
    seconds that one takes.
    """

    def __init__(
        self, budget: Budget, warmup: int, evaluation: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget, self.warmup, self.evaluation, self.clock = budget, warmup, evaluation, clock
        steps = budget.steps
        self.parts: list[int] = [] if steps is None else [0, steps] if isinstance(steps, int) else list(steps)
        self.out_of_time = False

    @property
    def repeating(self) -> int | tuple[int, ...]:
        """The steps that repeat it, as far as it has come: the parts that were not begun are made up."""
        if self.budget.steps is not None:
            return self.budget.steps
        return (*self.parts, *(self.parts[-1:] or [1]) * (EVALUATIONS + 1 - len(self.parts)))

    @property
    def planned(self) -> int:
        """Steps in all, as far as is known."""
        steps = self.repeating
        return steps if isinstance(steps, int) else sum(steps)

    def __iter__(self) -> Iterator[Step]:
        return self._timed() if self.budget.steps is None else self._given()

    def _given(self) -> Iterator[Step]:
        ends = list(accumulate(self.parts))
        every = max(1, ends[-1] // EVALUATIONS) if isinstance(self.budget.steps, int) else 0
        part = 0
        for step in range(min(self.budget.stop or ends[-1], ends[-1])):
            while step >= ends[part]:
                part += 1
            here = step - ends[part] + self.parts[part]
            done = 0.0 if part == 0 else (part - 1 + here / self.parts[part]) / (len(self.parts) - 1)
            last = step + 1 == ends[part] and part > 0
            evaluate = last or (every > 0 and (step + 1) % every == 0)
            yield Step(step, rate_factor(step, done, self.warmup), evaluate)

    def _timed(self) -> Iterator[Step]:
        seconds = (self.budget.minutes or 0.0) * 60
        began = start = self.clock()
        step = 0
        while step <= _UNMEASURED or (step < self.warmup and self.clock() - began < _MEASURED * seconds):
            if step == _UNMEASURED:
                start = self.clock()
            if step and self.clock() - began > seconds:
                self.out_of_time = True
                return
            yield Step(step, rate_factor(step, 0.0, self.warmup), False)
            step += 1
            self.parts = [step]
        each = (self.clock() - start) / (step - _UNMEASURED)
        for part in range(EVALUATIONS):
            left = seconds - (self.clock() - began) - self.evaluation * (EVALUATIONS - part)
            count = max(1, int(left / max(each * (EVALUATIONS - part), 1e-9)))
            self.parts.append(count)
            start = self.clock()
            for k in range(count):
                now = self.clock()
                if now - began > seconds:
                    self.out_of_time = True
                    return
                if k == count - 1 and k:
                    each = (now - start) / k
                yield Step(step, rate_factor(step, (part + k / count) / EVALUATIONS, self.warmup), k == count - 1)
                step += 1
                if k == count - 1:
                    self.evaluation = max(0.0, self.clock() - now - each)
