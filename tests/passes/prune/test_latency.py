"""The latency target: layers out of nodes, the model of latency, and the loop that measures and corrects.

Times come out of tables that the tests fill with formulas, so that no test depends on what the machine does meanwhile;
that real kernels are timed is tested with the runtime.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from graphopt import Model, PassError
from graphopt.analysis.cost import cost, with_batch
from graphopt.analysis.labels import propagate
from graphopt.passes.prune import Prune, faster, latency
from graphopt.passes.prune.latency import LatencyModel, timed_counts
from graphopt.passes.prune.layers import stretches
from graphopt.passes.prune.surgery import remove
from graphopt.runtime.latency_table import LatencyTable
from graphopt.runtime.layer_latency import Layer, layer_microseconds

from .test_prune import network

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,4,1,1] y) '


def depthwise() -> Model:
    """Everything that a layer can be: plain, depthwise and pointwise convolutions, a gate, activations."""
    rng = np.random.default_rng(0)
    shapes = {"u": (16, 3, 3, 3), "d": (16, 1, 3, 3), "s": (16, 16, 1, 1), "b": (16,), "o": (4, 16, 1, 1)}
    weights = ", ".join(
        f"float[{','.join(map(str, s))}] {k} = {{{','.join(f'{v:.3f}' for v in rng.standard_normal(int(np.prod(s))))}}}"
        for k, s in shapes.items()
    )
    body = """
        a0 = Conv(x, u, b)  a = Clip(a0, low, high)  d0 = Conv<group=16, pads=[1,1,1,1]>(a, d, b)  e = Relu(d0)
        p = GlobalAveragePool(e)  g0 = Conv(p, s, b)  g = Sigmoid(g0)  m = Mul(e, g)
        q = GlobalAveragePool(m)  y = Conv(q, o)
    """
    return Model.from_text(f"{HEADER} <{weights}, float low = {{0.0}}, float high = {{6.0}}> {{ {body} }}")


def counted(layer: Layer) -> float:
    """A time made up of the layer's description: a constant, its tensors, and its products."""
    sizes = [np.prod(o.shape) for step in layer.steps for o in step.operands if o is not None]
    work = 0.0
    if layer.steps[0].op in ("Conv", "Gemm"):
        x, w = layer.steps[0].operands[:2]
        work = float(np.prod(w.shape) * np.prod(x.shape[2:]))
    return float(5 + 0.01 * sum(sizes) + 0.02 * work)


def test_layers_have_the_shapes_that_removal_leaves():
    model = depthwise()
    labels = propagate(model)
    families = labels.families
    layers = stretches(with_batch(model, 1), labels, families)
    assert [step.op for layer in layers for step in layer.at(np.array([16] * len(families))).steps] == (
        "Conv Clip Conv Relu GlobalAveragePool Conv Sigmoid Mul GlobalAveragePool Conv".split()
    )
    keep, kept = labels.everything(), []
    for k, family in enumerate(families):
        keep[family.groups[: 4 * k + 5]] = False
        kept.append(family.groups.size - 4 * k - 5)
    pruned = model.copy()
    remove(pruned, labels, keep)
    after = stretches(with_batch(pruned, 1), propagate(pruned), propagate(pruned).families)
    full = np.array([f.groups.size for f in propagate(pruned).families])
    assert [layer.at(np.array(kept)).key for layer in layers] == [layer.at(full).key for layer in after]
    for layer in layers:
        assert layer_microseconds(layer.at(np.array(kept))) > 0  # the runtime runs them all


def test_a_time_that_is_linear_in_each_count_is_modelled_exactly():
    model = depthwise()
    labels = propagate(model)
    layers = stretches(with_batch(model, 1), labels, labels.families)
    sizes = np.array([f.groups.size for f in labels.families])
    counts = [timed_counts(np.array([16, 12, 8, 4]), 16)] * len(sizes)
    found = LatencyModel(layers, counts, sizes, 1e4, counted)
    assert found.total == pytest.approx(1e4)
    rng = np.random.default_rng(1)
    for _ in range(20):
        kept = np.array([int(rng.choice([4, 8, 12, 16])) for _ in sizes])
        want = 1e4 - sum(counted(x.at(sizes)) - counted(x.at(kept)) for x in layers)
        assert found(kept[None])[0] == pytest.approx(want, rel=1e-6)


