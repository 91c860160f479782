"""What a change to a model costs in accuracy, measured on images apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from graphopt.data.loader import Batches
from graphopt.errors import PassError
from graphopt.ir import Model
from graphopt.runtime.evaluate import Evaluation, evaluate
from graphopt.runtime.session import runnable
from graphopt.runtime.statistics import newcombe_paired, wilson

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context

_WORK = 5e11  # multiply-accumulates of judging one try: bounds the images that it takes
_FEWEST, _MOST, _CHUNK = 512, 4096, 512
_Z = 1.6448536269514722  # one-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Drop:
    """What a model loses, in points of top-1 over ``n`` images, and the one-sided 95 % bounds of that.

    Without labels, points of predictions that change: the drop is no larger.
    """

    n: int
    points: float
    low: float
    high: float


class Judge:
    """Measures drops against the model as it was loaded, or another, on images that nothing is fitted to."""

    def __init__(self, held_out: Batches, ctx: Context, reference: Model | None = None) -> None:
        self.ctx, self.labels = ctx, held_out.labels is not None
        self.reference = reference or ctx.reference
        self.images = held_out
        self.count = len(held_out)
        # Images of a class are next to each other in many sources: every chunk gets some of all.
        number = -(-self.count // _CHUNK)
        self.chunks = [held_out.part(np.arange(k, self.count, number)) for k in range(number)]

    @cached_property
    def before(self) -> list[Evaluation]:
        """The reference on each chunk."""
        return list(self._evaluations(self.reference))

    @classmethod
    def of(cls, ctx: Context, macs: int, reference: Model | None = None) -> tuple[Judge, Context]:
        """A judge, and the context for all else, whose calibration images it does not use.

        Raises PassError where there are no images to judge on.
        """
        if ctx.calibration.synthetic or len(ctx.reference.inputs) != 1:
            raise PassError(
                "max_drop needs images: no accuracy can be measured on made-up ones",
                "give --data or --calibration-data, or leave max_drop out",
            )
        most = int(np.clip(_WORK / max(1, macs), _FEWEST, _MOST))
        if ctx.held_out is not None:
            return cls(ctx.held_out.subset(most, ctx.seed), ctx, reference), ctx
        count = len(ctx.calibration)
        if count < 2:
            raise PassError("max_drop needs more than one image", "give --calibration-data with some hundreds")
        drawn = np.sort(ctx.rng("prune.held out").permutation(count)[: min(most, count // 2)])
        held_out = ctx.calibration.part(drawn)
        rest = replace(ctx, calibration=ctx.calibration.part(np.setdiff1d(np.arange(count), drawn)))
        return cls(held_out, rest, reference), rest

    def drop(self, model: Model, bound: float) -> Drop:
        """Judge a model on all images, or on the first thousands if these show that it loses more than ``bound``."""
        found: list[Evaluation] = []
        for chunk in self._evaluations(model):
            found.append(chunk)
            drop = self._compare(found)
            if drop.low > bound:
                break
        return drop

    def _compare(self, after: list[Evaluation]) -> Drop:
        before = self.before[: len(after)]
        n = sum(e.n for e in after)
        if not self.labels:
            changed = sum(int((a.predictions != b.predictions).sum()) for a, b in zip(before, after, strict=True))
            low, high = wilson(changed, n, _Z)
            return Drop(n, 100 * changed / n, 100 * low, 100 * high)
        was = np.concatenate([e.correct for e in before if e.correct is not None])
        now = np.concatenate([e.correct for e in after if e.correct is not None])
        lost, gained = int((was & ~now).sum()), int((~was & now).sum())
        both = int((was & now).sum())
        low, high = newcombe_paired(both, gained, lost, n - both - gained - lost, _Z)
        return Drop(n, 100 * (lost - gained) / n, -100 * high, -100 * low)

    def _evaluations(self, model: Model) -> Iterator[Evaluation]:
        with runnable(model) as form:
            for chunk in self.chunks:
                yield evaluate(form, chunk, threads=self.ctx.threads)
