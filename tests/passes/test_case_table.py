"""What ``simplify`` does to the micro-models of the comparison with other tools, and what it must leave alone."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import Context, Model
from graphopt.ir import infer_shapes
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.equivalence import compare_outputs, random_feeds
from graphopt.runtime.target import get_target


def load_cases() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "simplify_cases.py"
    spec = importlib.util.spec_from_file_location("simplify_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


TABLE = load_cases()


class NoImages:
    """Calibration for models that are no classifiers: the manager's check then compares on random inputs alone."""

    def batches(self, *args: Any, **kwargs: Any) -> Iterator[np.ndarray]:
        return iter(())


def simplified(case: Any) -> onnx.ModelProto:
    model = Model.from_proto(case.model)
    infer_shapes(model)
    context = Context(get_target("ort-cpu"), NoImages(), model.copy())  # type: ignore[arg-type]
    PassManager(Registry().build(case.passes)).run(model, context)
    return model.to_proto()


@pytest.mark.parametrize("case", TABLE.CASES, ids=lambda c: c.name)
def test_case(case):
    after = simplified(case)
    onnx.checker.check_model(after, full_check=True)
    assert case.holds(after), onnx.printer.to_text(after)
    if case.runs:
        before = case.model.SerializeToString()
        found = compare_outputs(before, after.SerializeToString(), random_feeds(before, (1, 2)), rtol=1e-5)
        assert found.equal, found.reason


@pytest.mark.parametrize("case", TABLE.CASES, ids=lambda c: c.name)
def test_a_case_tells_work_from_no_work(case):
    """What a tool must do does not hold of the model as it is; what it must leave alone does."""
    untouched = case.required or "stays" in case.row
    assert case.holds(case.model) == untouched


def test_names_are_unique():
    names = [c.name for c in TABLE.CASES]
    assert len(set(names)) == len(names)