def test_counts_to_time_are_few_and_hold_both_ends():
    assert timed_counts(np.array([16, 8]), 16).tolist() == [16, 8]
    assert timed_counts(np.array([8]), 32).tolist() == [32, 8]  # one whose count was given
    many = timed_counts(np.arange(1280, 320, -8), 1280)
    assert many.size == 10 and many[0] == 1280 and many[-1] == 328


@pytest.fixture
def clockwork(monkeypatch, context, tmp_path):
    """Contexts on a machine where layers take what ``counted`` says, in blocks of 16 output channels, and whole models
    what their convolutions do and a bit, times a factor that layers alone do not show."""

    def blocks(layer: Layer) -> float:
        grown = re.sub(r"float32\[(\d+)x", lambda m: f"float32[{-(-int(m[1]) // 16) * 16}x", layer.key)
        return counted(layer) if layer.key == grown else 1.1 * counted(layer)

    def whole(model: Model) -> float:
        return 50 + cost(model).macs ** 0.9 / 300

    monkeypatch.setattr(latency, "layer_microseconds", lambda layer, threads: blocks(layer))
    monkeypatch.setattr(faster.Clock, "_kernels", lambda self, form: 2e4)
    monkeypatch.setattr(
        faster.Clock,
        "_ratio",
        lambda self, one, two: whole(Model.from_proto(_proto(two))) / whole(Model.from_proto(_proto(one))),
    )

    def make(model: Model, path: Path | None = None):
        ctx = context(model)
        ctx.latency_table = LatencyTable(path or tmp_path / "table.json")
        return ctx

    return make


def _proto(form: bytes):
    import onnx

    return onnx.load_from_string(form)


@pytest.mark.parametrize("target", [0.8, 0.6, 0.4])
def test_the_measured_latency_meets_the_target(clockwork, target):
    model = network(width=64)
    before = model.copy()
    result = Prune(latency=target, multiple=1, min_keep=0.1, recover=False, importance="l2").run(
        model, clockwork(model)
    )
    real = (50 + cost(model).macs ** 0.9 / 300) / (50 + cost(before).macs ** 0.9 / 300)
    assert result.metrics["latency_realised"] == pytest.approx(real, abs=1e-4)
    assert real == pytest.approx(target, abs=0.03)
    assert {"latency_planned", "latency_tries", "latency_table"} <= result.metrics.keys()


def test_the_same_table_gives_the_same_bytes_and_nothing_is_measured_again(clockwork, tmp_path, monkeypatch):
    first, second = network(), network()
    one = Prune(latency=0.6, recover=False).run(first, clockwork(first))
    for name in ("_ratio", "_kernels"):
        monkeypatch.setattr(faster.Clock, name, None)
    monkeypatch.setattr(latency, "layer_microseconds", None)
    two = Prune(latency=0.6, recover=False).run(second, clockwork(second))
    assert first.to_bytes() == second.to_bytes() and one.metrics == two.metrics


def test_a_model_that_is_fast_enough_already_is_left_alone(clockwork):
    model = network()
    ctx = clockwork(model)
    ctx.reference = network(width=64)
    before = model.fingerprint()
    result = Prune(latency=0.9, recover=False).run(model, ctx)
    assert not result.changed and model.fingerprint() == before
    assert result.metrics["latency_realised"] < 0.9


def test_what_cannot_be_reached_is_said(clockwork):
    model = network()
    ctx = clockwork(model)
    said: list[str] = []
    ctx.progress.warn = said.append  # type: ignore[method-assign]
    result = Prune(latency=0.1, min_keep=0.5, recover=False, importance="l2").run(model, ctx)
    assert result.changed and any("of the latency remains where 10% was asked for" in s for s in said)
    narrow = network(width=8)
    with pytest.raises(PassError, match="nothing could be pruned"):
        Prune(latency=0.5).run(narrow, clockwork(narrow))


@pytest.mark.parametrize(
    ("points", "aim"),
    [
        ([(1.0, 1.0)], 0.6),
        ([(1.0, 0.8)], 0.75),
        ([(1.0, 1.0), (0.6, 0.5)], 0.68),
        ([(1.0, 1.0), (0.6, 0.7)], 0.4667),  # further on the same line
        ([(1.0, 1.0), (0.6, 0.5), (0.7, 0.7)], 0.65),
        ([(1.0, 1.0), (0.6, 0.5), (0.7, 0.62), (0.67, 0.63)], 0.6538),  # what takes longer was planned for less
        ([(1.0, 1.0), (0.6, 1.0)], 0.36),  # nothing gained yet
    ],
)
def test_the_next_aim(points, aim):
    assert faster._aim(points, 0.6) == pytest.approx(aim, abs=1e-3)
