"""Costs by counts against what removal really leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import Model
from graphopt.analysis.cost import cost
from graphopt.analysis.labels import Family, Labels, propagate
from graphopt.ir.values import nbytes
from graphopt.passes.prune.costs import bytes_model, macs_model, params_model, weight_bytes
from graphopt.passes.prune.surgery import remove
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager

from .test_prune import network

SHARED = Path(__file__).resolve().parents[3].parent / "shared"


def drawn(labels: Labels, families: tuple[Family, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random number of channels to keep in each family, and which; some families keep all."""
    keep = labels.everything()
    kept = []
    for family in families:
        size = family.groups.size
        count = size if rng.random() < 0.4 else int(rng.integers(1, size + 1))
        keep[rng.permutation(family.groups)[: size - count]] = False
        kept.append(count)
    return np.array(kept), keep


def assert_counts(model: Model, draws: int = 6, families: slice = slice(None)) -> None:
    labels, before = propagate(model), cost(model)
    chosen = labels.families[families]
    models = {
        "macs": macs_model(labels, chosen, before),
        "params": params_model(model, labels, chosen, before),
        "bytes": bytes_model(model, labels, chosen),
    }
    whole = np.array([[f.groups.size for f in chosen]])
    assert {k: (m.total, m(whole)[0]) for k, m in models.items()} == {
        "macs": (before.macs, before.macs),
        "params": (before.params, before.params),
        "bytes": (weight_bytes(model), weight_bytes(model)),
    }
    rng = np.random.default_rng(0)
    for _ in range(draws):
        kept, keep = drawn(labels, chosen, rng)
        pruned = model.copy()
        remove(pruned, labels, keep)
        after = cost(pruned)
        found = {k: float(m(kept[None])[0]) for k, m in models.items()}
        assert (found["macs"], found["params"]) == (after.macs, after.params)
        # Integers that count channels, which several nodes shared, may be one's own afterwards.
        integers = sum(nbytes(c) for c in pruned.constants() if np.dtype(c.dtype).kind == "i")
        assert abs(found["bytes"] - weight_bytes(pruned)) <= integers


def test_a_chain():
    assert_counts(network())


def test_families_that_are_not_asked_for_stay():
    assert_counts(network(), families=slice(1, 2))


HEADER = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,4,1,1] y) '


def shared(body: str, shapes: dict[str, tuple[int, ...]]) -> Model:
    rng = np.random.default_rng(1)
    weights = ", ".join(
        f"float[{','.join(map(str, s))}] {k} = {{{','.join(f'{v:.3f}' for v in rng.standard_normal(int(np.prod(s))))}}}"
        for k, s in shapes.items()
    )
    return Model.from_text(f"{HEADER} <{weights}> {{ {body} }}")


def test_a_constant_that_layers_share_is_copied_once_they_are_cut_apart():
    """``w`` serves twice in a row, so its axes are read by different families; the vector ``v`` by three."""
    body = """
        a0 = Conv(x, u, v)  a = Relu(a0)
        b0 = Conv(a, w, v)  b = Relu(b0)
        c0 = Conv(b, w, v)  c = Relu(c0)
        p = GlobalAveragePool(c)  y = Conv(p, o)
    """
    model = shared(body, {"u": (8, 3, 3, 3), "w": (8, 8, 1, 1), "v": (8,), "o": (4, 8, 1, 1)})
    assert len(propagate(model).families) == 3
    assert_counts(model, 40)


def test_a_constant_that_is_also_read_whole():
    """``v`` is a bias of channels that may go, and is added where they must stay."""
    body = """
        a0 = Conv(x, u, v)  a = Relu(a0)  p = GlobalAveragePool(a)
        q = Conv(p, o, v)  y = Relu(q)
    """
    assert_counts(shared(body, {"u": (4, 3, 1, 1), "o": (4, 4, 1, 1), "v": (4,)}), 20)


def test_a_constant_that_two_layers_read_alike_counts_once():
    body = """
        a0 = Conv(x, u, v)  r = Relu(a0)  a = PRelu(r, s)  b0 = PRelu(a, s)  b = Add(a, b0)
        p = GlobalAveragePool(b)  y = Conv(p, o)
    """
    shapes = {"u": (6, 3, 1, 1), "v": (6,), "s": (6, 1, 1), "o": (4, 6, 1, 1)}
    assert_counts(shared(body, shapes), 20)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not here")
@pytest.mark.parametrize("name", ["resnet20-cifar10", "mbv3-cifar10", "seed-cnn-cifar10", "vit-cifar10"])
def test_real_models(name, context):
    model = graphopt.load(SHARED / "models" / f"{name}.onnx")
    PassManager(Registry().build("simplify")).run(model, context(model, 8))
    assert_counts(model, 3)
