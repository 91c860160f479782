"""Shape operators in a row: those that cancel by place or by axis, and those that only look like it."""

from __future__ import annotations

import pytest

from graphopt.passes.cancel import Cancel
from graphopt.passes.eliminate import Eliminate


def test_an_axis_that_is_only_carried_along(rewritten, net):
    body = "a = Unsqueeze(x, z) e = Transpose<perm = [3,1,2,0,4]>(a) y = Squeeze(e, w)"
    out = rewritten(
        Cancel(),
        net(body, x="float[5,N,3,8] x", y="float[3,5,N,8] y", weights="int64[1] z = {0}, int64[1] w = {-2}"),
    )
    assert out.ops == ["Transpose"] and out.node("Transpose").attrs["perm"] == [2, 0, 1, 3]


def test_several_carried_axes_before_opset_13(rewritten, net):
    body = "a = Unsqueeze<axes = [0,2]>(x) e = Transpose<perm = [3,2,1,0]>(a) y = Squeeze<axes = [1,3]>(e)"
    out = rewritten(Cancel(), net(body, x="float[N,4] x", y="float[4,N] y", opset=11))
    assert out.ops == ["Transpose"] and out.node("Transpose").attrs["perm"] == [1, 0]


@pytest.mark.parametrize(
    ("body", "y"),
    [
        ("a = Unsqueeze(x, z) e = Transpose<perm = [2,1,0]>(a) y = Squeeze(e, o)", "float[4,1] y"),  # another axis
        (
            "a = Unsqueeze(x, z) e = Transpose<perm = [1,0,2]>(a) s = Squeeze(e, o) n = Abs(e) m = Squeeze(n, o)"
            " y = Add(s, m)",
            "float[1,4] y",
        ),  # others read the Transpose
    ],
)
def test_axes_that_are_not(rewritten, net, body, y):
    text = net(body, x="float[1,4] x", y=y, weights="int64[1] z = {0}, int64[1] o = {1}")
    assert "Squeeze" in rewritten(Cancel(), text).ops


def test_a_transpose_of_axes_of_size_one_is_a_reshape(rewritten, net):
    body = "a = Transpose<perm = [0,2,1,3]>(x) y = Relu(a)"
    out = rewritten(Cancel(), net(body, x="float[N,1,7,8] x", y="float[N,7,1,8] y"))
    assert out.ops == ["Reshape", "Relu"]
    assert not rewritten(Cancel(), net(body, x="float[N,2,7,8] x", y="float[N,7,2,8] y")).result.changed


@pytest.mark.parametrize(
    ("target", "gone"),
    [("-1,197,64", True), ("0,-1,64", True), ("0,197,64", True), ("-1,64,197", False), ("-1,197,32", False)],
)
def test_a_reshape_to_the_dimensions_at_their_places(rewritten, net, target, gone):
    text = net(
        "a = Relu(x) y = Reshape(a, s)",
        x="float[M,197,64] x",
        y="float[A,B,C] y",
        weights=f"int64[3] s = {{{target}}}",
    )
    assert (rewritten(Eliminate(), text).ops == ["Relu"]) is gone


KEPT = "int64[3] s = {-1,4,64}"


def test_a_reshape_that_moves_open_dimensions_stays(rewritten, net):
    text = net(
        "a = Relu(x) y = Reshape(a, s)", x="float[M,P,64] x", y="float[A,B,C] y", weights="int64[3] s = {-1,4,64}"
    )
    assert not rewritten(Eliminate(), text, run=False).result.changed


@pytest.mark.parametrize(
    ("bounds", "gone"),
    [
        ("int64[2] s = {0,0}, int64[2] e = {7,9223372036854775807}", True),
        ("int64[2] s = {-7,0}, int64[2] e = {100,7}", True),
        ("int64[2] s = {0,1}, int64[2] e = {7,7}", False),
        ("int64[2] s = {0,0}, int64[2] e = {7,6}", False),
        ("int64[2] s = {0,0}, int64[2] e = {7,-1}", False),
        ("int64[2] s = {0,-6}, int64[2] e = {7,7}", False),
    ],
)
def test_a_slice_that_takes_everything(rewritten, net, bounds, gone):
    text = net(
        "a = Relu(x) y = Slice(a, s, e, k)",
        x="float[N,7,7] x",
        y="float[N,A,B] y",
        weights=bounds + ", int64[2] k = {1,2}",
    )
    assert (rewritten(Eliminate(), text).ops == ["Relu"]) is gone


def test_a_slice_of_an_open_axis(rewritten, net):
    for end, gone in ((2**31 - 1, True), (100, False)):
        weights = f"int64[1] s = {{0}}, int64[1] e = {{{end}}}, int64[1] k = {{0}}"
        text = net("a = Relu(x) y = Slice(a, s, e, k)", y="float[A,4] y", weights=weights)
        assert (rewritten(Eliminate(), text).ops == ["Relu"]) is gone


CONCATS = "a = Abs(x) b = Concat<axis = 1>(x, a) c = Concat<axis = -2>(b, a, w) y = Concat<axis = 1>(a, c)"


def test_a_concat_takes_in_those_that_only_it_reads(rewritten, net):
    weights = "float[1,2,2] w = {1,2,3,4}"
    out = rewritten(Cancel(), net(CONCATS, x="float[1,3,2] x", y="float[1,14,2] y", weights=weights))
    assert out.ops == ["Abs", "Concat"] and out.result.metrics["concats"] >= 2
    assert [t.name for t in out.node("Concat").inputs] == ["a", "x", "a", "a", "w"]


@pytest.mark.parametrize(
    "body",
    [
        "b = Concat<axis = 1>(x, x) d = Abs(b) y = Concat<axis = 1>(b, d)",  # another reader
        "b = Concat<axis = 2>(x, x) y = Concat<axis = 1>(b, b)",  # another axis
        "b = Concat<axis = -2>(x, x) d = Concat<axis = -1>(b, b) y = Abs(d)",
    ],
)
def test_concats_that_stay(rewritten, net, body):
    text = net(body, x="float[1,3,2] x", y="float[A,B,C] y")
    assert not rewritten(Cancel(), text).result.changed


def test_a_concat_that_is_an_output_stays(rewritten, net):
    text = net(
        "b = Concat<axis = 1>(x, x) y = Concat<axis = 1>(b, x)", x="float[1,3] x", y="float[1,6] b, float[1,9] y"
    )
    assert not rewritten(Cancel(), text).result.changed
