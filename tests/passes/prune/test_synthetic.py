"""Synthetic images chosen to suit a model."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Context, Model
from graphopt.analysis.layers import suited as suited_module
from graphopt.analysis.layers.suited import herd, suited
from graphopt.data.preprocess import Preprocess
from graphopt.data.synthetic import synthetic_batches
from graphopt.driver.inputs import model_input
from graphopt.passes.prune import Prune
from graphopt.runtime.session import open_session, run_session
from graphopt.runtime.target import get_target

from .test_recover import tensor

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,16,16] x) => (float[N,4] y) '


def classifier(batch: str = "N", norm: bool = True) -> Model:
    weights = [tensor("w", 12, 3, 3, 3), tensor("v", 12, 12, 3, 3), tensor("f", 4, 12), tensor("h", 4)]
    weights += [tensor(k, 12, scale=1.0) for k in ("g", "b", "m")]
    weights += [f"float[12] s = {{{','.join(['1.0'] * 12)}}}"]
    normalised = "BatchNormalization(a, g, b, m, s)" if norm else "Sub(a, c)"
    weights += [tensor("c", 12, 1, 1)]
    body = f"a = Conv(x, w) n = {normalised} r = Relu(n) c2 = Conv(r, v) d = Relu(c2) q = GlobalAveragePool(d) "
    body += "t = Flatten(q) y = Gemm<transB=1>(t, f, h)"
    return Model.from_text(f"{HEADER.replace('N', batch)} <{', '.join(weights)}> {{ {body} }}")


def context(model: Model, count: int = 64, synthetic: bool = True) -> Context:
    batches = synthetic_batches(model_input(model), Preprocess.parse("unit"), count)
    batches.synthetic = synthetic
    return Context(get_target("ort-cpu"), batches, model.copy())


def inner(model: Model, images: np.ndarray) -> np.ndarray:
    twin = model.copy()
    with twin.edit() as graph:
        graph.outputs = [graph.tensors()["a"]]
        graph.cleanup()
    return run_session(open_session(twin.to_bytes()), images)[0].astype(np.float64)


def trained_on(model: Model, images: np.ndarray) -> Model:
    """The model as if these had been its training images."""
    found = inner(model, images)
    with model.edit() as graph:
        graph.tensors()["m"].values = found.mean(axis=(0, 2, 3)).astype(np.float32)
        graph.tensors()["s"].values = found.var(axis=(0, 2, 3)).astype(np.float32)
    return model


def gap(model: Model, images: np.ndarray) -> float:
    found = inner(model, images)
    mean, variance = (np.asarray(model.graph.tensors()[k].values, np.float64) for k in ("m", "s"))
    shift = (found.mean(axis=(0, 2, 3)) - mean) ** 2 / variance
    return float((shift + (found.var(axis=(0, 2, 3)) / variance - 1) ** 2).mean())


def dark(model: Model) -> np.ndarray:
    """Images unlike the synthetic ones on average, but like some of them."""
    every = np.concatenate(list(context(model, 400).calibration.batches(100)))
    return every[np.argsort(every.mean(axis=(1, 2, 3)))[:60]]


def test_herding_picks_greedily_for_a_mean_of_zero():
    features = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32) + 0.5
    picked: list[int] = []
    for _ in range(12):
        rest = [i for i in range(40) if i not in picked]
        picked.append(min(rest, key=lambda i: float(np.square(features[[*picked, i]].sum(axis=0)).sum())))
    np.testing.assert_array_equal(herd(features, 12), picked)
    assert np.abs(features[picked].mean(axis=0)).max() < 0.4 * np.abs(features.mean(axis=0)).max()
    assert sorted(herd(features, 100)) == list(range(40))


@pytest.mark.parametrize("batch", ["N", "20"])
def test_images_are_chosen_that_give_the_statistics_of_training(batch):
    model = classifier(batch)
    free = trained_on(classifier(), dark(classifier()))
    with model.edit() as graph:
        for name in ("m", "s"):
            graph.tensors()[name].values = free.graph.tensors()[name].values
    ctx = context(model, 60)
    chosen = suited(ctx)
    assert len(chosen) == 60 and chosen.synthetic and "chosen" in chosen.description
    assert len(set(chosen.indices.tolist())) == 60
    before, after = (gap(free, np.concatenate(list(b.batches(30)))) for b in (ctx.calibration, chosen))
    assert after < 0.3 * before
    np.testing.assert_array_equal(suited(ctx).indices, chosen.indices)


def test_without_statistics_the_images_stay():
    ctx = context(classifier(norm=False))
    assert suited(ctx) is ctx.calibration


def test_real_images_stay():
    ctx = context(classifier(), synthetic=False)
    assert suited(ctx) is ctx.calibration


def test_statistics_of_training_mode_are_none():
    model = classifier()
    node = next(n for n in model.graph.nodes if n.op == "BatchNormalization")
    with model.edit():
        node.attrs["training_mode"] = 1
    ctx = context(model)
    assert suited(ctx) is ctx.calibration


def test_pruning_takes_them(monkeypatch):
    model = trained_on(classifier(), dark(classifier()))
    taken: list[str] = []
    monkeypatch.setattr(
        "graphopt.passes.prune.prune.suited", lambda ctx: taken.append(ctx.calibration.description) or suited(ctx)
    )
    ctx = context(model, 64)
    result = Prune(macs=0.8, multiple=4).run(model, ctx)
    assert taken == [ctx.calibration.description] and result.metrics["synthetic_calibration"]
    assert result.metrics["refit_images"] == 64


def test_moments_in_single_precision_are_those_in_double():
    model = classifier()
    node = next(n for n in model.graph.nodes if n.op == "BatchNormalization")
    mean, variance = (np.asarray(t.values, np.float64) for t in node.inputs[3:5])
    x = (np.random.default_rng(0).normal(size=(3, len(mean), 20, 20)) * 2 + 5).astype(np.float32)
    normal = (x - mean[:, None, None]) / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))[:, None, None]
    first, second = suited_module._moments(x, node)
    np.testing.assert_allclose(first, normal.mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second, np.square(normal).mean(axis=(2, 3)), rtol=1e-5)


@pytest.mark.parametrize(("size", "most"), [(8, 32), (512, 8), (4096, 1)])
def test_large_images_are_looked_at_fewer_at_a_time(size, most):
    model = Model.from_text(  # of any size, as exporters leave it
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4,H,W] x) => (float[N,4,H,W] y) { y = Relu(x) }'
    )
    session = open_session(model.to_bytes())
    assert suited_module._batch(session, np.zeros((1, 4, size, size), np.float32)) == most
