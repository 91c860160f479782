"""Folding with everything checked that holds for every graph: structure, outputs, a second run, the untouched copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt import Model, PassResult
from graphopt.passes.fold import Fold
from graphopt.pipeline import Registry


def run_simplify(model: Model, **options: int) -> PassResult:
    """The passes of ``simplify``, repeated until nothing changes: their counts together, the last round's reasons.

    ``options`` are those of ``fold``.
    """
    passes = [Fold(**options) if p.name == "fold" else p for p in Registry().pipeline("simplify").passes]
    metrics: Counter[str] = Counter()
    changed = False
    for _ in range(10):
        results = [step.run(model, None) for step in passes]  # type: ignore[arg-type]
        for result in results:
            metrics.update(result.metrics)
        if not any(r.changed for r in results):
            skipped = {s.node: s for r in reversed(results) for s in r.skipped}
            order = [n.name for g in model.graphs() for n in g.nodes]
            return PassResult(changed, dict(metrics), sorted(skipped.values(), key=lambda s: order.index(s.node)))
        changed = True
    raise AssertionError("the passes do not come to rest")


class Simplify:
    """``simplify`` as if it were one pass, which is what the checks of every pass take."""

    name = "simplify"

    def __init__(self, **options: int) -> None:
        self.options = options

    def run(self, model: Model, ctx: None) -> PassResult:
        return run_simplify(model, **self.options)


@pytest.fixture(scope="session")
def fold(rewritten: Callable[..., Any]) -> Callable[..., Any]:
    """Simplify a model, with everything checked that ``rewritten`` checks; options are those of ``fold``."""

    def run(source: str | Model, *, run: bool = True, valid: bool = True, rtol: float = 1e-5, **options: int) -> Any:
        return rewritten(Simplify(**options), source, run=run, valid=valid, rtol=rtol)

    return run


def random_values(count: int, seed: int, low: float = -1.0, high: float = 1.0) -> str:
    values = np.random.default_rng(seed).uniform(low, high, count).astype(np.float32)
    return ", ".join(repr(float(v)) for v in values)


@pytest.fixture(scope="session")
def tensor() -> Callable[..., str]:
    """Text of an initializer with random values: ``tensor("w", 4, 3, 1, 1)``."""

    def text(name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        dims = ",".join(map(str, shape))
        count = int(np.prod(shape))
        return f"float[{dims}] {name} = {{{random_values(count, sum(map(ord, name)), low, high)}}}"

    return text


@pytest.fixture(scope="session")
def norm(tensor: Callable[..., str]) -> Callable[..., str]:
    """Text of the four initializers of a BatchNormalization: scale s, shift b, mean m, variance v."""

    def text(channels: int, suffix: str = "") -> str:
        return ", ".join(
            (
                tensor(f"s{suffix}", channels, low=0.5, high=1.5),
                tensor(f"b{suffix}", channels),
                tensor(f"m{suffix}", channels),
                tensor(f"v{suffix}", channels, low=0.5, high=2.0),
            )
        )

    return text


@pytest.fixture(scope="session")
def simplify() -> Callable[..., PassResult]:
    return run_simplify
