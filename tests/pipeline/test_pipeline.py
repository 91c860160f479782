"""Pipelines: passes under one name, repeated until nothing changes."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import pytest

from graphopt import Kind, Model, Pass, PassError, PassResult, Skipped, UsageError
from graphopt.errors import ContractError
from graphopt.pipeline import Context, Pipeline, Registry, format_pipeline
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.target import get_target

CHAIN = (
    '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y) { a = Neg(x) b = Neg(a) y = Relu(b) }'
)


class Images:
    synthetic = True

    def batches(self, batch_size: int, limit: int | None = None):
        return iter(())


class Ear:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def log(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def context(model: Model) -> Context:
    return Context(get_target("ort-cpu"), Images(), model, progress=Ear())  # type: ignore[arg-type]


def relu(model: Model):
    return next(n for n in model.graph.nodes if n.op in ("Relu", "Abs"))


@dataclass(frozen=True)
class Mark(Pass):
    """Append a letter to a node's name while it is short: each run prepares the next."""

    name = "mark"
    kind = Kind.EXACT

    def run(self, model: Model, ctx: Context) -> PassResult:
        node = relu(model)
        if len(node.name) >= 9:
            return PassResult(False, {}, [Skipped(node.name, "Relu", "long enough")])
        with model.edit():
            node.name += "a"
        return PassResult(True, {"added": 1}, [Skipped(node.name, "Relu", "may grow")])


@dataclass(frozen=True)
class Toggle(Pass):
    """Change something every time."""

    name = "toggle"
    kind = Kind.EXACT

    def run(self, model: Model, ctx: Context) -> PassResult:
        with model.edit():
            relu(model).name = "q" if relu(model).name == "p" else "p"
        return PassResult(True)


@dataclass(frozen=True)
class Idle(Pass):
    """Nothing."""

    name = "idle"
    kind = Kind.EXACT

    def run(self, model: Model, ctx: Context) -> PassResult:
        return PassResult(False)


@dataclass(frozen=True)
class Wrong(Pass):
    """Replace Relu by Abs once."""

    name = "wrong"
    kind = Kind.EXACT

    def run(self, model: Model, ctx: Context) -> PassResult:
        node = model.graph.nodes[-1]
        if node.op != "Relu" or len(node.name) < 8:
            return PassResult(False)
        with model.edit():
            node.op = "Abs"
        return PassResult(True)


def test_it_repeats_until_nothing_changes() -> None:
    model = Model.from_text(CHAIN)
    manager = PassManager([Pipeline("both", (Idle(), Mark()))])
    records = manager.run(model, context(Model.from_text(CHAIN)))
    assert relu(model).name == "Relu_0aaa"
    # One record of each pass, and one more for each later change; what is idle again is not repeated.
    assert [r.spec for r in records] == ["idle", "mark", "mark", "mark"]
    assert [r.changed for r in records] == [False, True, True, True]


def test_reasons_are_those_of_the_last_run() -> None:
    model = Model.from_text(CHAIN)
    records = PassManager([Pipeline("one", (Mark(),))]).run(model, context(Model.from_text(CHAIN)))
    assert [s.reason for s in records[0].skipped] == ["long enough"]


def test_passes_that_undo_each_other_are_stopped_and_named() -> None:
    model, ctx = Model.from_text(CHAIN), context(Model.from_text(CHAIN))
    records = PassManager([Pipeline("endless", (Toggle(),))]).run(model, ctx)
    assert len(records) == 10 and "'endless' still changed the model" in ctx.progress.warnings[0]  # type: ignore[attr-defined]


def test_a_wrong_pass_in_a_later_round_is_named() -> None:
    model = Model.from_text(CHAIN)
    with pytest.raises(ContractError, match="the exact pass 'wrong' changed the outputs"):
        PassManager([Pipeline("three", (Wrong(), Mark()))]).run(model, context(Model.from_text(CHAIN)))


def test_simplify_is_found_shown_and_satisfies_its_passes() -> None:
    registry = Registry()
    assert "simplify" in registry.pipelines() and "simplify" not in registry.names()
    assert format_pipeline(registry.build("simplify,quantize")) == "simplify,quantize"
    assert format_pipeline(registry.build("quantize")) == "simplify,quantize"
    assert registry.pipeline("simplify").passes[0].name == "fold"
    assert all(p.kind is Kind.EXACT for p in registry.pipeline("simplify").passes)
    # What it holds need not run again before a pass that requires it.
    assert format_pipeline(registry.build("simplify,gemm")) == "simplify,gemm"


def test_options_belong_to_passes() -> None:
    with pytest.raises(UsageError, match="takes no options\n  hint: give them to its passes, written out: fold, "):
        Registry().build("simplify{budget=1}")


def test_the_nearest_name_may_be_a_pipeline() -> None:
    with pytest.raises(UsageError, match="did you mean 'simplify'"):
        Registry().build("simplfy")


def test_a_pipeline_that_cannot_be_imported_is_a_pass_error() -> None:
    registry = Registry()
    point = importlib.metadata.EntryPoint("broken", "no_such_module:THING", "graphopt.pipelines")
    registry._pipelines["broken"] = point
    with pytest.raises(PassError, match="the pipeline 'broken'"):
        registry.build("broken")
