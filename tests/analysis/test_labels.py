"""What propagation must not touch, and how it says so. That removal is exact is tested with the pass."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import Model
from graphopt.analysis.labels import NodeScope, Unsupported, propagate, registry, rule

SHARED = Path(__file__).resolve().parents[2].parent / "shared"

TAIL = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB=1>(f, wf)"


def labels_of(body: str, extra: str = "", x: str = "float[N,3,8,8] x", y: str = "float[N,5] y", domains: str = ""):
    def values(*shape: int) -> str:
        return "{" + ",".join(["0.5"] * int(np.prod(shape))) + "}"

    weights = f"float[8,3,1,1] w = {values(8, 3, 1, 1)}, float[5,8] wf = {values(5, 8)}"
    return propagate(
        Model.from_text(
            f'<ir_version: 8, opset_import: ["" : 17{domains}]> g ({x}) => ({y}) <{weights}{extra}> {{ {body} }}'
        )
    )


def reasons(labels) -> str:
    return " | ".join(f"{x.node} {x.op}: {x.reason}" for x in labels.locked)


def test_families_groups_and_slots():
    found = labels_of("a = Conv(x, w) z = Relu(a)" + TAIL)
    (family,) = found.families
    assert family.groups.size == 8 and [(s.node, s.slot, s.axis) for s in family.slots] == [(0, 1, 0), (4, 1, 1)]
    assert found.macs(found.everything()) == 8 * 3 * 64 + 40


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("a = Conv(x, w) b = Softmax<axis=1>(a) z = Relu(b) ", "Softmax runs over them"),
        ("a = Conv(x, w) m = ReduceMean<axes=[1]>(a) z = Sub(a, m) ", "ReduceMean runs over the channels"),
        ("a = Conv(x, w) m = ArgMax<axis=1>(a) c = Cast<to=1>(m) z = Add(a, c) ", "ArgMax runs over the channels"),
        ("a = Conv(x, w) z = LRN<size=3>(a) ", "LRN takes its statistics"),
        ("a = Conv(x, w) z = Mystery(a) ", "no pruning rule for operator Mystery"),
        ("a = Conv(x, w) z = other.Relu(a) ", "no pruning rule for operator Relu of domain 'other'"),
        (
            "a = Conv(x, w) b = Concat<axis=1>(x, x) c = Concat<axis=1>(b, x) "
            "d = Slice(c, zero, eight, one) z = Add(a, d) ",
            "cannot change",
        ),
        ('a = Conv(x, w) z = Pad<mode="reflect">(a, cpad) ', "crops or mirrors"),
        ("a = Conv(x, w) s = Shape(a) r = Cast<to=1>(s) q = ReduceSum<keepdims=0>(r) z = Mul(a, q) ", "number is read"),
        ("a = Conv(x, w) z = GroupNormalization<num_groups=2>(a, g, g) ", "GroupNormalization takes its statistics"),
        (
            "a = Conv(x, w) b = Reshape(a, flat) c = LayerNormalization(b, n) z = Reshape(c, un) ",
            "LayerNormalization takes",
        ),
    ],
)
def test_what_mixes_channels_locks_them_and_says_why(body, said):
    extra = (
        ", int64[1] zero = {0}, int64[1] eight = {8}, int64[1] one = {1}, int64[1] two = {1}"
        ", int64[8] cpad = {0,1,0,0,0,1,0,0}, float[2] g = {1.0, 1.0}"
        ", int64[2] flat = {0,-1}, int64[4] un = {0,8,8,8}, float[512] n = {" + ",".join(["1.0"] * 512) + "}"
    )
    found = labels_of(body + TAIL, extra, domains=', "other" : 1')
    assert not [f for f in found.families if f.producers], reasons(found)
    assert said in reasons(found) and "Conv" in reasons(found)


def test_outputs_are_locked():
    found = labels_of("y = Conv(x, w)", y="float[N,8,8,8] y")
    assert not found.families and "'y' is an output of the model" in reasons(found)


def test_run_time_shapes_are_followed():
    body = (
        "a = Conv(x, w) s = Shape(x) b = Slice(s, i0, i1) c = Concat<axis=0>(b, neg) f = Reshape(a, c) y = Gemm(f, v)"
    )
    extra = (
        ", int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] neg = {512}, float[512,5] v = {"
        + ",".join(["1.0"] * 2560)
        + "}"
    )
    found = labels_of(body, extra)
    assert [f.groups.size for f in found.families] == [8], reasons(found)


def test_run_time_shapes_that_merge_channels_with_the_batch_lock():
    """How many there are per image is in no entry that could be rewritten."""
    body = (
        "a = Conv(x, w) p = GlobalAveragePool(a) s = Shape(x) n = Gather(s, i) m = Mul(n, eight) "
        "c = Concat<axis=0>(m, one) f = Reshape(p, c) y = Gemm(f, v)"
    )
    extra = ", int64[1] i = {0}, int64[1] eight = {8}, int64[1] one = {1}, float[1,5] v = {1.0,1.0,1.0,1.0,1.0}"
    found = labels_of(body, extra, y="float[M,5] y")
    assert not found.families and "fold constants first" in reasons(found)


def test_reading_the_batch_size_locks_nothing():
    body = "a = Conv(x, w) s = Shape(a) n = Gather(s, i) z = Relu(a) c = Cast<to=1>(n) q = Sqrt(c) "
    found = labels_of(body + TAIL, ", int64[1] i = {0}")
    assert len(found.families) == 1


def test_subgraphs_lock_what_they_read():
    body = (
        "a = Conv(x, w) s = ReduceSum<keepdims=0>(x) t = Greater(s, h) "
        "z = If(t)<then_branch = g1 () => (float[N,8,8,8] o) { o = Identity(a) }, "
        "else_branch = g2 () => (float[N,8,8,8] o) { o = Neg(a) }> "
    )
    found = labels_of(body + TAIL, ", float[1] h = {0.0}")
    assert not [f for f in found.families if f.producers] and "operator If" in reasons(found)


def test_a_custom_rule_replaces_the_lock(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    @rule("Mystery")
    def mystery(scope: NodeScope) -> None:
        scope.out(scope.axes(0))

    found = labels_of("a = Conv(x, w) z = Mystery(a)" + TAIL)
    assert not [f for f in found.families if f.producers]  # its output shape is unknown, so pooling's is too

    @rule("Relu")
    def refuse(scope: NodeScope) -> None:
        raise Unsupported("not today")

    found = labels_of("a = Conv(x, w) z = Relu(a)" + TAIL)
    assert not [f for f in found.families if f.producers] and "not today" in reasons(found)


def test_attributes_that_make_no_sense_lock_instead_of_crashing():
    found = labels_of("a = Conv(x, w) z = Transpose<perm=[0,1,9,3]>(a) u = Relu(z) " + TAIL.replace("(z)", "(u)", 1))
    assert not [f for f in found.families if f.producers] and "Transpose" in reasons(found)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not here")
def test_a_model_of_many_channels_takes_well_under_two_seconds():
    model = graphopt.load(SHARED / "models" / "efficientnet-lite0.onnx")
    start = time.process_time()
    propagate(model)
    assert time.process_time() - start < 2  # other processes do not count
