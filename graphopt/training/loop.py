"""The training itself: steps, evaluations on held-out images, the best state so far."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from graphopt.errors import PassError
from graphopt.progress import Progress
from graphopt.training.executor import Executor
from graphopt.training.images import Augmentation, ImageStore
from graphopt.training.losses import block_error, distillation, scores
from graphopt.training.schedule import Budget, Schedule


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
        return torch.autocast(self.device.type, torch.bfloat16)

    def _hold(self, store: ImageStore) -> _Held:
        found = []
        with torch.no_grad():
            for x in _chunks(store, self.recipe.batch):
                found.append(scores(self.teacher.run(x)[self.names[1]]))
        labels = None if store.labels is None else torch.from_numpy(store.labels).to(self.device)
        return _Held(store, torch.cat(found), labels)

    def step(self) -> float:
        """One step; the loss."""
        recipe = self.recipe
        positions = next(self._order)
        x = self.images.drawn(positions, recipe.augmentation, self.rng)
        compared = recipe.teacher or (recipe.blocks and self.taps)
        self.student.training = True
        with self._precision():
            with torch.no_grad():
                theirs = self.teacher.run(x) if compared else {}
            ours = self.student.run(x)
        predicted = scores(ours[self.names[0]])
        loss = torch.zeros((), device=self.device)
        if recipe.teacher:
            loss = loss + recipe.teacher * distillation(predicted, scores(theirs[self.names[1]]), recipe.temperature)
        if recipe.blocks and self.taps:
            loss = loss + recipe.blocks * block_error([ours[n] for n in self.taps], [theirs[n] for n in self.taps])
        if recipe.labels:
            assert self.labels is not None
            right = self.labels[torch.from_numpy(positions).to(self.device)]
            loss = loss + recipe.labels * F.cross_entropy(predicted, right)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.student.training = False
        return float(loss.detach())

    def evaluate(self) -> tuple[float, float]:
        """(percent right, minus loss) on held-out images: by the labels where they count more than the teacher."""
        recipe, held = self.recipe, self._held
        found = []
        with torch.no_grad():
            for x in _chunks(held.store, recipe.batch):
                found.append(scores(self.student.run(x)[self.names[0]]))
        ours = torch.cat(found)
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
        schedule = Schedule(_after(budget, time.monotonic() - began), self.recipe.warmup, time.monotonic() - began)
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


def _chunks(store: ImageStore, size: int) -> Iterator[torch.Tensor]:
    for start in range(0, len(store), size):
        yield store.plain(start, min(start + size, len(store)))
