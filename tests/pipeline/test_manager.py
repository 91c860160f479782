"""The pass manager: what it records, what it refuses to believe, whom it blames."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt import Kind, Model, Pass, PassResult, Skipped, UsageError, option
from graphopt.errors import ContractError, PassError
from graphopt.ir import load
from graphopt.pipeline import Context, Pipeline
from graphopt.pipeline.hooks import DumpIR, Reproducer
from graphopt.pipeline.manager import PassManager
from graphopt.rewrite import RewritePass, Rule, Workbench
from graphopt.runtime.target import get_target

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,4,4] x) => (float[N,3,4,4] y)
<float[3,3,1,1] w = {1,2,3,4,5,6,7,8,9}>
{
    c = Conv(x, w)
    r = Relu(c)
    s = Sigmoid(r)
    y = Neg(s)
}
"""


class Images:
    """The part of a calibration source that the manager reads."""

    synthetic = True

    def __len__(self) -> int:
        return 3

    def batches(self, batch_size: int, limit: int | None = None):
        yield np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)


def context(model: Model) -> Context:
    return Context(get_target("ort-cpu"), Images(), model)


def node(model: Model, op: str):
    return next(n for n in model.graph.nodes if n.op == op)


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the weights: exact only by 1."""

    name = "scale"
    kind = Kind.EXACT
    by: float = option(1.0, "factor")

    def run(self, model: Model, ctx: Context) -> PassResult:
        with model.edit():
            conv = node(model, "Conv")
            conv.inputs[1].values = conv.inputs[1].values * np.float32(self.by)
        return PassResult(True, {"by": self.by}, [Skipped("r", "Relu", "not a convolution")])


@dataclass(frozen=True)
class LossyScale(Scale):
    """The same without the promise."""

    name = "lossy-scale"
    kind = Kind.LOSSY


@dataclass(frozen=True)
class Rename(Pass):
    """Give a node another name: an exact change."""

    name = "rename"
    kind = Kind.EXACT

    def run(self, model: Model, ctx: Context) -> PassResult:
        with model.edit():
            node(model, "Relu").name = model.fresh_name("renamed")
        return PassResult(True)


def misbehaving(what: str) -> Pass:
    @dataclass(frozen=True)
    class Misbehaving(Pass):
        """Break one rule."""

        name = what
        kind = Kind.LOSSY

        def run(self, model: Model, ctx: Context) -> PassResult:
            graph = model.graph
            if what == "crash":
                raise ZeroDivisionError("oops")
            if what == "refuse":
                raise PassError("nothing to do here", "try another model")
            if what == "nothing":
                return None  # type: ignore[return-value]
            if what == "silent-change":
                node(model, "Relu").name = "other"
                return PassResult(False)
            if what == "dangling":
                graph.nodes.remove(node(model, "Relu"))
            if what == "duplicate-name":
                node(model, "Relu").name = node(model, "Conv").name
            if what == "order":
                graph.nodes.reverse()
            if what == "double-write":
                node(model, "Relu").outputs = [node(model, "Sigmoid").outputs[0]]
            if what == "cycle":
                node(model, "Relu").inputs = [node(model, "Neg").outputs[0]]
            if what == "interface":
                graph.outputs[0].name = "renamed"
            if what == "output-shape":
                graph.outputs[0].shape = ["N", 3, 4, 5]
            if what == "forgets-rank":
                node(model, "Relu").outputs[0].shape = None
            if what == "forgets-dtype":
                node(model, "Relu").outputs[0].dtype = None
            model.touch()
            return PassResult(True)

    return Misbehaving()


def test_records_tell_what_each_pass_did() -> None:
    model = Model.from_text(TEXT)
    records = PassManager([Scale(), LossyScale(by=0.5), Rename()]).run(model, context(model))
    assert [r.spec for r in records] == ["scale", "lossy-scale{by=0.5}", "rename"]
    assert [r.kind for r in records] == ["exact", "lossy", "exact"]
    assert records[0].metrics == {"by": 1.0}
    assert records[0].skipped == [Skipped("r", "Relu", "not a convolution")]
    assert records[0].delta == {"nodes": 0, "initializers": 0, "weight_bytes": 0}
    assert records[0].exactness is not None and records[0].exactness["checked"]
    assert records[1].exactness is None
    assert records[2].exactness is not None and records[2].exactness["max_relative_error"] == 0


def test_an_inexact_exact_pass_is_caught_and_named() -> None:
    model = Model.from_text(TEXT)
    with pytest.raises(ContractError, match=r"'scale\{by=1.5\}' changed the outputs, first at node 'Conv_0'"):
        PassManager([Rename(), Scale(), Scale(by=1.5), Rename()]).run(model, context(model))


def test_a_change_below_the_tolerance_passes() -> None:
    model = Model.from_text(TEXT)
    records = PassManager([Scale(by=1.000001)]).run(model, context(model))
    assert 0 < records[0].exactness["max_relative_error"] < 1e-4


def test_a_lossy_change_between_exact_passes_is_not_held_against_them() -> None:
    model = Model.from_text(TEXT)
    PassManager([Rename(), LossyScale(by=3.0), Rename()]).run(model, context(model))


def test_random_models_are_not_compared_and_that_is_said() -> None:
    text = TEXT.replace("c = Conv(x, w)", "n = RandomNormalLike(x)\n    z = Add(x, n)\n    c = Conv(z, w)")
    model = Model.from_text(text)
    records = PassManager([Rename()]).run(model, context(model))
    assert records[0].exactness["checked"] is False
    assert "random" in records[0].exactness["reason"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "returned NoneType, not a PassResult"),
        ("silent-change", "says that it did not"),
        ("dangling", "which nothing writes"),
        ("duplicate-name", "two nodes are named"),
        ("order", "before it is written"),
        ("double-write", "is written by"),
        ("cycle", "has a cycle"),
        ("interface", "outputs changed"),
        ("output-shape", "outputs changed"),
        ("forgets-rank", "rank of 'r' was known and is lost"),
        ("forgets-dtype", "dtype of 'r' was known and is lost"),
    ],
)
def test_broken_promises_are_caught(what: str, message: str) -> None:
    model = Model.from_text(TEXT)
    with pytest.raises(ContractError, match=message) as caught:
        PassManager([misbehaving(what)]).run(model, context(model))
    assert what in caught.value.message


def test_a_crash_becomes_an_error_with_a_reproducer(tmp_path: Path) -> None:
    model = Model.from_text(TEXT)
    hook = Reproducer(tmp_path / "crash", ["--seed", "3"], lambda e: f"{type(e).__name__}: {e}")
    with pytest.raises(PassError, match="the pass 'crash' failed: ZeroDivisionError: oops") as caught:
        PassManager([LossyScale(by=2.0), misbehaving("crash")], [hook]).run(model, context(model))
    assert str(tmp_path / "crash") in caught.value.hint
    saved = load(tmp_path / "crash" / "input.onnx")
    assert node(saved, "Conv").inputs[1].values.reshape(-1)[0] == 2.0  # the failing pass's input, not the run's
    command = (tmp_path / "crash" / "command.sh").read_text()
    assert command == f"graphopt run {tmp_path}/crash/input.onnx --passes crash --seed 3\n"
    assert "ZeroDivisionError" in (tmp_path / "crash" / "traceback.txt").read_text()


def test_an_error_on_purpose_leaves_no_reproducer(tmp_path: Path) -> None:
    model = Model.from_text(TEXT)
    hook = Reproducer(tmp_path / "crash", [], str)
    with pytest.raises(PassError, match="nothing to do here"):
        PassManager([misbehaving("refuse")], [hook]).run(model, context(model))
    assert not (tmp_path / "crash").exists()


def test_records_up_to_a_failure_are_kept() -> None:
    model = Model.from_text(TEXT)
    manager = PassManager([Scale(), misbehaving("refuse")])
    with pytest.raises(PassError):
        manager.run(model, context(model))
    assert [r.spec for r in manager.records] == ["scale"]


def test_dump_ir_saves_what_changed(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Idle(Pass):
        """Do nothing."""

        name = "idle"
        kind = Kind.EXACT

        def run(self, model: Model, ctx: Context) -> PassResult:
            return PassResult(False)

    model = Model.from_text(TEXT)
    PassManager([Idle(), LossyScale(by=2.0)], [DumpIR(tmp_path / "ir")]).run(model, context(model))
    assert [p.name for p in sorted((tmp_path / "ir").iterdir())] == ["02-lossy-scale.onnx"]


def test_verify_each_catches_what_only_the_checker_sees() -> None:
    @dataclass(frozen=True)
    class BadAttribute(Pass):
        """Give a node an attribute that its operator does not have."""

        name = "bad-attribute"
        kind = Kind.LOSSY

        def run(self, model: Model, ctx: Context) -> PassResult:
            with model.edit():
                node(model, "Relu").attrs["nonsense"] = 1
            return PassResult(True)

    PassManager([BadAttribute()]).run(Model.from_text(TEXT), context(Model.from_text(TEXT)))
    with pytest.raises(ContractError, match="'bad-attribute' broke the model"):
        PassManager([BadAttribute()], verify_each=True).run(Model.from_text(TEXT), context(Model.from_text(TEXT)))


def test_options_of_a_pass_are_checked() -> None:
    with pytest.raises(UsageError, match="'by' of 'scale' cannot be wide"):
        Scale(by="wide")


def rewriting(given: str, behind_the_bench: bool) -> RewritePass:
    def rename(bench: Workbench, node: gs.Node) -> None:
        node.name = "other"

    @dataclass(frozen=True)
    class Rewriting(RewritePass):
        """A rule that the mechanism cannot see at work, or one that does nothing."""

        name = given
        kind = Kind.EXACT

        def rules(self, model: Model, ctx: Context) -> tuple[Rule, ...]:
            return (Rule("renamed", ("Relu",), rename if behind_the_bench else lambda bench, node: None),)

    return Rewriting()


def test_a_rule_that_changes_a_node_without_saying_so_is_found_among_others() -> None:
    model = Model.from_text(TEXT)
    passes = (rewriting("first", False), rewriting("guilty", True), rewriting("last", False))
    with pytest.raises(ContractError, match="'guilty' changed the model and says that it did not"):
        PassManager([Pipeline("group", passes)]).run(model, context(model))


def test_a_lossy_rewriting_pass_is_not_taken_at_its_word() -> None:
    class Lossy(type(rewriting("guilty", True))):  # type: ignore[misc]
        kind = Kind.LOSSY

    model = Model.from_text(TEXT)
    with pytest.raises(ContractError, match="'guilty' changed the model and says that it did not"):
        PassManager([Lossy(), rewriting("last", False)]).run(model, context(model))


def test_a_rewriting_pass_with_a_run_of_its_own_is_not_taken_at_its_word() -> None:
    class Own(type(rewriting("own", False))):  # type: ignore[misc]
        def run(self, model: Model, ctx: Context) -> PassResult:
            return PassResult(False)

    assert rewriting("counted", False).counts_changes
    assert not Own.counts_changes


def breaking(given: str, how: str) -> RewritePass:
    def work(bench: Workbench, node: gs.Node) -> None:
        if how == "counts":
            bench.set_input(node, 0, node.inputs[0])
        elif how == "dangles":
            bench.set_input(node, 0, gs.Variable("nobody", np.float32, [1]))
        else:
            raise KeyError(how)

    @dataclass(frozen=True)
    class Breaking(RewritePass):
        """Change something once in a run, rightly or wrongly."""

        name = given
        kind = Kind.EXACT

        def rules(self, model: Model, ctx: Context) -> tuple[Rule, ...]:
            done: list[gs.Node] = []

            def once(bench: Workbench, node: gs.Node) -> None:
                if not done:
                    done.append(node)
                    work(bench, node)

            return (Rule("changed", ("Sigmoid",), once),)

    return Breaking()


@pytest.mark.parametrize("after", ["counts", "crashes", "none"])
def test_who_broke_the_model_among_passes_that_are_verified_together(after: str, tmp_path: Path) -> None:
    model = Model.from_text(TEXT)
    passes = [breaking("first", "counts"), breaking("guilty", "dangles")]
    passes += [] if after == "none" else [breaking("last", after)]
    manager = PassManager(passes, [Reproducer(tmp_path / "crash", ["--no-eval"], str)])
    with pytest.raises(ContractError, match=r"the pass 'guilty' broke the model: .*'nobody'"):
        manager.run(model, context(model))
    assert "--passes guilty" in (tmp_path / "crash" / "command.sh").read_text()
    assert load(tmp_path / "crash" / "input.onnx").fingerprint()


def test_a_pass_that_crashes_after_sound_ones_is_the_one_named() -> None:
    model = Model.from_text(TEXT)
    with pytest.raises(PassError, match="the pass 'last' failed: KeyError"):
        PassManager([breaking("first", "counts"), breaking("last", "crashes")]).run(model, context(model))


def test_a_dump_of_a_broken_model_is_never_written(tmp_path: Path) -> None:
    model = Model.from_text(TEXT)
    with pytest.raises(ContractError, match="the pass 'guilty' broke the model"):
        PassManager([breaking("guilty", "dangles")], [DumpIR(tmp_path)]).run(model, context(model))
    assert not list(tmp_path.iterdir())


def test_a_model_that_passes_have_rewritten_is_not_kept() -> None:
    model = Model.from_text(TEXT)
    PassManager([breaking("first", "counts")]).run(model, context(model))
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None
