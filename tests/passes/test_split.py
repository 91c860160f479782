"""Slices that are the parts of a tensor become a Split; parts that overlap, repeat or leave something out do not."""

from __future__ import annotations

import pytest

from graphopt.passes.split import JoinSlices

W = (
    "int64[1] z = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] one = {1}, "
    "int64[1] far = {9223372036854775807}"
)
JOIN = " y = Concat<axis = 1>(q, p)"


@pytest.mark.parametrize("opset", [10, 11, 13, 18])
def test_two_halves(rewritten, net, opset):
    out = rewritten(
        JoinSlices(), net("p = Slice(x, z, two, one) q = Slice(x, two, four, one)" + JOIN, weights=W, opset=opset)
    )
    assert out.ops == ["Split", "Concat"] and out.result.metrics == {"slices_joined": 1}


def test_open_ends_negative_bounds_and_any_order(rewritten, net):
    body = "q = Slice(x, two, far, n) p = Slice(x, z, m, one)" + JOIN
    out = rewritten(JoinSlices(), net(body, weights=W + ", int64[1] n = {-1}, int64[1] m = {-2}"))
    assert out.ops == ["Split", "Concat"]
    assert [t.name for t in out.node("Split").outputs] == ["p", "q"]


def test_uneven_parts(rewritten, net):
    body = "p = Slice(x, z, one, one) q = Slice(x, one, four, one)" + JOIN
    assert rewritten(JoinSlices(), net(body, weights=W)).ops == ["Split", "Concat"]


def test_a_part_that_is_an_output_keeps_its_name(rewritten, net):
    body = "p = Slice(x, z, two, one) y = Slice(x, two, four, one)"
    out = rewritten(JoinSlices(), net(body, y="float[N,2] p, float[N,2] y", weights=W))
    assert out.ops == ["Split"]


@pytest.mark.parametrize(
    "body",
    [
        "p = Slice(x, z, two, one) q = Slice(x, z, two, one)" + JOIN,  # the same part twice
        "p = Slice(x, z, two, one) q = Slice(x, one, four, one) s = Slice(q, z, two, one)"
        " y = Concat<axis = 1>(s, p)",  # they overlap
        "p = Slice(x, z, one, one) q = Slice(x, two, four, one) y = Concat<axis = 1>(p, q, p)",  # one is missing
        "p = Slice(x, z, two, one, two) q = Slice(x, two, four, one) y = Concat<axis = 1>(p, p, q)",  # steps of two
        "p = Slice(x, z, two, z) q = Slice(x, two, far, z) y = Concat<axis = 0>(q, p)",  # an axis of unknown size
        "p = Slice(x, z, two, one) y = Concat<axis = 1>(p, p)",
        "n = Neg(x) p = Slice(x, z, two, one) q = Slice(n, two, four, one)" + JOIN,  # of different tensors
    ],
)
def test_what_stays(rewritten, net, body):
    assert not rewritten(JoinSlices(), net(body, weights=W)).result.changed


def test_a_custom_reader(rewritten):
    text = f"""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[N,4] x) => (float[N,2] y, float[N,2] q) <{W}>
        {{ p = Slice(x, z, two, one) q = Slice(x, two, four, one) y = mine.f(p) }}"""
    out = rewritten(JoinSlices(), text, run=False)
    assert not out.result.changed and "custom operator" in out.reasons["Slice_0"]
