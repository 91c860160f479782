"""Folding with everything checked that holds for every graph: structure, outputs, a second run, the untouched copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from graphopt import Model, PassResult
from graphopt.ir import Snapshot, verify
from graphopt.passes.fold import Fold
from graphopt.pipeline import Registry
from graphopt.runtime.equivalence import compare_outputs
from graphopt.runtime.feeds import random_feeds


@dataclass
class Folded:
    """A folded model, what the pass said, and shorthands that tests read."""

    model: Model
    result: PassResult
    before: bytes
    after: bytes

    @property
    def ops(self) -> list[str]:
        return [n.op for n in self.model.graph.nodes]

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.ops)

    def reason(self, op: str) -> str:
        """Why the one node of this operator was left alone."""
        found = [s.reason for s in self.result.skipped if s.op == op]
        assert len(found) == 1, self.result.skipped
        return found[0]

    def initializer(self, name: str) -> np.ndarray:
        proto = onnx.load_from_string(self.after)
        return next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)


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


def fold_checked(
    source: str | Model, *, run: bool = True, valid: bool = True, rtol: float = 1e-5, **options: int
) -> Folded:
    """Fold, and check what must hold for any graph. ``run=False`` where outputs cannot be compared (random, custom)."""
    original = Model.from_text(source) if isinstance(source, str) else source
    before, snapshot = original.to_bytes(), Snapshot.of(original)
    model = original.copy()
    revision = model.revision
    result = run_simplify(model, **options)
    verify(model, snapshot, "fold")
    after = model.to_bytes()
    assert original.to_bytes() == before, "the model that shares its arrays was changed"
    assert result.changed == (before != after)
    assert result.changed == (model.revision != revision)
    assert len({s.node for s in result.skipped}) == len(result.skipped)
    assert {s.node for s in result.skipped} <= {n.name for g in model.graphs() for n in g.nodes}
    assert all(s.reason for s in result.skipped)
    again = run_simplify(model, **options)
    assert not again.changed
    assert again.skipped == result.skipped
    assert model.to_bytes() == after
    if valid:
        onnx.checker.check_model(onnx.load_from_string(after))
    if run:
        found = compare_outputs(before, after, random_feeds(before, (1, 3)), rtol=rtol)
        assert found.equal, found
    return Folded(model, result, before, after)


@pytest.fixture(scope="session")
def fold() -> Callable[..., Folded]:
    return fold_checked


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
