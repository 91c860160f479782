"""The proof where a model amplifies rounding: piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import build

from graphopt import Model
from graphopt.analysis.labels import propagate
from graphopt.passes.prune import proof
from graphopt.passes.prune.pieces import compare_pieces
from graphopt.runtime.feeds import random_feeds

# A sine of large arguments: what differs by rounding before it has nothing in common behind it.
CHAOS = """
    factor = Constant<value_float = 1000000.0>()
    a = Conv(x, w)
    b = GlobalAveragePool(a)
    c = Flatten(b)
    d = Gemm(c, v)
    e = Mul(d, factor)
    f = Sin(e)
    y = Gemm<transB=1>(f, wf, bf)
"""
WEIGHTS = {"w": (96, 3, 3, 3), "v": (96, 96), "wf": (5, 96), "bf": (5,)}


def chaotic() -> Model:
    return build(CHAOS, WEIGHTS)


def thinned(model: Model):
    labels = propagate(model)
    keep = labels.everything()
    for family in labels.families:
        keep[family.groups[::3]] = False
    return labels, keep


def test_what_rounding_hides_is_proven_piece_by_piece():
    model = chaotic()
    labels, keep = thinned(model)
    feeds = random_feeds(model.to_bytes(), (1, 3))
    pruned = model.copy()
    proof.remove(pruned, labels, keep)
    whole = proof.masked(model, labels, keep)
    assert not proof.compare_outputs(whole.to_bytes(), pruned.to_bytes(), feeds).equal
    verdict = proof.check(model, labels, keep, feeds)
    assert verdict.holds and verdict.error < proof.RTOL, verdict


@pytest.mark.parametrize("name", ["w", "v", "wf"])
def test_a_mistake_in_any_piece_is_found(name, monkeypatch):
    model = chaotic()
    labels, keep = thinned(model)
    right = proof.remove

    def wrong(pruned, labels, keep):
        right(pruned, labels, keep)
        with pruned.edit() as graph:
            weight = next(t for t in graph.tensors().values() if t.name == name)
            values = weight.values.copy()
            values.flat[0] += 0.05
            weight.values = values

    monkeypatch.setattr(proof, "remove", wrong)
    verdict = proof.check(model, labels, keep, random_feeds(model.to_bytes(), (1, 3)))
    assert not verdict.holds and "differs" in verdict.reason


def test_the_piece_is_named():
    model = chaotic()
    labels, keep = thinned(model)
    pruned = model.copy()
    proof.remove(pruned, labels, keep)
    with pruned.edit() as graph:
        weight = graph.tensors()["wf"]
        weight.values = weight.values * np.float32(1.1)
    feeds = random_feeds(model.to_bytes(), (2,))
    found = compare_pieces(proof.masked(model, labels, keep), pruned, labels, keep, feeds, 1e-4)
    assert not found.equal and found.output == "y"
