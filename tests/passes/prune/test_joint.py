"""Refitting two convolutions together: the rows are those of the network, steps are those of Gauss and Newton, and
nothing is taken that does not help on images apart."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Model
from graphopt.analysis.labels import propagate
from graphopt.analysis.layers.running import BATCH, Images, Network
from graphopt.passes.prune import joint
from graphopt.passes.prune.consumers import consumers, rng_of
from graphopt.passes.prune.joint import Stack, Weights, improve
from graphopt.passes.prune.pairs import pair_of, refit_pair
from graphopt.passes.prune.recover import recover
from graphopt.passes.prune.surgery import remove

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,9,9] x) => (float[N,k,h,w] y) '
FREE = (-np.inf, np.inf)


def tensor(name: str, *shape: int) -> str:
    values = np.random.default_rng(sum(name.encode())).standard_normal(int(np.prod(shape))) * 0.3
    return f"float[{','.join(map(str, shape))}] {name} = {{{','.join(f'{v:.5f}' for v in values)}}}"


def build(body: str, *more: str) -> Model:
    weights = [tensor("w", 8, 3, 3, 3), tensor("b", 8), tensor("u", 5, 8, 3, 3), *more]
    return Model.from_text(f"{HEADER} <{', '.join(weights)}> {{ {body} }}")


def numbers(model: Model) -> dict[str, int]:
    return {t.name: i for i, node in enumerate(model.graph.nodes) for t in node.outputs}


def batches(count: int = 6) -> Images:
    rng = np.random.default_rng(0)
    return Images(tuple(rng.standard_normal((BATCH, 3, 9, 9)).astype(np.float32) for _ in range(count)))


def stack(rng: np.random.Generator, rows: int, weights: Weights, bounds, noise: float = 0.0) -> Stack:
    """Rows of which the second is given by some weights."""
    x = rng.standard_normal((2 * rows, weights.first.shape[0])).astype(np.float32)
    inside, index = np.ones(2 * rows, dtype=bool), np.arange(2 * rows).reshape(rows, 2)
    empty = Stack(x, inside, index, np.zeros((rows, weights.rest.size), np.float32), None)
    y = -joint._run(empty, bounds, weights).left
    return Stack(x, inside, index, (y + noise * rng.standard_normal(y.shape)).astype(np.float32), None)


def weights(rng: np.random.Generator, inputs: int = 5, channels: int = 4, outputs: int = 3) -> Weights:
    sizes = (inputs, channels), (channels,), (2 * channels, outputs), (outputs,)
    return Weights(*(rng.standard_normal(s) for s in sizes))


# --- which pairs there are ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "bounds"),
    [
        ("a = Conv(x, w, b) r = Relu(a) y = Conv(r, u)", (0.0, np.inf)),
        ("a = Conv(x, w, b) y = Conv(a, u)", FREE),
        ("lo = Constant<value_float=0.0>() a = Conv(x, w, b) r = Clip(a, low, high) y = Conv(r, u)", (0.0, 6.0)),
        ("a = Conv(x, w, b) r = Clip(a, , high) y = Conv(r, u)", (-np.inf, 6.0)),
    ],
)
def test_a_convolution_and_its_only_reader_are_a_pair(body, bounds):
    model = build(body, "float low = {0.0}", "float high = {6.0}")
    last = len(model.graph.nodes) - 1
    found = pair_of(model, last, numbers(model))
    assert found is not None
    assert (model.graph.nodes[found.first].outputs[0].name, found.second) == ("a", last)
    assert (found.low, found.high) == bounds


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, w, b) r = Relu(a) s = Conv(r, u) t = Conv(r, u2) y = Add(s, t)",  # two readers
        "a = Conv(x, w, b) r = Sigmoid(a) y = Conv(r, u)",  # what follows is not known piece by piece
        "a = Conv(x, w, b) r = Relu(a) s = Relu(r) y = Conv(s, u)",
        "a = Conv(x, w, b) r = Relu(a) y = Conv<group=8>(r, d)",
        "a = Conv<group=3>(x, e) y = Conv(a, u3)",
        "y = Conv(x, w, b)",
    ],
)
def test_others_are_not(body):
    more = tensor("u2", 5, 8, 3, 3), tensor("d", 8, 1, 3, 3), tensor("e", 6, 1, 3, 3), tensor("u3", 5, 6, 1, 1)
    model = build(body, *more)
    at = next(i for i, n in enumerate(model.graph.nodes) if n.op == "Conv" and n.outputs[0].name in ("y", "s"))
    last = at if "Add" in body else len(model.graph.nodes) - 1
    assert pair_of(model, last, numbers(model)) is None


# --- the rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["", "strides=[2,1], pads=[1,0,2,1]", "dilations=[2,2], pads=[1,1,1,1]"])
@pytest.mark.parametrize("second", ["", "strides=[1,2], pads=[1,1,1,1]", "pads=[2,0,1,1], dilations=[1,2]"])
@pytest.mark.parametrize("activation", ["Relu", "Identity"])
def test_rows_are_those_of_the_network(context, first, second, activation):
    """With nothing removed, the pair gives just what is wanted: any slip of a position or a tap would be an error."""
    middle = "r = Relu(a) y = Conv" if activation == "Relu" else "y = Conv"
    source = "r" if activation == "Relu" else "a"
    model = build(f"a = Conv<{first or 'group=1'}>(x, w, b) {middle}<{second or 'group=1'}>({source}, u)")
    images, ctx = batches(), context(model)
    (consumer,) = consumers(model, propagate(model), propagate(model).everything(), [numbers(model)["y"]], images.count)
    network = Network(model, images, 1)
    targets = [
        consumer.sampler.outputs(values["y"], rng_of(ctx, consumer, k), consumer.per_image)
        for k, values in enumerate(network.tensors(["y"]))
    ]
    pair = pair_of(model, consumer.index, numbers(model))
    assert pair is not None
    with model.edit():
        found = refit_pair(network, pair, consumer, targets, ctx)
    assert found is not None and found[0] < 1e-9


def test_too_few_images_hold_none_out(context):
    model = build("a = Conv(x, w, b) r = Relu(a) y = Conv(r, u)")
    images = batches(2)
    (consumer,) = consumers(model, propagate(model), propagate(model).everything(), [2], images.count)
    pair = pair_of(model, 2, numbers(model))
    assert pair is not None
    assert refit_pair(Network(model, images, 1), pair, consumer, [np.zeros((1, 5))] * 2, context(model)) is None


# --- the steps ------------------------------------------------------------------------------------------------------


def test_without_an_activation_a_step_is_the_least_squares_solution(monkeypatch):
    """Then the second's output is linear in the first's weights, and enough conjugate gradients solve it."""
    monkeypatch.setattr(joint, "_CONJUGATE", 200)
    monkeypatch.setattr(joint, "_RIDGE", 1e-9)
    rng = np.random.default_rng(1)
    truth, other = weights(rng), weights(rng)
    rows = stack(rng, 300, truth, FREE, noise=0.5)
    start = Weights(other.first, other.bias, truth.second, truth.rest)
    *_, last = joint._directions(rows, start, joint._run(rows, FREE, start))
    found = start.first + last[:-1]
    second = truth.second.reshape(2, 4, 3)
    design = np.einsum(
        "rti,tmo->roim", np.concatenate([rows.x.reshape(300, 2, -1), np.ones((300, 2, 1))], axis=2), second
    ).reshape(-1, 24)
    best = np.linalg.lstsq(design, (rows.y - truth.rest).reshape(-1), rcond=None)[0].reshape(6, 4)
    np.testing.assert_allclose(found, best[:-1], atol=1e-3)


def test_through_an_activation_most_of_the_error_goes():
    rng = np.random.default_rng(2)
    truth = weights(rng)
    away = Weights(
        *(v + 0.2 * rng.standard_normal(v.shape) for v in (truth.first, truth.bias)), truth.second, truth.rest
    )
    bounds = (0.0, np.inf)
    _, before, after = improve(stack(rng, 600, truth, bounds), stack(rng, 200, truth, bounds), bounds, away)
    assert after < 0.1 * before


def test_noise_is_not_fitted():
    """Of few rows with noise, what does not help on others is not taken: the truth comes back."""
    rng = np.random.default_rng(3)
    truth = weights(rng, inputs=30)
    rows, held = (stack(rng, n, truth, (0.0, np.inf), noise=5.0) for n in (20, 400))
    found, before, after = improve(rows, held, (0.0, np.inf), truth)
    assert found is truth and before == after


def test_removed_channels_are_made_up_for_by_the_layer_before_too(context, monkeypatch):
    """End to end, against refitting each layer by itself."""
    model = build("a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, u)")
    labels, images, ctx = propagate(model), batches(8), context(model)
    keep = labels.everything()
    keep[labels.tensors["a"][1][:4]] = False

    def error(alone: bool) -> float:
        pruned = model.copy()
        remove(pruned, labels, keep)
        if alone:
            monkeypatch.setattr("graphopt.passes.prune.recover.pair_of", lambda *_: None)
        else:
            monkeypatch.undo()
        recovery = recover(model, pruned, labels, keep, images, ctx)
        assert recovery.pairs == (0 if alone else 1)
        unseen = Images((np.random.default_rng(9).standard_normal((64, 3, 9, 9)).astype(np.float32),))
        a, b = (next(iter(Network(m, unseen, 1).tensors(["y"])))["y"] for m in (model, pruned))
        return float(((a - b) ** 2).mean() / a.var())

    assert error(alone=False) < 0.9 * error(alone=True)
