"""The max_drop target: who judges on what, the search, and what happens where nothing holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from graphopt import Context, Model, PassError
from graphopt.analysis.cost import cost
from graphopt.analysis.judge import Drop, Judge
from graphopt.data.arrays import ArrayDataset
from graphopt.data.loader import Batches
from graphopt.data.model_io import image_input
from graphopt.data.preprocess import Preprocess
from graphopt.passes.prune import Prune
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.session import open_session, run_session
from graphopt.runtime.target import get_target

from .test_prune import network


@dataclass
class Data:
    """Images whose labels are what the network says of them, but for some; and contexts with them."""

    folder: Path
    model: Model
    count: int = 600
    wrong: float = 0.1

    def batches(self, name: str, labels: bool = True) -> Batches:
        rng = np.random.default_rng(sum(name.encode()))
        x = rng.integers(0, 256, (self.count, 8, 8, 3)).astype(np.uint8)
        found = self._of(name, x, None)
        if not labels:
            return found
        session = open_session(self.model.to_bytes())
        scores = np.concatenate([run_session(session, b)[0] for b in found.batches(64)])
        y = np.where(rng.random(self.count) < self.wrong, rng.integers(0, 10, self.count), scores.argmax(axis=1))
        return self._of(name + "-labels", x, y)

    def _of(self, name: str, x: np.ndarray, y: np.ndarray | None) -> Batches:
        path = self.folder / f"{name}.npz"
        np.savez(path, x=x, **({} if y is None else {"y": y.astype(np.int64)}))
        port = image_input("x", ("N", 3, 8, 8), np.dtype(np.float32))
        return Batches(ArrayDataset(path), None, Preprocess.parse("inception{size=8}"), port)

    def context(self, calibration: Batches, held_out: Batches | None = None) -> Context:
        return Context(get_target("ort-cpu"), calibration, self.model.copy(), held_out=held_out)


def redundant() -> Model:
    """A network in which half of the channels hardly matter, and no class prevails."""
    model = network()
    with model.edit() as graph:
        for node in graph.nodes:
            if node.op == "Conv":
                values = np.array(node.inputs[1].values)
                values[16:] *= 0.03
                node.inputs[1].values = values
    x = np.random.default_rng(2).standard_normal((256, 3, 8, 8)).astype(np.float32)
    mean = run_session(open_session(model.to_bytes()), x)[0].mean(axis=0)
    with model.edit() as graph:
        graph.nodes[-1].inputs[2].values = np.asarray(graph.nodes[-1].inputs[2].values) - mean
    return model


@pytest.fixture
def data(tmp_path) -> Data:
    return Data(tmp_path, redundant())


OPTIONS = {"multiple": 4, "min_keep": 0.05, "importance": "l2", "recover": False}


def test_the_drop_holds_on_the_images_apart_and_a_smaller_bound_keeps_more(data):
    held_out = data.batches("apart")
    left = []
    for points in (8.0, 40.0):
        model = data.model.copy()
        ctx = data.context(data.batches("calibration", labels=False), held_out)
        metrics = Prune(max_drop=points, **OPTIONS).run(model, ctx).metrics
        before, after = (evaluate(m.to_bytes(), held_out).top1 for m in (data.model, model))
        assert metrics["drop_points"] == pytest.approx(100 * (before - after), abs=1e-3)
        assert metrics["drop_points"] <= metrics["drop_points_upper95"] <= points
        assert (metrics["held_out_images"], metrics["held_out_labels"]) == (data.count, True)
        assert metrics["macs_realised"] == pytest.approx(cost(model).macs / cost(data.model).macs, abs=1e-6)
        left.append(metrics["macs_realised"])
    assert left[1] < left[0] < 1.0


def test_the_search_ends_at_the_floor(data):
    model = data.model.copy()
    ctx = data.context(data.batches("calibration"), data.batches("apart"))
    result = Prune(max_drop=100.0, importance="l2", min_keep=0.5, recover=False).run(model, ctx)
    least = data.model.copy()
    Prune(ratio=0.5, importance="l2", min_keep=0.5, recover=False).run(least, ctx)
    assert cost(model).macs <= cost(least).macs + 0.02 * cost(data.model).macs
    assert result.metrics["drop_tries"] <= 8


def test_without_labels_predictions_that_change_are_bounded(data):
    held_out = data.batches("apart", labels=False)
    model = data.model.copy()
    ctx = data.context(data.batches("calibration", labels=False), held_out)
    metrics = Prune(max_drop=30.0, **OPTIONS).run(model, ctx).metrics
    before, after = (evaluate(m.to_bytes(), held_out).predictions for m in (data.model, model))
    assert metrics["held_out_labels"] is False
    assert metrics["drop_points"] == pytest.approx(100 * (before != after).mean(), abs=1e-3)
    assert metrics["drop_points_upper95"] <= 30.0


def test_without_images_to_spare_half_of_the_calibration_judges_and_nothing_is_fitted_to_it(data):
    ctx = data.context(data.batches("calibration"))
    judge, rest = Judge.of(ctx, macs=10**9)
    judged = np.concatenate([chunk.indices for chunk in judge.chunks])
    assert judge.count == 300 == len(judged) and len(rest.calibration) == 300
    assert not set(judged) & set(rest.calibration.indices)
    model = data.model.copy()
    assert Prune(max_drop=40.0, **OPTIONS).run(model, ctx).metrics["held_out_images"] == 300


def test_how_many_images_judge_depends_on_what_they_cost(data):
    data.count = 1500
    ctx = data.context(data.batches("calibration", labels=False), data.batches("apart"))
    assert Judge.of(ctx, macs=10**12)[0].count == 512
    assert Judge.of(ctx, macs=5 * 10**8)[0].count == 1000
    assert Judge.of(ctx, macs=1)[0].count == 1500


def test_every_chunk_has_images_of_all_parts_of_the_source(data):
    data.count = 1500
    judge, _ = Judge.of(data.context(data.batches("calibration", labels=False), data.batches("apart")), macs=1)
    assert [len(c) for c in judge.chunks] == [500] * 3
    assert all(c.indices.min() < 10 and c.indices.max() > 1490 for c in judge.chunks)
    assert len({i for c in judge.chunks for i in c.indices}) == 1500


def test_made_up_images_judge_nothing(context):
    model = network()
    with pytest.raises(PassError, match="needs images"):
        Prune(max_drop=1.0).run(model, context(model))


def test_a_bound_that_cannot_be_held_is_an_error_that_says_by_how_much(data):
    model = data.model.copy()
    before = model.fingerprint()
    ctx = data.context(data.batches("calibration", labels=False), data.batches("apart"))
    with pytest.raises(PassError, match=r"no pruned model stays within 0\.1 points of top-1: with 9\d\.\d% of"):
        Prune(max_drop=0.1, **OPTIONS).run(model, ctx)
    assert model.fingerprint() == before


def test_nothing_to_prune_is_an_error_here_too(data):
    data.model = network(width=8)
    ctx = data.context(data.batches("calibration", labels=False), data.batches("apart"))
    with pytest.raises(PassError, match="nothing could be pruned"):
        Prune(max_drop=10.0).run(data.model.copy(), ctx)


def test_a_clear_failure_is_seen_early(data):
    data.count = 1500
    ctx = data.context(data.batches("calibration", labels=False), data.batches("apart"))
    judge, _ = Judge.of(ctx, macs=1)
    broken = data.model.copy()
    with broken.edit() as graph:
        last = graph.nodes[-1]
        last.inputs[1].values = -np.asarray(last.inputs[1].values)
    drop = judge.drop(broken, 5.0)
    assert drop.n == 500 and drop.low > 5.0
    same = judge.drop(data.model, 5.0)
    assert (same.n, same.points) == (1500, 0.0) and same.low <= 0.0 <= same.high < 0.5
    assert isinstance(same, Drop)
