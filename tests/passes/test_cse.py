"""Common subexpressions: what is computed twice, and what only looks like it."""

from __future__ import annotations

import pytest

from graphopt.passes.cse import CommonSubexpressions

TWO = "float[N,4] y, float[N,4] z"


def test_whole_chains_are_merged(rewritten, net):
    out = rewritten(
        CommonSubexpressions(),
        net("a = Relu(x) b = Relu(x) c = Exp(a) d = Exp(b) e = Add(c, d) y = Neg(e)"),
    )
    assert out.ops == ["Relu", "Exp", "Add", "Neg"] and out.result.metrics == {"repeated_nodes": 2}


def test_the_first_one_takes_over_a_graph_output(rewritten, net):
    out = rewritten(CommonSubexpressions(), net("a = Relu(x) z = Relu(x) y = Exp(a)", y=TWO))
    assert out.ops == ["Relu", "Exp"]


def test_a_later_node_reads_the_output_that_came_first(rewritten, net):
    out = rewritten(CommonSubexpressions(), net("z = Relu(x) a = Relu(x) y = Exp(a)", y=TWO))
    assert out.ops == ["Relu", "Exp"] and out.node("Exp").inputs[0].name == "z"


def test_several_outputs(rewritten, net):
    out = rewritten(
        CommonSubexpressions(),
        net(
            """a, b = Split<axis = 1>(x, s) c, d = Split<axis = 1>(x, s)
            e = Add(a, d) f = Sub(c, b) y = Concat<axis = 1>(e, f)""",
            weights="int64[2] s = {2, 2}",
        ),
    )
    assert out.counts["Split"] == 1


def test_nodes_inside_a_branch(rewritten, net):
    body = """y = If (c) <then_branch = t () => (float[N,4] p) { a = Exp(x) b = Exp(x) p = Add(a, b) },
                          else_branch = e () => (float[N,4] q) { q = Neg(x) }>"""
    out = rewritten(CommonSubexpressions(), net(body, x="bool c, float[N,4] x"))
    assert [n.op for n in out.node("If").attrs["then_branch"].nodes] == ["Exp", "Add"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Relu(x) b = Abs(x) e = Add(a, b) y = Neg(e)",  # other operators
        "a = LeakyRelu<alpha = 0.1>(x) b = LeakyRelu<alpha = 0.2>(x) y = Add(a, b)",  # other attributes
        "a = Softmax<axis = 1>(x) b = Softmax<axis = 0>(x) y = Add(a, b)",
        "a = Clip(x, k) b = Clip(x, , k) y = Add(a, b)",  # the same constant at another place
        "a = Sub(x, k) b = Sub(k, x) y = Add(a, b)",  # the other way round
    ],
)
def test_different_nodes_stay(rewritten, net, body):
    out = rewritten(CommonSubexpressions(), net(body, weights="float k = {0.5}"))
    assert not out.result.changed


def test_two_outputs_of_the_graph_stay_and_say_why(rewritten, net):
    out = rewritten(CommonSubexpressions(), net("y = Relu(x) z = Relu(x)", y=TWO))
    assert out.ops == ["Relu", "Relu"]
    assert "is an output of the graph" in out.reasons["Relu_1"]


def test_what_a_branch_captures_keeps_its_producer(rewritten, net):
    body = """a = Relu(x) b = Relu(x) m = Neg(a)
        y = If (c) <then_branch = t () => (float[N,4] p) { p = Add(b, m) },
                    else_branch = e () => (float[N,4] q) { q = Add(m, m) }>"""
    out = rewritten(CommonSubexpressions(), net(body, x="bool c, float[N,4] x"))
    assert out.counts["Relu"] == 2 and "a subgraph reads" in out.reasons["Relu_1"]


def test_random_numbers_are_drawn_twice(rewritten, net):
    body = "a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b)"
    assert rewritten(CommonSubexpressions(), net(body), run=False).counts["RandomNormalLike"] == 2


def test_custom_operators_stay(rewritten):
    text = """<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[N,4] x) => (float[N,4] y) { a = mine.f(x) b = mine.f(x) y = Add(a, b) }"""
    assert rewritten(CommonSubexpressions(), text, run=False).ops == ["f", "f", "Add"]
