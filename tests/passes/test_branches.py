"""If with a constant condition becomes its branch; the names of the branch do not clash with those outside."""

from __future__ import annotations

import pytest

from graphopt.passes.branches import Branches

IF = """y = If (c) <then_branch = t () => (float[N,4] p) { a = Exp(b) p = Add(a, b) },
                    else_branch = e () => (float[N,4] q) { a = Neg(b) q = Mul(a, b) }>"""


@pytest.mark.parametrize(("value", "ops"), [(1, ["Relu", "Exp", "Add"]), (0, ["Relu", "Neg", "Mul"])])
def test_the_branch_taken_replaces_the_if(rewritten, net, value, ops):
    out = rewritten(Branches(), net("b = Relu(x) " + IF, weights=f"bool c = {{{value}}}"))
    assert out.ops == ops and out.result.metrics == {"branches_taken": 1}


def test_two_ifs_with_the_same_names_inside(rewritten, net):
    second = IF.replace("y =", "u =").replace("(b", "(z").replace(", b", ", z")
    out = rewritten(
        Branches(), net("b = Relu(x) " + IF.replace("y =", "z =") + second + " y = Abs(u)", weights="bool c = {1}")
    )
    assert out.ops == ["Relu", "Exp", "Add", "Exp", "Add", "Abs"]


def test_weights_of_the_branch_come_along(rewritten, net):
    body = """y = If (c) <then_branch = t () => (float[N,4] p) <float[4] w = {1,2,3,4}> { p = Add(x, w) },
                          else_branch = e () => (float[N,4] q) <float[4] w = {5,6,7,8}> { q = Add(x, w) }>"""
    for value, first in ((1, 1.0), (0, 5.0)):
        out = rewritten(Branches(), net(body, weights=f"bool c = {{{value}}}"))
        assert out.ops == ["Add"] and out.node("Add").inputs[1].values[0] == first


def test_an_if_in_a_branch(rewritten, net):
    body = """y = If (d) <then_branch = t () => (float[N,4] p) {
            p = If (c) <then_branch = t2 () => (float[N,4] r) { r = Exp(x) },
                        else_branch = e2 () => (float[N,4] s) { s = Neg(x) }> },
        else_branch = e () => (float[N,4] q) { q = Abs(x) }>"""
    out = rewritten(Branches(), net(body, x="bool d, float[N,4] x", weights="bool c = {1}"))
    assert [n.op for n in out.node("If").attrs["then_branch"].nodes] == ["Exp"]


def test_a_branch_that_a_nested_one_reads_from(rewritten, net):
    body = """y = If (c) <then_branch = t () => (float[N,4] p) {
            a = Exp(x)
            p = If (d) <then_branch = t2 () => (float[N,4] r) { r = Add(a, x) },
                        else_branch = e2 () => (float[N,4] s) { s = Neg(a) }> },
        else_branch = e () => (float[N,4] q) { q = Abs(x) }>"""
    out = rewritten(Branches(), net(body, x="bool d, float[N,4] x", weights="bool c = {1}"))
    assert out.ops == ["Exp", "If"]


def test_several_outputs_one_of_them_an_initializer(rewritten, net):
    body = """y, w, z = If (c) <
        then_branch = t () => (float[N,4] p, float[4] k, float[N,4] i) <float[4] k = {1,2,3,4}> {
            p = Exp(x) i = Identity(x) },
        else_branch = e () => (float[N,4] q, float[4] l, float[N,4] r) <float[4] l = {5,6,7,8}> {
            q = Abs(x) r = Neg(x) }>"""
    out = rewritten(Branches(), net(body, y="float[N,4] y, float[4] w, float[N,4] z", weights="bool c = {1}"))
    assert out.counts == {"Exp": 1, "Identity": 2}


def test_a_condition_that_is_computed_stays(rewritten, net):
    out = rewritten(Branches(), net("b = Relu(x) " + IF, x="bool c, float[N,4] x"))
    assert not out.result.changed


def test_a_range_gets_scalars(rewritten, net):
    # ONNX Runtime runs a Range to one element in a vector, but loads no model where that is known beforehand.
    body = """k = If (c) <then_branch = t () => (int64[1] p) { p = Split<axis = 0>(v) },
                          else_branch = e () => (int64 q) { q = Squeeze(v) }>
        r = Range(zero, k, one) f = Cast<to = 1>(r) y = Add(x, f)"""
    weights = "bool c = {1}, int64[1] v = {4}, int64 zero = {0}, int64 one = {1}"
    out = rewritten(Branches(), net(body, weights=weights))
    assert "If" not in out.ops and out.node("Range").inputs[1].shape in ([], ())
