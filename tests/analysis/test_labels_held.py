"""What locked channels hold back, against counting with and without them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import Model
from graphopt.analysis.cost import cost
from graphopt.analysis.labels import Labels, held_back, propagate, why_not

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def build(body: str, extra: dict[str, tuple[int, ...]] | None = None) -> Model:
    shapes = {"w": (8, 3, 1, 1), "v": (8, 8, 3, 3), "u": (16, 8, 1, 1), "wf": (5, 16)} | (extra or {})
    weights = ", ".join(
        f"float[{','.join(map(str, s))}] {k} = {{{','.join(['0.5'] * int(np.prod(s)))}}}" for k, s in shapes.items()
    )
    tail = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB=1>(f, wf)"
    return Model.from_text(
        f'<ir_version: 8, opset_import: ["" : 17, "other" : 1]> g (float[N,3,8,8] x) => (float[N,5] y) '
        f"<{weights}, int64[2] parts = {{4, 4}}, int64[1] last = {{3}}> "
        f"{{ {body} {tail} }}"
    )


def without(labels: Labels, groups: np.ndarray) -> int:
    """MACs that go with some groups, counted from the definition."""
    keep = labels.everything()
    keep[groups] = False
    return labels.macs(labels.everything()) - labels.macs(keep)


CHAIN = "a = Conv(x, w) b = Conv<pads=[1,1,1,1]>(a, v) c = Add(a, b) z = Conv(c, u)"


@pytest.mark.parametrize("seed", range(20))
def test_holding_is_what_goes_with_the_groups(seed):
    labels = propagate(build(CHAIN))
    rng = np.random.default_rng(seed)
    groups = rng.permutation(labels.count)[: rng.integers(0, labels.count + 1)]
    assert labels.holding(groups) == without(labels, groups)
    assert labels.holding(np.concatenate([groups, groups])) == without(labels, groups)


def test_each_locked_axis_says_how_many_channels_and_macs():
    labels = propagate(build(CHAIN.replace("z = Conv(c, u)", "d = Softmax<axis=1>(c) z = Conv(d, u)")))
    entries = {x.node: x for x in labels.locked}
    stream = labels.tensors["c"][1]
    assert stream is not None
    nodes = [n for n in entries if "Softmax" in entries[n].reason]
    assert len(nodes) == 2  # both convolutions make the channels of the sum, which are the same channels
    for node in nodes:
        assert entries[node].channels == 8 and entries[node].macs == without(labels, stream)
    first, second = 8 * 3 * 64, 8 * 8 * 9 * 64
    assert entries[nodes[0]].macs == first + second + 16 * 8 * 64
    (output,) = (x for x in labels.locked if "output of the model" in x.reason)
    assert (output.channels, output.macs) == (5, 5 * 16)


def test_a_part_of_the_channels_counts_for_that_part():
    body = (
        "a = Conv(x, w) l, r = Split<axis=1>(a, parts) s = Softmax<axis=1>(r) c = Concat<axis=1>(l, s) z = Conv(c, u)"
    )
    labels = propagate(build(body))
    (entry,) = (x for x in labels.locked if "Softmax" in x.reason)
    assert entry.channels == 4 and "4 of its 8" in entry.reason
    assert entry.macs == 4 * 3 * 64 + 4 * 16 * 64


def test_an_operator_without_a_rule_holds_back_what_it_touches():
    labels = propagate(build("a = Conv(x, w) m = other.Mystery(a) b = Conv<pads=[1,1,1,1]>(a, v) z = Conv(b, u)"))
    (entry,) = (x for x in labels.locked if x.unfollowed)
    stream = labels.tensors["a"][1]
    assert stream is not None and entry.op == "Mystery"
    assert (entry.channels, entry.macs) == (8, without(labels, stream))


def test_a_layer_that_no_rule_follows_holds_back_its_own():
    """A product with a vector: its MACs are in the model's cost, but in no contraction."""
    body = "a = Conv(x, w) m = MatMul(a, k) t = Unsqueeze(m, last) z = Conv(t, u)"
    model = build(body, {"k": (8,)})
    labels, whole = propagate(model), cost(model)
    own = whole.by_node[next(n.name for n in model.graph.nodes if n.op == "MatMul")].macs
    entry = why_not(labels, whole)[0]
    assert own and entry.op == "MatMul"
    groups = labels.tensors["a"][1]
    assert groups is not None
    assert entry.macs == without(labels, groups) + own
    assert held_back(labels, whole) == labels.holding(np.flatnonzero(labels.fixed)) + own


def test_the_worst_comes_first_and_the_total_counts_once():
    model = build(CHAIN.replace("z = Conv(c, u)", "d = Softmax<axis=1>(c) z = Conv(d, u)"))
    labels, whole = propagate(model), cost(model)
    entries = why_not(labels, whole)
    assert [x.macs for x in entries] == sorted((x.macs for x in entries), reverse=True)
    total = held_back(labels, whole)
    assert total == without(labels, np.flatnonzero(labels.fixed)) <= whole.macs
    assert total < sum(x.macs for x in entries)  # the two that name the same channels do not count twice


def test_nothing_locked_but_the_output_holds_back_next_to_nothing():
    model = build(CHAIN)
    labels, whole = propagate(model), cost(model)
    assert held_back(labels, whole) == 5 * 16
    family = labels.families[0]
    assert held_back(labels, whole, [family.groups]) == without(
        labels, np.concatenate([np.flatnonzero(labels.fixed), family.groups])
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not here")
def test_the_report_of_a_transformer(tmp_path):
    model = graphopt.load(SHARED / "models" / "vit-cifar10.onnx")
    labels, whole = propagate(model), cost(model)
    start = time.perf_counter()
    entries = why_not(labels, whole)
    assert time.perf_counter() - start < 1
    assert "LayerNormalization" in entries[0].reason and entries[0].macs > 0.5 * whole.macs
    assert json.dumps([x.macs for x in entries])  # plain integers
