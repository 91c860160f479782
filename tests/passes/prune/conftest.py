"""What the pruning tests share: a context without files, and the check that removal is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from graphopt import Context, Model
from graphopt.analysis.labels import Labels, propagate
from graphopt.passes.prune import Prune  # noqa: F401  (registers the rewrites)
from graphopt.passes.prune.proof import check, masked
from graphopt.passes.prune.surgery import remove
from graphopt.runtime.equivalence import compare_outputs
from graphopt.runtime.feeds import random_feeds
from graphopt.runtime.target import get_target


@dataclass
class FakeBatches:
    """Normal noise with the interface of calibration data."""

    shape: tuple[int, ...]
    count: int = 16
    synthetic: bool = True
    description: str = "normal noise"

    def __len__(self) -> int:
        return self.count

    def part(self, positions: np.ndarray) -> FakeBatches:
        return replace(self, count=len(positions))

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[np.ndarray]:
        total = self.count if limit is None else min(limit, self.count)
        images = np.random.default_rng(7).standard_normal((total, *self.shape)).astype(np.float32)
        for start in range(0, total, batch_size):
            yield images[start : start + batch_size]


@pytest.fixture
def context() -> Callable[..., Context]:
    """A context for a model, with as many fake images as asked for."""

    def make(model: Model, count: int = 16) -> Context:
        shape = tuple(int(d) for d in model.inputs[0].shape[1:])
        return Context(get_target("ort-cpu"), FakeBatches(shape, count), model.copy())  # type: ignore[arg-type]

    return make


@pytest.fixture
def assert_exact() -> Callable[..., tuple[Model, Labels]]:
    """Remove the given part of every family, and compare with the masked original; returns what came out."""

    def make(model: Model, part: float = 0.5, at_least: int = 1, **modes: bool) -> tuple[Model, Labels]:
        labels = propagate(model, **modes)
        assert len(labels.families) >= at_least, [x.reason for x in labels.locked]
        keep = labels.everything()
        rng = np.random.default_rng(3)
        for family in labels.families:
            count = min(int(np.ceil(part * family.groups.size)), family.groups.size - 1)
            keep[rng.permutation(family.groups)[:count]] = False
        feeds = random_feeds(model.to_bytes())
        verdict = check(model, labels, keep, feeds)
        assert verdict.holds, verdict.reason
        if at_least and not keep.all():  # the masks must have an effect, or the comparison proves nothing
            assert not compare_outputs(model.to_bytes(), masked(model, labels, keep).to_bytes(), feeds).equal
        pruned = model.copy()
        remove(pruned, labels, keep)
        return pruned, labels

    return make
