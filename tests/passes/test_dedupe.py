"""Equal initializers are kept once; whatever differs, or is seen from outside, stays."""

from __future__ import annotations

import pytest

from graphopt.passes.dedupe import Deduplicate

Y2 = "float[N,4] y, float[N,4] z"


def test_equal_weights_are_kept_once(rewritten, net):
    out = rewritten(
        Deduplicate(), net("a = Add(x, u) y = Mul(a, v)", weights="float[4] u = {1,2,3,4}, float[4] v = {1,2,3,4}")
    )
    assert out.result.metrics == {"initializers": 1, "bytes": 16}
    assert len(out.after) < len(out.before)


def test_three_of_them_and_branches(rewritten, net):
    body = """a = Add(x, u) b = Mul(a, v)
        y = If (c) <then_branch = t () => (float[N,4] p) { p = Add(b, w) },
                    else_branch = e () => (float[N,4] q) { q = Sub(b, u) }>"""
    weights = ", ".join(f"float[4] {n} = {{1,2,3,4}}" for n in "uvw")
    out = rewritten(Deduplicate(), net(body, x="bool c, float[N,4] x", weights=weights))
    assert out.result.metrics["initializers"] == 2


@pytest.mark.parametrize(
    "weights",
    [
        "float[4] u = {1,2,3,4}, float[4] v = {1,2,3,5}",
        "float[4] u = {1,2,3,4}, float[1,4] v = {1,2,3,4}",
        "float[4] u = {0,2,3,4}, float[4] v = {-0.0,2,3,4}",  # equal by value, not by bits: 1/x would tell
    ],
)
def test_what_differs_stays(rewritten, net, weights):
    assert not rewritten(Deduplicate(), net("a = Add(x, u) y = Mul(a, v)", weights=weights)).result.changed


def test_an_initializer_that_is_an_output_stays(rewritten, net):
    text = net(
        "a = Add(x, u) y = Mul(a, v)",
        y="float[N,4] y, float[4] v",
        weights="float[4] u = {1,2,3,4}, float[4] v = {1,2,3,4}",
    )
    assert not rewritten(Deduplicate(), text).result.changed


def test_what_a_custom_operator_reads_stays(rewritten):
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[N,4] x) => (float[N,4] y) <float[4] u = {1,2,3,4}, float[4] v = {1,2,3,4}>
        { a = Add(x, u) y = mine.f(a, v) }"""
    assert not rewritten(Deduplicate(), text, run=False).result.changed
