"""The last layer, refitted to probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import log_softmax, softmax
from small_graphs import HEAD, build

from graphopt import Model
from graphopt.analysis.labels import propagate
from graphopt.analysis.layers.running import BATCH, Images, Network
from graphopt.passes.prune import scores
from graphopt.passes.prune.consumers import consumers
from graphopt.passes.prune.recover import _changed, recover
from graphopt.passes.prune.surgery import remove

WEIGHTS = {"w": (16, 3, 3, 3), "b": (16,), "wf": (5, 16), "bf": (5,)}


def network(tail: str = "") -> Model:
    return build(f"a = Conv(x, w, b)\n z = Relu(a)\n {HEAD}\n {tail}", WEIGHTS)


def thinned(model: Model, kept: int = 6):
    """The model with some of its channels, and what it takes to refit it."""
    labels = propagate(model)
    keep = labels.everything()
    keep[labels.families[0].groups[kept:]] = False
    pruned = model.copy()
    remove(pruned, labels, keep)
    return model, pruned, labels, keep


def images(count: int) -> Images:
    rng = np.random.default_rng(5)
    return Images(tuple(rng.standard_normal((BATCH, 3, 8, 8)).astype(np.float32) for _ in range(count)))


def last(model, pruned, labels, keep):
    return consumers(pruned, labels, keep, _changed(model, pruned, labels, keep), 64)[-1]


def test_the_layer_that_gives_the_outputs_is_found():
    model, pruned, labels, keep = thinned(network())
    assert scores.gives_scores(pruned, last(model, pruned, labels, keep))


def test_a_softmax_behind_it_changes_nothing():
    model = build("a = Conv(x, w, b)\n z = Relu(a)\n " + HEAD.replace("y =", "s =") + "\n y = Softmax(s)", WEIGHTS)
    model, pruned, labels, keep = thinned(model)
    assert scores.gives_scores(pruned, last(model, pruned, labels, keep))


@pytest.mark.parametrize("op", ["Sigmoid", "Relu"])
def test_no_scores_before_other_operators(op):
    model = build("a = Conv(x, w, b)\n z = Relu(a)\n " + HEAD.replace("y =", "s =") + f"\n y = {op}(s)", WEIGHTS)
    model, pruned, labels, keep = thinned(model)
    assert not scores.gives_scores(pruned, last(model, pruned, labels, keep))


def test_a_convolution_gives_no_scores():
    model, pruned, labels, keep = thinned(
        build(
            "a = Conv(x, w)\n b = Relu(a)\n c = Conv(b, v)\n z = Relu(c)\n " + HEAD,
            {"w": (8, 3, 3, 3), "v": (8, 8, 1, 1), "wf": (5, 8), "bf": (5,)},
        )
    )
    first = consumers(pruned, labels, keep, _changed(model, pruned, labels, keep), 64)[0]
    assert not scores.gives_scores(pruned, first)


def problem(rows: int = 40, noise: float = 0.3, intercept: bool = True) -> scores._Problem:
    rng = np.random.default_rng(0)
    x, truth = rng.standard_normal((rows, 6)), rng.standard_normal((6, 4))
    bias = rng.standard_normal(4) * intercept
    return scores._Problem(x, x @ truth + bias, truth + noise * rng.standard_normal(truth.shape), bias, intercept)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_solution_is_a_minimum(intercept):
    p = problem(intercept=intercept)
    weight, bias = p.solve(0.1)
    ridge = 0.1 * np.square(p.x).mean()

    def objective(flat: np.ndarray) -> float:
        w = flat[:24].reshape(6, 4)
        b = flat[24:] if intercept else p.bias
        return p.divergence(w, b) + ridge / 2 * np.square(w - p.weight).sum()

    flat = np.concatenate([weight.ravel(), bias]) if intercept else weight.ravel()
    assert np.abs(approx_fprime(flat, objective, 1e-6)).max() < 1e-3
    assert intercept or np.array_equal(bias, p.bias)
    assert objective(flat) < objective(np.concatenate([p.weight.ravel(), p.bias]) if intercept else p.weight.ravel())


def test_divergence_is_that_of_the_definition():
    p = problem()
    wanted, found = softmax(p.scores, axis=1), softmax(p.x @ p.weight + p.bias, axis=1)
    expected = (wanted * np.log(wanted / found)).sum(axis=1).mean()
    assert p.divergence(p.weight, p.bias) == pytest.approx(expected)


def test_refitting_brings_probabilities_closer(context, monkeypatch):
    """End to end, against least squares alone, on images of its own."""
    model = network()
    with model.edit() as graph:
        weight = graph.tensors()["wf"]
        weight.values = weight.values * np.float32(0.3)  # scores that leave something to tell
    ctx = context(model)
    found = {}
    for wanted in (True, False):
        model, pruned, labels, keep = thinned(model, 4)
        if not wanted:
            monkeypatch.setattr("graphopt.passes.prune.recover.gives_scores", lambda *_: False)
        recover(model, pruned, labels, keep, images(8), ctx)
        fresh = Images((np.random.default_rng(9).standard_normal((512, 3, 8, 8)).astype(np.float32),))
        probabilities = []
        for m in (model, pruned):
            (values,) = Network(m, fresh, 1).tensors([m.outputs[0].name])
            probabilities.append(log_softmax(values[m.outputs[0].name].astype(np.float64), axis=1))
        want, have = probabilities
        found[wanted] = float((np.exp(want) * (want - have)).sum(axis=1).mean())
    assert found[True] < found[False]


def test_what_least_squares_reach_is_left(context):
    """Scores that the layer can give exactly: nothing is closer, wherever the search starts."""
    model = network()
    model, pruned, labels, keep = thinned(model)
    consumer = last(model, pruned, labels, keep)
    node = pruned.graph.nodes[consumer.index]
    before = node.inputs[1].values.copy()
    name = pruned.outputs[0].name
    targets = [v[name] for v in Network(pruned, images(4), 1).tensors([name])]
    weight, bias = consumer.sampler.read(node)
    with pruned.edit():
        start = 0.5 * weight, bias + 1
        scores.refit_scores(Network(pruned, images(4), 1), consumer, targets, start, context(model))
    np.testing.assert_allclose(node.inputs[1].values, before, atol=1e-3 * np.abs(before).max())
