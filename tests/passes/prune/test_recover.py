"""Refitting: it finds what least squares can find, lowers the error on unseen images, and never makes it worse."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from graphopt import Context, Model
from graphopt.analysis.labels import propagate
from graphopt.analysis.layers.moments import Moments
from graphopt.analysis.layers.running import Network, load_images
from graphopt.analysis.layers.sampling import sampler_of
from graphopt.passes.prune import Prune
from graphopt.passes.prune.recover import _changed, recover
from graphopt.passes.prune.ridge import Rows, fit
from graphopt.passes.prune.surgery import remove
from graphopt.runtime.session import open_session, run_session

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,4] y) '


def tensor(name: str, *shape: int, scale: float = 0.3) -> str:
    values = np.random.default_rng(sum(name.encode())).standard_normal(int(np.prod(shape))) * scale
    return f"float[{','.join(map(str, shape))}] {name} = {{{','.join(f'{v:.5f}' for v in values)}}}"


def network() -> Model:
    """A residual block with a depthwise convolution inside, and a classifier."""
    weights = [
        tensor("w", 16, 3, 3, 3),
        tensor("b", 16),
        tensor("e", 32, 16, 1, 1),
        tensor("d", 32, 1, 3, 3),
        tensor("p", 16, 32, 1, 1),
        tensor("f", 4, 16),
        tensor("g", 4),
    ]
    body = (
        "a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) h = Conv(r, e) i = Relu(h) "
        "j = Conv<group=32, strides=[1,1], pads=[1,1,1,1]>(i, d) k = Relu(j) l = Conv(k, p) z = Add(l, r) "
        "q = GlobalAveragePool(z) s = Flatten(q) y = Gemm<transB=1>(s, f, g)"
    )
    return Model.from_text(f"{HEADER} <{', '.join(weights)}> {{ {body} }}")


def outputs(model: Model, x: np.ndarray) -> np.ndarray:
    return run_session(open_session(model.to_bytes()), x)[0]


def unseen() -> np.ndarray:
    return np.random.default_rng(99).standard_normal((64, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("intercept", [True, False])
def test_exact_solutions_are_found(intercept):
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((2, 6, 3)), rng.standard_normal((2, 3)) * intercept
    halves = []
    for _ in range(2):
        x = rng.standard_normal((2, 400, 6)).astype(np.float32)
        halves.append(Rows(x, (x @ weight + bias[:, None]).astype(np.float32), None))
    before, after, found = fit(*halves, np.zeros_like(weight), np.zeros_like(bias), intercept)
    assert found is not None and after < 1e-4 < before
    np.testing.assert_allclose(found[0], weight, atol=1e-2)
    np.testing.assert_allclose(found[1], bias, atol=1e-2)


def test_noise_is_not_fitted():
    rng = np.random.default_rng(0)
    halves = []
    for _ in range(2):
        x, y = rng.standard_normal((1, 60, 50)), rng.standard_normal((1, 60, 2))
        halves.append(Rows(x.astype(np.float32), y.astype(np.float32), None))
    before, after, _ = fit(*halves, np.zeros((1, 50, 2)), np.zeros((1, 2)), True)
    assert after <= before


def test_moments_of_pieces_add_up_to_those_of_the_whole():
    x, y = np.random.default_rng(0).standard_normal((2, 40, 2, 6))
    whole, halves = Moments.empty((2, 6, 6)), [Moments.empty((2, 6, 6)) for _ in range(2)]
    whole.add(x, y.reshape(40, -1))
    for half, rows in zip(halves, (slice(0, 25), slice(25, 40)), strict=True):
        half.add(x[rows], y[rows].reshape(-1, 12))
    for name in ("rows", "x", "y", "xx", "xy", "yy"):
        np.testing.assert_allclose(getattr(halves[0] + halves[1], name), getattr(whole, name), rtol=1e-4, atol=1e-4)


def test_what_an_activation_hides_is_not_fitted():
    """Below the floor the targets are noise, which a fit that knows the floor has no use for."""
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((1, 4, 2)), np.full((1, 2), -0.2)
    halves = []
    for _ in range(2):
        x = rng.standard_normal((1, 3000, 4)).astype(np.float32)
        y = x @ weight + bias[:, None]
        y = np.where(y < 0, -3 * np.abs(rng.standard_normal(y.shape)), y).astype(np.float32)
        halves.append(Rows(x, y, np.zeros_like(y)))
    start = np.zeros_like(weight), np.zeros_like(bias)
    plain = fit(*(Rows(r.x, r.y, None) for r in halves), *start, True)[2]
    _, after, found = fit(*halves, *start, True)
    assert plain is not None and found is not None
    assert after < 0.25 * halves[1].error(*plain)


def test_no_rows_no_fit():
    assert fit(None, None, np.zeros((1, 2, 2)), np.zeros((1, 2)), True)[2] is None


def test_sampled_rows_reproduce_the_layer(context):
    """Rows of inputs times the weight are the rows of outputs, for strides, pads, dilations and groups."""
    body = "y = Conv<group=2, strides=[2,1], pads=[1,2,0,1], dilations=[1,2]>(x, w, b)"
    header = HEADER.replace("N,3,8,8", "N,4,9,8").replace("N,4] y", "N,6,H,W] y")
    model = Model.from_text(f"{header} <{tensor('w', 6, 2, 3, 3)}, {tensor('b', 6)}> {{ {body} }}")
    node = model.graph.nodes[0]
    sampler = sampler_of(node)
    assert sampler is not None
    x = np.random.default_rng(0).standard_normal((3, 4, 9, 8)).astype(np.float32)
    rows = sampler.inputs(node, x, np.random.default_rng(5), 7)
    weight, bias = sampler.read(node)
    expected = sampler.outputs(outputs(model, x), np.random.default_rng(5), 7)
    np.testing.assert_allclose(
        (np.einsum("ngi,gio->ngo", rows, weight) + bias).reshape(len(rows), -1), expected, atol=1e-5
    )


def test_error_falls_on_images_that_were_not_seen(context):
    model = network()
    plain, refitted = model.copy(), model.copy()
    ctx = context(model, 256)
    options = {"macs": 0.6, "min_keep": 0.25, "multiple": 4}
    Prune(recover=False, **options).run(plain, ctx)
    result = Prune(**options).run(refitted, ctx)
    want = outputs(model, unseen())
    gap = [float(np.square(outputs(m, unseen()) - want).mean()) for m in (plain, refitted)]
    assert gap[1] < 0.3 * gap[0]
    assert result.metrics["refitted"] >= 2
    assert result.metrics["refit_error_after"] < result.metrics["refit_error_before"]


def test_a_channel_that_duplicates_another_costs_nothing(context):
    """The removed channel equals a kept one: refitting the consumer restores the output."""
    model = network()
    expand = model.graph.nodes[2]
    depthwise = next(n for n in model.graph.nodes if n.attrs.get("group", 1) == 32)
    values, taps = np.array(expand.inputs[1].values), np.array(depthwise.inputs[1].values)
    values[1], taps[1] = values[0], taps[0]
    with model.edit():
        expand.inputs[1].values, depthwise.inputs[1].values = values, taps
    labels = propagate(model)
    family = next(f for f in labels.families if f.producers == (expand.name,))
    keep = labels.everything()
    keep[family.groups[1]] = False
    pruned = model.copy()
    remove(pruned, labels, keep)
    want = outputs(model, unseen())
    assert np.abs(outputs(pruned, unseen()) - want).max() > 1e-2 * np.abs(want).max()
    ctx = context(model, 128)
    recover(model, pruned, labels, keep, load_images(model, ctx), ctx)
    assert np.abs(outputs(pruned, unseen()) - want).max() < 1e-2 * np.abs(want).max()


def test_the_original_and_its_arrays_are_untouched(context):
    model = network()
    ctx = context(model, 64)
    before = ctx.reference.to_bytes()
    Prune(macs=0.7, multiple=4).run(model, ctx)
    assert ctx.reference.to_bytes() == before


def test_same_bytes_every_time(context):
    runs = []
    for _ in range(2):
        model = network()
        Prune(macs=0.7, multiple=4).run(model, context(model, 64))
        runs.append(model.to_bytes())
    assert runs[0] == runs[1]


def test_without_images_the_rest_still_works(context):
    model = network()
    result = Prune(macs=0.7, multiple=4).run(model, context(model, 0))
    assert result.changed and "refitted" not in result.metrics


@pytest.mark.parametrize(
    "body",
    ["y = Gemm<transB=1, alpha=2.0>(s, f, g)", "t = Transpose<perm=[1,0]>(f) y = MatMul(s, t)"],
)
def test_layers_that_cannot_be_refitted_are_left(body):
    model = Model.from_text(
        f"{HEADER} <{tensor('f', 4, 3)}, {tensor('g', 4)}> {{ q = GlobalAveragePool(x) s = Flatten(q) {body} }}"
    )
    assert sampler_of(model.graph.nodes[-1]) is None


def test_shared_weights_are_left():
    weights = f"{tensor('w', 3, 3, 1, 1)}, {tensor('f', 4, 3)}"
    model = Model.from_text(
        f"{HEADER} <{weights}> {{ a = Conv(x, w) b = Conv(a, w) q = GlobalAveragePool(b) s = Flatten(q) "
        "y = Gemm<transB=1>(s, f) }"
    )
    assert [sampler_of(n) is None for n in model.graph.nodes if n.op == "Conv"] == [True, True]


def test_intermediate_tensors_start_from_those_already_given(context):
    model = network()
    ctx = context(model, 40)
    fresh = Network(model, load_images(model, ctx, 40), 1)
    kept = Network(model, load_images(model, ctx, 40), 1)
    names = [n.outputs[0].name for n in model.graph.nodes]
    for name in names:
        list(kept.tensors([name], keep=True))
    for a, b in zip(fresh.tensors(names), kept.tensors(names), strict=True):
        for name in names:
            np.testing.assert_allclose(a[name], b[name], atol=1e-5)


def test_memory_does_not_grow_with_the_images(context, monkeypatch):
    """However many images there are, only so many are held."""
    taken: list[int] = []

    class Endless:
        synthetic = True

        def __len__(self) -> int:
            return 10**9

        def part(self, positions: np.ndarray) -> Endless:
            assert positions.size == 512
            return self

        def batches(self, batch_size: int, limit: int | None = None) -> Iterator[np.ndarray]:
            for start in range(0, 10**9, batch_size):
                taken.append(start)
                yield np.zeros((batch_size, 3, 8, 8), np.float32)

    model = network()
    ctx: Context = context(model)
    ctx.calibration = Endless()  # type: ignore[assignment]
    monkeypatch.setattr("graphopt.analysis.layers.running._LOADED", 100_000)
    assert load_images(model, ctx, 512).count <= 192
    assert len(taken) <= 6


def test_layers_behind_a_shuffle_are_found_after_it_became_a_gather(context):
    """Removal drops two nodes there: numbers of nodes are no longer those of the labels."""
    weights = ", ".join([tensor("w", 8, 3, 1, 1), tensor("d", 8, 1, 3, 3), tensor("v", 4, 8, 1, 1), tensor("f", 4, 4)])
    ints = "int64[5] five = {0, 2, 4, 8, 8}, int64[4] four = {0, 8, 8, 8}"
    body = "a = Conv(x, w) r = Reshape(a, five) t = Transpose<perm=[0,2,1,3,4]>(r) u = Reshape(t, four) "
    body += "e = Conv<group=8, pads=[1,1,1,1]>(u, d) z = Conv(e, v) q = GlobalAveragePool(z) s = Flatten(q) "
    model = Model.from_text(f"{HEADER} <{weights}, {ints}> {{ {body} y = Gemm<transB=1>(s, f) }}")
    labels = propagate(model)
    family = next(f for f in labels.families if f.groups.size == 8)
    keep = labels.everything()
    keep[family.groups[:3]] = False
    pruned = model.copy()
    remove(pruned, labels, keep)
    assert "Gather" in {n.op for n in pruned.graph.nodes} and len(pruned.graph.nodes) < len(model.graph.nodes)
    ops = [pruned.graph.nodes[i].op for i in _changed(model, pruned, labels, keep)]
    assert ops == ["Conv", "GlobalAveragePool", "Flatten", "Gemm"]  # the sum over what is left, and what follows it
    ctx = context(model, 128)
    found = recover(model, pruned, labels, keep, load_images(model, ctx), ctx)
    assert found.refitted >= 1 and found.error_after < found.error_before


def test_images_are_mixed(context):
    """Sources hold the images of a class next to each other; halves and firsts must have some of all."""
    model = network()
    ctx: Context = context(model, 128)
    classes = np.repeat(np.arange(8), 16)

    class Sorted:
        synthetic = False

        def __init__(self, which: np.ndarray) -> None:
            self.which = which

        def __len__(self) -> int:
            return len(self.which)

        def part(self, positions: np.ndarray) -> Sorted:
            return Sorted(self.which[positions])

        def batches(self, batch_size: int, limit: int | None = None) -> Iterator[np.ndarray]:
            for start in range(0, len(self), batch_size):
                values = self.which[start : start + batch_size, None, None, None]
                yield np.broadcast_to(values, (len(values), 3, 8, 8)).astype(np.float32)

    ctx.calibration = Sorted(classes)  # type: ignore[assignment]
    one, two = load_images(model, ctx).halves()
    found = [np.concatenate(half.batches)[:, 0, 0, 0] for half in (one, two)]
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), classes)
    assert all(np.unique(half).size == 8 for half in found)
    again = np.concatenate(load_images(model, ctx).batches)[:, 0, 0, 0]
    np.testing.assert_array_equal(again, np.concatenate(found))
