"""Run one exact pass on a small graph, with everything checked that holds for every graph and every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from graphopt import Model, Pass, PassResult
from graphopt.ir import Snapshot, verify
from graphopt.runtime.equivalence import compare_outputs
from graphopt.runtime.feeds import random_feeds


@dataclass
class Rewritten:
    """A model after a pass, what the pass said, and shorthands that tests read."""

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

    @property
    def reasons(self) -> dict[str, str]:
        return {s.node: s.reason for s in self.result.skipped}

    def node(self, op: str):
        """The one node of an operator."""
        (found,) = [n for n in self.model.graph.nodes if n.op == op]
        return found

    def initializer(self, name: str) -> np.ndarray:
        proto = onnx.load_from_string(self.after)
        return next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)


def run_pass(step: Pass, source: str | Model, *, run: bool = True, valid: bool = True, rtol: float = 1e-5) -> Rewritten:
    """Run a pass twice; check structure, outputs, the second run and the copy that shares its weights.

    ``run=False`` where outputs cannot be compared (random or custom operators), ``valid=False`` where onnx's checker
    does not know an operator.
    """
    original = Model.from_text(source) if isinstance(source, str) else source
    before, snapshot = original.to_bytes(), Snapshot.of(original)
    model = original.copy()
    revision = model.revision
    result = step.run(model, None)  # type: ignore[arg-type]
    verify(model, snapshot, step.name)
    after = model.to_bytes()
    assert original.to_bytes() == before, "the model that shares its arrays was changed"
    assert result.changed == (before != after)
    assert result.changed == (model.revision != revision)
    assert len({s.node for s in result.skipped}) == len(result.skipped)
    assert {s.node for s in result.skipped} <= {n.name for g in model.graphs() for n in g.nodes}
    assert all(s.reason for s in result.skipped)
    again = step.run(model, None)  # type: ignore[arg-type]
    assert not again.changed and again.skipped == result.skipped and model.to_bytes() == after
    if valid:
        onnx.checker.check_model(onnx.load_from_string(after), full_check=True)
    if run:
        found = compare_outputs(before, after, random_feeds(before, (1, 3)), rtol=rtol)
        assert found.equal, found
    return Rewritten(model, result, before, after)


@pytest.fixture(scope="session")
def rewritten() -> Callable[..., Rewritten]:
    return run_pass


def network(
    body: str, x: str = "float[N,4] x", y: str = "float[N,4] y", weights: str = "", opset: int = 17, ir: int = 8
) -> str:
    """A model in ONNX text format."""
    given = f"<{weights}>" if weights else ""
    return f'<ir_version: {ir}, opset_import: ["" : {opset}]>\nnet ({x}) => ({y}) {given} {{ {body} }}'


@pytest.fixture(scope="session")
def net() -> Callable[..., str]:
    return network
