"""How long to train, and how fast at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Either ``minutes`` or ``steps`` is given. ``stop`` ends it sooner, on the schedule of ``steps``."""

    minutes: float | None = None
    steps: int | None = None
    stop: int | None = None


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """The learning rate at ``step`` as a part of the highest: a linear warm-up, then half a cosine down to zero.

    Loshchilov and Hutter, "SGDR" (2017). The warm-up does not depend on ``steps``, so that it can be measured in the
    first of them.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def planned(budget: float, spent: float, step: float, done: int, evaluation: float, evaluations: int) -> int:
    """How many steps fit into ``budget`` seconds, when ``done`` of them and ``spent`` seconds are over."""
    left = budget - spent - evaluation * evaluations
    return done + max(1, int(left / max(step, 1e-9)))
