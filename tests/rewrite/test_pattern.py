"""Patterns: what matches, in which order, and what a near match says."""

from __future__ import annotations

import pytest

from graphopt import Model
from graphopt.rewrite import Any, Const, Match, Op, Workbench, pattern_rule
from graphopt.rewrite.pattern import Either, depth, match, product, roots, scaled

X = Any("x")


def last(body: str, x: str = "float[N,4] x", y: str = "float[N,4] y", weights: str = "", opset: int = 17):
    """A workbench of a small model, and the node that writes y."""
    given = f"<{weights}>" if weights else ""
    text = f'<ir_version: 8, opset_import: ["" : {opset}, "other" : 1]>\nnet ({x}) => ({y}) {given} {{ {body} }}'
    bench = Workbench(Model.from_text(text))
    return bench, next(n for n in bench.nodes() if any(t.name == "y" for t in n.outputs))


def found(pattern, body: str, **given):
    bench, node = last(body, **given)
    return match(bench, node, pattern)


def test_a_tree_and_its_names():
    out = found(Op("Exp", Op("Neg", X, name="neg")), "a = Neg(x) y = Exp(a)")
    assert isinstance(out, Match)
    assert out["x"].name == "x" and out.nodes["neg"].op == "Neg" and [n.op for n in out.inside] == ["Neg"]


@pytest.mark.parametrize("op", ["Add", "Mul", "Max", "Min"])
def test_commutative_operators_match_in_both_orders(op):
    pattern = Op(op, X, Op("Exp", X))
    assert isinstance(found(pattern, f"a = Exp(x) y = {op}(x, a)"), Match)
    assert isinstance(found(pattern, f"a = Exp(x) y = {op}(a, x)"), Match)


@pytest.mark.parametrize("op", ["Sub", "Div"])
def test_others_match_in_one(op):
    pattern = Op(op, X, Op("Exp", X))
    assert isinstance(found(pattern, f"a = Exp(x) y = {op}(x, a)"), Match)
    assert found(pattern, f"a = Exp(x) y = {op}(a, x)") is None


def test_operators_of_more_inputs_have_one_order():
    assert found(Op("Max", Op("Exp", X), X), "a = Exp(x) y = Max(x, a, a)") is None


def test_one_name_is_one_tensor():
    pattern = Op("Mul", X, Op("Sigmoid", X))
    assert found(pattern, "z = Neg(x) a = Sigmoid(z) y = Mul(x, a)") is None


def test_one_operator_may_be_two_nodes():
    same = Op("Neg", X)
    assert len(found(Op("Add", same, same), "a = Neg(x) b = Neg(x) y = Add(a, b)").inside) == 2
    assert len(found(Op("Add", same, same), "a = Neg(x) y = Add(a, a)").inside) == 1


def test_attributes_and_alternative_operators():
    pattern = Op("Transpose|Neg", X, perm=[1, 0])
    assert isinstance(found(pattern, "y = Transpose <perm = [1,0]> (x)", y="float[4,N] y"), Match)
    assert found(pattern, "y = Transpose <perm = [0,1]> (x)") is None
    assert isinstance(found(Op("Abs|Neg", X), "y = Neg(x)"), Match)


def test_a_custom_operator_of_the_name_is_another():
    assert found(Op("Exp", Op("Neg", X)), "a = other.Neg(x) y = Exp(a)") is None


# --- constants ------------------------------------------------------------------------------------------------

HALF = Op("Mul", X, Const(value=0.5))


@pytest.mark.parametrize("weights", ["float h = {0.5}", "float[1] h = {0.5}", "float[1,1] h = {0.500001}"])
def test_a_number(weights):
    assert isinstance(found(HALF, "y = Mul(x, h)", weights=weights), Match)


@pytest.mark.parametrize(
    ("weights", "y", "reason"),
    [
        ("float h = {0.51}", "float[N,4] y", "'h' is 0.51"),
        ("float[4] h = {0.5,0.5,0.5,0.5}", "float[N,4] y", "several values, not 0.5"),
        ("float[1,1,1] h = {0.5}", "float[1,N,4] y", "'h' has more axes"),
    ],
)
def test_another_number_is_a_near_match(weights, y, reason):
    assert reason in found(HALF, "y = Mul(x, h)", weights=weights, y=y)


def test_axes_on_an_operand_of_unknown_rank():
    body = "a = Reshape(x, s) y = Mul(a, h)"
    given = {"x": "float[N,4] x, int64[k] s", "y": "float[A,B] y"}
    assert "more axes than what it is combined with, or than is known" in found(
        HALF, body, weights="float[1] h = {0.5}", **given
    )
    assert isinstance(found(HALF, body, weights="float h = {0.5}", **given), Match)


def test_a_type_of_few_digits_is_taken_at_its_word():
    half = {"x": "float16[N,4] x", "y": "float16[N,4] y"}
    root = Op("Mul", X, Const(value=0.70710678))
    # The text format gives float16 by its bits: 0.70703125 and 0.7002.
    assert isinstance(found(root, "y = Mul(x, h)", weights="float16 h = {14760}", **half), Match)
    assert "0.7070312, not" in found(root, "y = Mul(x, h)", weights="float h = {0.70703125}")
    assert "not 0.707107" in found(root, "y = Mul(x, h)", weights="float16 h = {14746}", **half)


def test_an_integer_exponent():
    pattern = Op("Pow", X, Const(value=2.0))
    assert isinstance(found(pattern, "y = Pow(x, e)", weights="int64 e = {2}"), Match)
    assert "is 3" in found(pattern, "y = Pow(x, e)", weights="int64 e = {3}")


