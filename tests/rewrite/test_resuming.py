"""A pass that runs again looks only where something has changed, and finds what it would have found everywhere."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import pytest
from graphs import models
from hypothesis import HealthCheck, given, settings

from graphopt import Context, Kind, Model
from graphopt.passes.eliminate import OPTIONAL_OUTPUTS, Eliminate
from graphopt.pipeline import Registry
from graphopt.rewrite import RewritePass, Rule
from graphopt.rewrite.bypass import bypass
from graphopt.runtime.target import get_target

CHAIN = """<ir_version: 8, opset_import: ["" : 17]> net (float[N,4] x) => (float[N,4] y)
    { a = Exp(x) b = Neg(a) c = Identity(b) d = Abs(c) e = Exp(d) f = Neg(e) g = Abs(f) h = Exp(g) i = Neg(h)
      j = Abs(i) k = Exp(j) l = Neg(k) m = Abs(l) n = Exp(m) o = Neg(n) p = Abs(o) q = Exp(p) y = Abs(q) }"""
SEEN: list[str] = []


@dataclass(frozen=True)
class Looking(RewritePass):
    """Look at every operator of a kind, and complain of each."""

    name = "looking"
    kind = Kind.EXACT
    resumes = True

    def rules(self, model, ctx):
        def look(bench, node):
            SEEN.append(node.outputs[0].name)
            return "seen"

        return (Rule("seen", ("Neg",), look, reach=1),)


@dataclass(frozen=True)
class LookingAtAll(Looking):
    resumes = False


@dataclass(frozen=True)
class Bypassing(RewritePass):
    """Remove Identities."""

    name = "bypassing"
    kind = Kind.EXACT

    def rules(self, model, ctx):
        return (Rule("gone", ("Identity",), bypass),)


def context(model: Model) -> Context:
    return Context(get_target("ort-cpu"), None, model.copy())


@pytest.mark.parametrize(("kind", "again", "after"), [(Looking, [], ["b", "f"]), (LookingAtAll, None, None)])
def test_only_what_has_changed_is_looked_at_again(kind, again, after):
    model = Model.from_text(CHAIN)
    ctx, step = context(model), kind()
    every = ["b", "f", "i", "l", "o"]

    def run():
        SEEN.clear()
        reasons = [s.node for s in step.run(model, ctx).skipped]
        assert len(reasons) == 5  # those of nodes that were not looked at again as well
        return list(SEEN)

    assert run() == every
    assert run() == (every if again is None else again)
    assert Bypassing().run(model, ctx).changed
    assert run() == (every if after is None else after)
    assert run() == (every if again is None else again)


def test_what_one_pass_knows_is_not_what_another_knows():
    model = Model.from_text(CHAIN)
    ctx = context(model)
    first, second = Looking(), Looking()
    for step in (first, second):
        SEEN.clear()
        step.run(model, ctx)
        assert len(SEEN) == 5
    SEEN.clear()
    first.run(model, context(model))  # rules may depend on it
    assert len(SEEN) == 5


def test_a_change_behind_the_workbench_ends_what_is_known():
    model = Model.from_text(CHAIN)
    ctx, step = context(model), Looking()
    step.run(model, ctx)
    with model.edit() as graph:
        graph.nodes[0].op = "Sin"
    SEEN.clear()
    step.run(model, ctx)
    assert len(SEEN) == 5


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(models())
def test_simplify_gives_the_same_without(model):
    def run(resumes: bool):
        twin = model.copy()
        ctx, (pipeline,) = context(twin), Registry().build("simplify")
        found = []
        with pytest.MonkeyPatch.context() as patch:
            if not resumes:
                for step in pipeline.passes:
                    patch.setattr(type(step), "resumes", False, raising=False)
            for _ in range(3):
                found += [(r.changed, r.metrics, r.skipped) for r in (s.run(twin, ctx) for s in pipeline.passes)]
        return twin.to_bytes(), found

    assert run(True) == run(False)


def test_operators_with_outputs_that_may_be_left_out():
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    found = {
        s.name
        for s in onnx.defs.get_all_schemas_with_history()
        if s.domain == "" and any(p.option == optional for p in s.outputs)
    }
    assert found == set(OPTIONAL_OUTPUTS) and Eliminate.resumes
