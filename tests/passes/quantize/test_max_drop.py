"""Sensitivity of layers, and the bound on the drop: who is restored, when the search ends, what is reported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from graphopt import Context, Model, PassError
from graphopt.data.arrays import ArrayDataset
from graphopt.data.loader import Batches
from graphopt.data.model_io import image_input
from graphopt.data.preprocess import Preprocess
from graphopt.passes.quantize import Quantize
from graphopt.passes.quantize.assemble import Assembler, Recipe
from graphopt.passes.quantize.calibrate import calibrate
from graphopt.passes.quantize.lowering import lower
from graphopt.passes.quantize.placement import decide
from graphopt.passes.quantize.sensitivity import decibels
from graphopt.runtime.session import open_session, run_session

BODY = (
    "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) d = Conv<pads=[1,1,1,1]>(r, v) s = Relu(d) "
    "g = GlobalAveragePool(s) f = Flatten(g) y = Gemm<transB=1>(f, m, k)"
)
SHAPES = {"w": (1, 16, 3, 3, 3), "b": (2, 16), "v": (3, 16, 16, 3, 3), "m": (4, 6, 16), "k": (5, 6)}


@pytest.fixture
def fragile(graph) -> Model:
    """A network whose second layer has weights that one scale does not serve: a few that are very large."""
    model = Model.from_text(graph(BODY, "[N,3,8,8]", "[N,6]", **SHAPES))
    for constant in model.constants():
        if constant.name == "v":
            values = constant.values.copy()
            values[:, 0] *= 60  # its input is nearly always 0
            constant.values = values
        if constant.name in ("w", "b"):
            values = constant.values.copy()
            values[0] = values[0] * 0.001 - (0.0 if constant.name == "w" else 0.01)
            constant.values = values
    model.graph.nodes[2].name = "fragile"
    return model


class Data:
    def __init__(self, folder: Path, model: Model) -> None:
        self.folder, self.model = folder, model

    def batches(self, seed: int, count: int = 400, labels: bool = True) -> Batches:
        x = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
        path = self.folder / f"{seed}-{labels}.npz"
        np.savez(path, x=x)
        port = image_input("x", ("N", 3, 8, 8), np.dtype(np.float32))
        found = Batches(ArrayDataset(path), None, Preprocess.parse("efficientnet-lite{size=8}"), port)
        if not labels:
            return found
        session = open_session(self.model.to_bytes())
        y = np.concatenate([run_session(session, b)[0] for b in found.batches(64)]).argmax(axis=1)
        np.savez(path, x=x, y=y.astype(np.int64))
        return Batches(ArrayDataset(path), None, found.preprocess, port)

    def context(self, target, held_out: Batches | None = None, labels: bool = True) -> Context:
        target = dataclasses.replace(target, reduce_range=False)
        return Context(target, self.batches(1, labels=labels), self.model.copy(), held_out=held_out)


@pytest.fixture
def data(tmp_path, fragile):
    return Data(tmp_path, fragile)


def quantize(data: Data, ctx: Context, **options):
    model = data.model.copy()
    return model, Quantize(weights="int4", rounding="nearest", bias_correction="none", **options).run(model, ctx)


def test_the_layer_that_harms_most_comes_first(data, eager_target):
    ctx = data.context(eager_target, data.batches(2))
    _, result = quantize(data, ctx, sensitivity=True)
    rows = result.metrics["sensitivity"]
    assert rows[0]["node"] == "fragile" and rows[0]["op"] == "Conv"
    assert [r["output_sqnr_db"] for r in rows] == sorted(r["output_sqnr_db"] for r in rows)
    assert rows[0]["top1_drop"] is not None and rows[0]["changed_predictions"] > 0
    assert all(r["layer_sqnr_db"] < 60 for r in rows)


def test_without_labels_there_is_no_top1_but_changes(data, eager_target):
    _, result = quantize(data, data.context(eager_target, labels=False), sensitivity=True)
    assert all(r["top1_drop"] is None and r["changed_predictions"] >= 0 for r in result.metrics["sensitivity"])


def test_the_harmful_layer_is_restored_and_the_bound_holds(data, eager_target):
    ctx = data.context(eager_target, data.batches(2))
    free = quantize(data, ctx)[1]
    _, result = quantize(data, ctx, max_drop=20.0)
    said = result.metrics["max_drop"]
    assert said["met"] and said["drop_points"] <= 20 and said["restored"] == ["fragile"]
    assert said["held_out_images"] == 400 and said["held_out_labels"] and not said["deadline_reached"]
    assert result.metrics["int4_weights"] == free.metrics["int4_weights"] - 1
    (restored,) = [s for s in result.skipped if s.node == "fragile"]
    assert "given 8 bits back" in restored.reason and "larger max_drop" in restored.reason


def test_nothing_is_restored_where_the_bound_holds_at_once(data, eager_target):
    _, result = quantize(data, data.context(eager_target, data.batches(2)), max_drop=100.0)
    assert result.metrics["max_drop"]["tries"] == 1 and result.metrics["max_drop"]["restored"] == []


def test_layers_of_int8_are_restored_to_float(data, eager_target):
    model = data.model.copy()
    ctx = data.context(dataclasses.replace(eager_target), data.batches(2))
    result = Quantize(max_drop=0.0, per_channel=False).run(model, ctx)
    said = result.metrics["max_drop"]
    assert said["drop_points"] <= 0 or not said["met"]
    reasons = {s.node: s.reason for s in result.skipped}
    assert all("given float back" in reasons[name] for name in said["restored"])


def test_a_deadline_gives_the_best_that_was_found_and_says_so(data, eager_target):
    ctx = data.context(eager_target, data.batches(2))
    warnings: list[str] = []
    ctx.progress.warn = warnings.append  # type: ignore[method-assign]
    model, result = quantize(data, ctx, max_drop=0.0, deadline=0.0)
    said = result.metrics["max_drop"]
    assert said["deadline_reached"] and not said["met"] and said["tries"] == 1
    assert any("deadline" in w for w in warnings) and any("no model within 0 points" in w for w in warnings)
    assert any(n.op == "DequantizeLinear" for n in model.graph.nodes)


def test_images_are_needed(data, eager_target):
    ctx = data.context(eager_target)
    ctx.calibration.synthetic = True
    with pytest.raises(PassError, match="max_drop needs images"):
        quantize(data, ctx, max_drop=1.0)


def test_images_are_held_out_only_where_they_are_needed():
    assert Quantize(max_drop=1.0).needs_held_out and Quantize(sensitivity=True).needs_held_out
    assert not Quantize().needs_held_out


def test_decibels():
    x = np.random.default_rng(0).normal(size=10000)
    assert decibels(x, x) == 120
    assert decibels(x, x + 0.1 * np.random.default_rng(1).normal(size=10000)) == pytest.approx(20, abs=0.3)


def assembler_of(data: Data, target) -> Assembler:
    model = data.model.copy()
    ctx = data.context(target)
    lower(model)
    plan = decide(model, ctx.target)
    found = calibrate(model, ctx, plan)
    return Assembler(model, ctx, plan, Recipe(), found.params, found.means)


def test_operators_without_weights_follow_the_layers_that_are_restored(data, eager_target):
    assembler = assembler_of(data, eager_target)
    everything = assembler.build()
    assert everything.planned["GlobalAveragePool"] and len(assembler.candidates) == 3
    some = assembler.build(frozenset(assembler.candidates[:1]))
    assert len(some.planned["Conv"]) == 1 and some.planned["GlobalAveragePool"]
    none = assembler.build(frozenset(assembler.candidates))
    assert none.planned == {} and not any("Quantize" in n.op for n in none.model.graph.nodes)


def test_one_layer_alone(data, eager_target, run):
    assembler = assembler_of(data, eager_target)
    one = assembler.alone("fragile")
    weights = [n for n in one.graph.nodes if n.op == "DequantizeLinear" and len(n.outputs[0].shape or []) == 4]
    assert sum(1 for n in weights if n.inputs[0].dtype == np.int8) == 1
    x = np.random.default_rng(0).uniform(-1, 1, (4, 3, 8, 8)).astype(np.float32)
    assert np.isfinite(run(one, x)).all()


class Table:
    """Measured times: int8 wins as placed, and loses once layers are restored."""

    sha256 = "0" * 64

    def __init__(self, after: float) -> None:
        self.whole = [0.5, after]

    def lookup(self, key: str, measure):
        if "whole" in key:
            return self.whole.pop(0)
        return 10.0 if key.endswith("float") else 0.5

    def save(self) -> None:
        pass


@pytest.mark.parametrize("after", [0.9, 1.3])
def test_a_model_that_restoring_makes_slower_than_float_stays_float(data, eager_target, after):
    target = dataclasses.replace(eager_target, reduce_range=False, measurable=True)
    ctx = dataclasses.replace(data.context(target, data.batches(2)), latency_table=Table(after))
    warnings: list[str] = []
    ctx.progress.warn = warnings.append  # type: ignore[method-assign]
    model = data.model.copy()
    result = Quantize(max_drop=20.0, rounding="nearest", bias_correction="none").run(model, ctx)
    said, slower = result.metrics["max_drop"], after > 1
    assert result.changed is not slower and result.metrics["time_against_float"] == after
    assert any(n.op == "QuantizeLinear" for n in model.graph.nodes) is not slower
    assert any("slower than in float" in w for w in warnings) is slower
    if slower:
        assert result.metrics["int8_operators"] == {} and said["met"] and said["drop_points"] == 0
        assert "fragile" in said["restored"] and all(s.reason for s in result.skipped)
        assert {s.node for s in result.skipped} >= set(said["restored"])


def test_what_is_repaired_computes_in_float_and_keeps_its_four_bits(data, eager_target):
    ctx = data.context(eager_target)
    lower(model := data.model.copy())
    plan = decide(model, ctx.target)
    found = calibrate(model, ctx, plan)
    recipe = Recipe(frozenset(), frozenset({"fragile"}))
    assembler = Assembler(model, ctx, plan, recipe, found.params, found.means)
    built = assembler.build(in_float=frozenset({"fragile"}))
    assert "fragile" not in built.planned["Conv"] and built.metrics["weights_only"] == 1
    assert built.metrics["int4_weights"] == 1
    assert "fragile" in assembler.build(frozenset({"fragile"})).planned["Conv"]  # 8 bits
