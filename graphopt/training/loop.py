"""The training itself: steps, evaluations on held-out images, the best state so far."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from graphopt.errors import PassError
from graphopt.progress import Progress
from graphopt.training.executor import Executor
from graphopt.training.images import Augmentation, ImageStore
from graphopt.training.losses import block_error, distillation, scores
from graphopt.training.schedule import Budget, Schedule

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Recipe:
    """Weights of the parts of the loss, and how to make it smaller."""

    teacher: float = 1.0
    blocks: float = 0.0
    labels: float = 0.0
    temperature: float = 2.0
    optimizer: str = "adamw"
    rate: float = 1e-3
    weight_decay: float = 1e-4
    batch: int = 128
    warmup: int = 100
    patience: int = 0
    bfloat16: bool = False
    mirror: bool = False  # the teacher's scores are the means of those of an image and of its mirror image
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass
class Progressed:
    """What came of it. ``scores`` are (agreement with the teacher, top-1 or None) on held-out images, in percent."""

    steps: int = 0
    planned: int | tuple[int, ...] = 0  # as the steps of a Budget
    best_step: int = 0
    before: float = 0.0
    after: float = 0.0
    loss: float = float("nan")
    seconds: float = 0.0
    ended: str = "budget"
    samples: int = 0


@dataclass(frozen=True)
class _Held:
    """Held-out images with what is known of them."""

    store: ImageStore
    teacher: torch.Tensor
    labels: torch.Tensor | None


class Training:
    """Trains ``student`` on ``images``, with ``teacher`` (None where only labels count).

    ``names`` are the tensors with the logits of the student and of the teacher, ``taps`` what both are compared at.
    Each of ``workers`` threads takes an equal part of every batch, on one core: they wait for each other once a step,
    where threads inside of operators do so a thousand times, which takes many times as long once other programs run.
    """

    def __init__(
        self,
        student: Executor,
        teacher: Executor,
        names: tuple[str, str],
        taps: list[str],
        images: ImageStore,
        held_out: ImageStore,
        recipe: Recipe,
        rng: np.random.Generator,
        progress: Progress,
        workers: int = 1,
    ) -> None:
        if student.state is None or not student.state.weights:
            raise PassError("nothing to train: the model has no float weights")
        self.student, self.teacher, self.names, self.taps = student, teacher, names, taps
        self.state, self.images, self.recipe = student.state, images, recipe
        self.rng, self.progress = rng, progress
        self.device = student.device
        self.labels = None if images.labels is None else torch.from_numpy(images.labels).to(self.device)
        if recipe.labels and self.labels is None:
            raise PassError("the loss counts labels, and the training images have none", "give images in class folders")
        self._pool = None if workers == 1 else ThreadPoolExecutor(workers, initializer=_alone)
        self._workers = workers
        self._held = self._hold(held_out)
        self._optimizer = self._make_optimizer()
        self._order: Iterator[np.ndarray] = self._positions()

    # --- parts --------------------------------------------------------------------------------------------------

    def _make_optimizer(self) -> torch.optim.Optimizer:
        wide = [p for p in self.state.weights.values() if p.dim() > 1]
        narrow = [p for p in self.state.weights.values() if p.dim() <= 1]
        groups = [
            {"params": wide, "weight_decay": self.recipe.weight_decay},
            {"params": [*narrow, *self.state.scales.values()], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        if self.recipe.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.recipe.rate, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, lr=self.recipe.rate)

    def _positions(self) -> Iterator[np.ndarray]:
        size = min(self.recipe.batch, len(self.images))
        while True:
            order = self.rng.permutation(len(self.images))
            for start in range(0, len(order) - size + 1, size):
                yield order[start : start + size]

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if not self.recipe.bfloat16:
            return contextlib.nullcontext()
        # Every weight is read once a step, and the cache is shared by threads.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def _each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The function of every item, by as many threads as there are, in the order of items."""
        return list(map(function, items) if self._pool is None else self._pool.map(function, items))

    def _answers(self, run: Callable[[torch.Tensor], torch.Tensor], store: ImageStore) -> torch.Tensor:
        """Scores of all images of a store, without gradients."""

        def answer(start: int) -> torch.Tensor:
            with torch.no_grad():
                return scores(run(store.plain(start, min(start + size, len(store)))))

        size = self.recipe.batch
        return torch.cat(self._each(answer, range(0, len(store), size)))

    def _hold(self, store: ImageStore) -> _Held:
        labels = None if store.labels is None else torch.from_numpy(store.labels).to(self.device)
        return _Held(store, self._answers(lambda x: self._taught(x)[self.names[1]], store), labels)

    def _taught(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the teacher says of images."""
        name, theirs = self.names[1], self.teacher.run(x)
        if self.recipe.mirror:
            mirrored = self.teacher.run(x.flip(self.images.width_axis))[name]
            theirs = theirs | {name: (theirs[name] + mirrored) / 2}
        return theirs

    def step(self) -> float:
        """One step; the loss."""
        positions = next(self._order)
        x = self.images.drawn(positions, self.recipe.augmentation, self.rng)
        right = None if self.labels is None else self.labels[torch.from_numpy(positions).to(self.device)]
        parts = x.chunk(self._workers)
        labels: Sequence[torch.Tensor | None] = [None] * len(parts) if right is None else right.chunk(self._workers)
        self.student.training = True
        found = self._each(lambda part: self._gradients(part[0], part[1], len(x)), zip(parts, labels, strict=True))
        self.student.training = False
        for parameter, *gradients in zip(self.state.parameters(), *(g for _, g in found), strict=True):
            given = [g for g in gradients if g is not None]
            parameter.grad = torch.stack(given).sum(0) if len(given) > 1 else given[0] if given else None
        self._optimizer.step()
        return sum(loss for loss, _ in found)

    def _gradients(
        self, x: torch.Tensor, right: torch.Tensor | None, batch: int
    ) -> tuple[float, tuple[torch.Tensor | None, ...]]:
        """What a part of a batch adds to the loss of the whole, and to its gradients, in the order of parameters."""
        recipe = self.recipe
        compared = recipe.teacher or (recipe.blocks and self.taps)
        with self._precision():
            with torch.no_grad():
                theirs = self._taught(x) if compared else {}
            ours = self.student.run(x)
        predicted = scores(ours[self.names[0]])
        loss = torch.zeros((), device=self.device)
        if recipe.teacher:
            loss = loss + recipe.teacher * distillation(predicted, scores(theirs[self.names[1]]), recipe.temperature)
        if recipe.blocks and self.taps:
            loss = loss + recipe.blocks * block_error([ours[n] for n in self.taps], [theirs[n] for n in self.taps])
        if recipe.labels:
            assert right is not None
            loss = loss + recipe.labels * F.cross_entropy(predicted, right)
        loss = loss * (len(x) / batch)
        return float(loss.detach()), torch.autograd.grad(loss, self.state.parameters(), allow_unused=True)

    def evaluate(self) -> tuple[float, float]:
        """(percent right, minus loss) on held-out images: by the labels where they count more than the teacher."""
        held = self._held
        ours = self._answers(lambda x: self.student.run(x)[self.names[0]], held.store)
        if self.by_labels:
            assert held.labels is not None
            return 100 * float((ours.argmax(1) == held.labels).float().mean()), -float(
                F.cross_entropy(ours, held.labels)
            )
        same = (ours.argmax(1) == held.teacher.argmax(1)).float().mean()
        return 100 * float(same), -float(distillation(ours, held.teacher, 1.0))

    @property
    def by_labels(self) -> bool:
        return self.recipe.labels > self.recipe.teacher and self._held.labels is not None

    # --- the loop -----------------------------------------------------------------------------------------------

    def fit(self, budget: Budget) -> Progressed:
        """Train within the budget and leave the best state. An interrupt ends it, and what was best so far stays."""
        began = time.monotonic()
        self._result = result = Progressed(ended="budget")
        best = self.evaluate()
        took = time.monotonic() - began
        schedule = Schedule(_after(budget, took), self.recipe.warmup, took)
        result.before = result.after = best[0]
        saved = self.state.snapshot()
        failures = 0
        total = budget.stop or (schedule.planned if budget.steps else None)
        try:
            for step in self.progress.track(schedule, self._describe, total):
                for group in self._optimizer.param_groups:
                    group["lr"] = self.recipe.rate * step.rate
                result.loss = self.step() if result.steps == 0 else 0.9 * result.loss + 0.1 * self.step()
                result.steps = step.number + 1
                result.samples += min(self.recipe.batch, len(self.images))
                if not np.isfinite(result.loss):
                    result.ended = "diverged"
                    break
                if not step.evaluate:
                    continue
                now = self.evaluate()
                self.progress.log(
                    f"step {result.steps} of {schedule.planned}: {self._describe()}, held out {now[0]:.2f} %"
                )
                failures += 1
                if now > best:
                    best, saved, failures = now, self.state.snapshot(), 0
                    result.after, result.best_step = now[0], result.steps
                if self.recipe.patience and failures >= self.recipe.patience:
                    result.ended = "no better for a while"
                    break
            else:
                result.ended = "time" if schedule.out_of_time else "budget"
        except KeyboardInterrupt:
            result.ended = "interrupted"
        finally:
            if self._pool is not None:
                self._pool.shutdown()
        self.state.restore(saved)
        result.planned = schedule.repeating
        result.seconds = time.monotonic() - began
        return result

    def _describe(self) -> str:
        result = self._result
        what = "top-1" if self.by_labels else "agreement"
        return f"loss {result.loss:.4f}, {what} {result.after:.2f} %"


def _after(budget: Budget, seconds: float) -> Budget:
    """What is left of a budget after so many seconds."""
    return budget if budget.minutes is None else Budget(max(budget.minutes - seconds / 60, 1e-6))


def _alone() -> None:
    torch.set_num_threads(1)