def test_any_single_number():
    pattern = Op("Add", X, Const("c", scalar=True))
    bench, node = last("y = Add(c, x)", weights="float[1] c = {7}")
    assert bench.scalar(match(bench, node, pattern)["c"]) == 7
    assert "not a single number" in found(pattern, "y = Add(x, c)", weights="float[4] c = {7,7,7,7}")


def test_a_computed_number_is_no_constant():
    assert found(HALF, "y = Mul(x, h)", x="float[N,4] x, float h") is None


# --- who else reads ------------------------------------------------------------------------------------------

NEG_EXP = Op("Exp", Op("Neg", X))


@pytest.mark.parametrize(
    ("body", "y", "reason"),
    [
        ("a = Neg(x) y = Exp(a) z = Abs(a)", "float[N,4] y, float[N,4] z", "nodes outside of it read 'a'"),
        ("a = Neg(x) y = Exp(a)", "float[N,4] y, float[N,4] a", "output of the graph"),
        ("a = Neg(x) y = Exp(a) z = other.F(a)", "float[N,4] y, float[N,4] z", "a custom operator reads"),
    ],
)
def test_what_is_read_elsewhere_is_a_near_match(body, y, reason):
    assert reason in found(NEG_EXP, body, y=y)


def test_what_a_subgraph_reads_is_a_near_match():
    body = """a = Neg(x) y = Exp(a) z = If (c) <then_branch = t () => (float[N,4] p) { p = Abs(a) },
                                                else_branch = e () => (float[N,4] q) { q = Abs(x) }>"""
    assert "a subgraph reads" in found(NEG_EXP, body, x="float[N,4] x, bool c", y="float[N,4] y, float[N,4] z")


def test_the_root_may_be_read_by_all():
    assert isinstance(found(NEG_EXP, "a = Neg(x) y = Exp(a) z = Abs(y)", y="float[N,4] y, float[N,4] z"), Match)


def test_a_reader_inside_of_the_match_is_none_of_the_others():
    pattern = Op("Mul", Op("Sub", X, Op("Exp", X)), Op("Neg", Op("Sub", X, Op("Exp", X))))
    assert isinstance(found(pattern, "e = Exp(x) d = Sub(x, e) n = Neg(d) y = Mul(d, n)"), Match)


# --- conditions, alternatives, and which reason is given ------------------------------------------------------


def test_where_makes_a_near_match():
    pattern = Op("Exp", Op("LeakyRelu", X, where=lambda _, n: None if n.attrs["alpha"] == 0.5 else "alpha is wrong"))
    assert isinstance(found(pattern, "a = LeakyRelu <alpha = 0.5> (x) y = Exp(a)"), Match)
    assert found(pattern, "a = LeakyRelu <alpha = 0.25> (x) y = Exp(a)") == "alpha is wrong"
    assert found(pattern, "a = LeakyRelu <alpha = 0.25> (x) y = Abs(a)") is None


def test_alternatives_at_the_root_and_inside():
    pattern = Either(Op("Exp", Either(Op("Neg", X), Op("Abs", X))), Op("Log", X))
    for body in ("a = Neg(x) y = Exp(a)", "a = Abs(x) y = Exp(a)", "y = Log(x)"):
        assert isinstance(found(pattern, body), Match)
    assert found(pattern, "a = Log(x) y = Exp(a)") is None
    assert roots(pattern) == ["Exp", "Log"] and depth(pattern) == 2


@pytest.mark.parametrize("body", ["y = Mul(x, c)", "y = Mul(c, x)", "y = Div(x, d)"])
def test_scaled(body):
    assert isinstance(found(scaled(X, 0.25), body, weights="float c = {0.25}, float d = {4}"), Match)


def test_divided_the_other_way_round():
    assert found(scaled(X, 0.25), "y = Div(d, x)", weights="float d = {4}") is None


@pytest.mark.parametrize(
    "body", ["a = Mul(x, e) y = Mul(a, c)", "a = Mul(c, x) y = Mul(e, a)", "a = Mul(c, e) y = Mul(x, a)"]
)
def test_product_of_three(body):
    pattern = product(X, Op("Exp", X), Const(value=0.5))
    assert isinstance(found(pattern, "e = Exp(x) " + body, weights="float c = {0.5}"), Match)


def test_the_nearest_of_several_gives_the_reason():
    far = Op("Mul", Op("Add", X, Const(value=8.0)), Const(value=9.0))
    near = Op("Mul", Op("Add", X, Const(value=1.0)), Const(value=3.0))
    reason = found(Either(far, near), "a = Add(x, one) y = Mul(a, two)", weights="float one = {1}, float two = {2}")
    assert reason == "'two' is 2, not 3"


def test_a_rule_starts_from_every_root_and_names_what_it_looks_for():
    rule = pattern_rule("halves", (HALF, Op("Div", X, Const(value=2.0))), lambda *_: None, "Half")
    assert rule.ops == ("Mul", "Div") and rule.reach == 0
    bench, node = last("y = Mul(x, h)", weights="float h = {0.25}")
    assert rule.apply(bench, node) == "nearly Half: 'h' is 0.25, not 0.5"
    bench, node = last("y = Mul(x, h)", weights="float h = {0.5}")
    assert rule.apply(bench, node) is None


def test_a_reader_that_nobody_uses_is_none():
    """What an earlier match left behind is removed later; until then it must not keep others from matching."""
    assert isinstance(found(NEG_EXP, "a = Neg(x) y = Exp(a) b = Abs(a) c = Log(b)"), Match)
    assert "nodes outside" in found(
        NEG_EXP, "a = Neg(x) y = Exp(a) b = Abs(a) c = Log(b)", y="float[N,4] y, float[N,4] c"
    )
