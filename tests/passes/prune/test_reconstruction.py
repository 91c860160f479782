"""Importance by reconstruction: elimination against brute force, and the curves that allocation goes by."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis.labels import Family, propagate
from graphopt.analysis.layers.running import Network, load_images
from graphopt.analysis.layers.sampling import DenseSampler
from graphopt.passes.prune import Prune
from graphopt.passes.prune.curves import allowed, by_reconstruction, divergence
from graphopt.passes.prune.reconstruction import eliminate
from graphopt.passes.prune.statistics import Reader, readers
from graphopt.runtime.session import open_session, run_session

from .test_recover import network, outputs


def reader(x: np.ndarray, weight: np.ndarray, columns: np.ndarray) -> Reader:
    """A reader of rows x [rows, inputs] that multiplies them by weight [inputs, outputs]."""
    gram = np.cov(x.T, bias=True)
    variance = float((x @ weight).var(axis=0).sum())
    return Reader(
        0,
        DenseSampler(False),
        columns,
        weight[None],
        np.zeros((1, weight.shape[1])),
        x.mean(0)[None],
        gram[None],
        variance,
        len(x),
    )


def best_error(x: np.ndarray, weight: np.ndarray, stay: np.ndarray) -> float:
    """The relative error that least squares from the inputs that stay leaves."""
    centred = x - x.mean(axis=0)
    want = centred @ weight
    have = centred[:, stay]
    rest = want - have @ np.linalg.lstsq(have, want, rcond=None)[0]
    return float(np.square(rest).sum() / np.square(want).sum())


def data(groups: int, taps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((groups * taps, groups * taps))
    x = rng.standard_normal((500, groups * taps)) @ mix
    return x, rng.standard_normal((groups * taps, 3)), np.repeat(np.arange(groups), taps)


@pytest.mark.parametrize("taps", [1, 4])
def test_errors_are_those_of_least_squares(taps):
    x, weight, columns = data(6, taps)
    family = Family(np.arange(6), (), ())
    found = eliminate(family, [reader(x, weight, columns)], 2, [])
    for gone in range(5):
        stay = ~np.isin(columns, found.order[:gone])
        assert found.error[gone] == pytest.approx(best_error(x, weight, stay), rel=0.1, abs=1e-3)


def test_each_step_takes_the_channel_that_costs_least():
    x, weight, columns = data(6, 2, seed=3)
    found = eliminate(Family(np.arange(6), (), ()), [reader(x, weight, columns)], 5, [])
    costs = [best_error(x, weight, columns != k) for k in range(6)]
    assert found.order[0] == int(np.argmin(costs))


def test_a_channel_that_others_predict_goes_first_however_large_its_weight():
    x, weight, columns = data(6, 1)
    x[:, 4] = x[:, 0] - 2 * x[:, 1]
    weight[4] *= 50
    found = eliminate(Family(np.arange(6), (), ()), [reader(x, weight, columns)], 3, [1])
    # Any of the three can be predicted by the other two.
    assert found.order[0] in (0, 1, 4) and found.error[1] < 1e-4
    made_up = x @ found.weights[1][0][0]
    np.testing.assert_allclose(made_up - made_up.mean(0), x @ weight - (x @ weight).mean(0), atol=0.5)


def test_all_readers_of_a_family_count():
    """What one layer can do without, the other cannot."""
    x, weight, columns = data(4, 1)
    quiet = weight.copy()
    quiet[2] = 0.0
    family = Family(np.arange(4), (), ())
    alone = eliminate(family, [reader(x, quiet, columns)], 3, [])
    both = eliminate(family, [reader(x, quiet, columns), reader(x, weight * [[1], [1], [9], [1]], columns)], 3, [])
    assert alone.order[0] == 2 and both.order[0] != 2


def test_large_families_lose_several_at_a_time_and_still_stop_where_asked():
    x, weight, columns = data(200, 1)
    found = eliminate(Family(np.arange(200), (), ()), [reader(x, weight, columns)], 30, [5, 90, 170])
    assert sorted(found.order) == list(range(200)) and found.error.size == 171
    assert set(found.weights) == {5, 90, 170}
    assert (np.diff(found.error) >= -1e-9).all()
    assert not found.weights[90][0][0][found.order[:90]].any()


def test_statistics_are_those_of_the_network(context):
    model = network()
    labels = propagate(model)
    ctx = context(model, 64)
    found = list(readers(model, labels, labels.families, Network(model, load_images(model, ctx, 64), 1), ctx))
    names = [model.graph.nodes[r.node].op for r in found]
    assert names == ["Conv", "Conv", "Gemm"]  # the depthwise convolution sums over nothing
    dense = found[-1]
    x = np.random.default_rng(7).standard_normal((64, 3, 8, 8)).astype(np.float32)
    pooled = model.copy()
    with pooled.edit() as graph:
        graph.outputs = [next(n for n in graph.nodes if n.op == "Flatten").outputs[0]]
        graph.cleanup()
    rows = run_session(open_session(pooled.to_bytes()), x)[0]
    np.testing.assert_allclose(dense.mean[0], rows.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(dense.gram[0], np.cov(rows.T, bias=True), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "multiple", "floor", "kept"),
    [(16, 8, 0.25, [16, 8]), (20, 8, 0.25, [20, 16, 8]), (16, 1, 0.8, [16, 15, 14, 13]), (8, 8, 0.1, [8])],
)
def test_counts_are_multiples_above_the_floor(size, multiple, floor, kept):
    assert allowed(Family(np.arange(size), (), ()), multiple, floor).tolist() == kept


def test_divergence_is_that_of_probabilities():
    logits = np.random.default_rng(0).standard_normal((20, 5))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert divergence(logits, logits + 3.0) == pytest.approx(0.0, abs=1e-12)
    other = np.roll(logits, 1, axis=1)
    q = np.exp(other) / np.exp(other).sum(axis=1, keepdims=True)
    assert divergence(logits, other) == pytest.approx(divergence(p, q)) == pytest.approx((p * np.log(p / q)).sum() / 20)
    assert divergence(np.ones((4, 2, 2)), np.ones((4, 2, 2))) == 0.0


def test_curves_start_at_nothing_and_rise(context):
    model = network()
    labels = propagate(model)
    ctx = context(model, 64)
    scores = np.ones(labels.count)
    images = load_images(model, ctx, 64)
    curves = by_reconstruction(model, labels, labels.families, scores, 4, 0.2, images, 10**6, ctx)
    assert len(curves) == len(labels.families) >= 2
    for family, curve in zip(labels.families, curves, strict=True):
        assert sorted(curve.order) == sorted(family.groups)
        assert curve.lost[0] == 0.0 and (np.diff(curve.lost) >= 0).all() and curve.lost[-1] > 0


def test_it_beats_the_energy_of_weights_where_channels_are_redundant(context):
    """Half of the expanded channels repeat the other half, with the larger weights: those can go unnoticed."""
    model = network()
    expand = model.graph.nodes[2]
    depthwise = next(n for n in model.graph.nodes if n.attrs.get("group", 1) == 32)
    with model.edit():
        for node in (expand, depthwise):
            values = np.array(node.inputs[1].values)
            values[16:] = values[:16]
            node.inputs[1].values = values
    x = np.random.default_rng(99).standard_normal((64, 3, 8, 8)).astype(np.float32)
    gap = {}
    for criterion in ("reconstruction", "l2"):
        twin = model.copy()
        Prune(macs=0.75, multiple=4, importance=criterion).run(twin, context(model, 256))
        gap[criterion] = float(np.square(outputs(twin, x) - outputs(model, x)).mean())
    assert gap["reconstruction"] < 0.1 * gap["l2"]


def test_without_images_weights_decide_and_it_says_so(context):
    said: list[str] = []
    model = network()
    ctx = context(model, 0)
    ctx.progress.warn = said.append  # type: ignore[method-assign]
    assert Prune(macs=0.7, multiple=4).run(model, ctx).changed
    assert any("energy of weights" in text for text in said)
