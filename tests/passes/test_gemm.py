"""MatMul with the addition of a constant becomes Gemm, which also takes Transposes in."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.gemm import MakeGemm

WEIGHTS = """float[4,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[3] b = {1,2,3}, float[1,3] row = {1,2,3}, float c = {5},
    float[1] one = {5}, float[2,3] full = {1,2,3,4,5,6}, float[2,1] column = {1,2}, float[1,1,3] cube = {1,2,3},
    float[3,4] wt = {1,2,3,4,5,6,7,8,9,10,11,12}"""
Y = "float[N,3] y"


def model(net, body, x="float[N,4] x", y=Y, opset=17, **given):
    return net(body, x=x, y=y, weights=WEIGHTS, opset=opset, **given)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 22])
@pytest.mark.parametrize("body", ["m = MatMul(x, w) y = Add(m, b)", "m = MatMul(x, w) y = Add(b, m)"])
def test_matmul_and_add(rewritten, net, body, opset):
    out = rewritten(MakeGemm(), model(net, body, opset=opset, ir=7))
    assert out.ops == ["Gemm"] and out.node("Gemm").inputs[2].name == "b"
    assert out.result.metrics["biases"] == 1


@pytest.mark.parametrize(("constant", "bias"), [("row", [1, 2, 3]), ("c", [5, 5, 5]), ("one", [5, 5, 5])])
def test_a_bias_is_a_vector(rewritten, net, constant, bias):
    out = rewritten(MakeGemm(), model(net, f"m = MatMul(x, w) y = Add(m, {constant})"))
    assert out.ops == ["Gemm"] and out.node("Gemm").inputs[2].values.tolist() == bias


@pytest.mark.parametrize("constant", ["full", "column"])
def test_a_bias_by_row_where_the_rows_are_known(rewritten, net, constant):
    out = rewritten(
        MakeGemm(), model(net, f"m = MatMul(x, w) y = Add(m, {constant})", x="float[2,4] x", y="float[2,3] y")
    )
    assert out.ops == ["Gemm"] and out.node("Gemm").inputs[2].name == constant


def test_subtraction(rewritten, net):
    out = rewritten(MakeGemm(), model(net, "m = MatMul(x, w) y = Sub(m, b)"))
    assert out.ops == ["Gemm"] and out.node("Gemm").inputs[2].values.tolist() == [-1, -2, -3]
    assert not rewritten(MakeGemm(), model(net, "m = MatMul(x, w) y = Sub(b, m)")).result.changed


@pytest.mark.parametrize(
    ("body", "x", "y", "reason"),
    [
        (
            "m = MatMul(x, w) y = Add(m, b)",
            "float[N,2,4] x",
            "float[N,2,3] y",
            "Gemm takes matrices, and the rank of 'x' is 3",
        ),
        ("m = MatMul(x, w) y = Add(m, b)", "float[4] x", "float[3] y", "the rank of 'x' is 1"),
        ("m = MatMul(x, w) y = Add(m, cube)", "float[N,4] x", "float[1,N,3] y", "to another shape"),
        ("m = MatMul(x, w) y = Add(m, full)", "float[N,4] x", "float[2,3] y", "to another shape"),
        ("m = MatMul(x, w) y = Add(m, column)", "float[1,4] x", "float[2,3] y", "to another shape"),
        ("m = MatMul(x, k) y = Add(m, b)", "float[N,4] x, float[4,K] k", Y, "to another shape"),
        ("m = MatMul(x, w) y = Add(m, b) z = Neg(m)", "float[N,4] x", Y + ", float[N,3] z", "other nodes read 'm'"),
        ("m = MatMul(x, w) y = Add(m, b)", "float[N,4] x", Y + ", float[N,3] m", "an output of the graph"),
    ],
)
def test_what_gemm_cannot_do(rewritten, net, body, x, y, reason):
    out = rewritten(MakeGemm(), model(net, body, x=x, y=y), run=x == "float[N,4] x" and "full" not in body)
    assert not out.result.changed and any(reason in r for r in out.reasons.values())


def test_a_rank_that_is_unknown(rewritten, net):
    body = "r = Reshape(x, s) m = MatMul(r, w) y = Add(m, b)"
    out = rewritten(MakeGemm(), model(net, body, x="float[N,4] x, int64[k] s"), run=False)
    assert not out.result.changed and "the rank of 'r' is unknown" in out.reasons[out.node("Add").name]


def test_integers_and_other_additions_are_none_of_it(rewritten, net):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (int32[N,2] x) => (int32[N,2] y)
        <int32[2,2] w = {1,2,3,4}, int32[2] b = {1,2}> { m = MatMul(x, w) y = Add(m, b) }"""
    assert not rewritten(MakeGemm(), text).result.changed
    out = rewritten(MakeGemm(), model(net, "m = MatMul(x, w) y = Add(m, z)", x="float[N,4] x, float[N,3] z"))
    assert not out.result.changed and not out.reasons


@pytest.mark.parametrize("kind", ["double", "float16"])
def test_other_float_types(rewritten, kind):
    # The text format gives float16 by its bits; these are 1 and 2.
    values = "1,2,2,1" if kind == "double" else "15360,16384,16384,15360"
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g ({kind}[N,2] x) => ({kind}[N,2] y)
        <{kind}[2,2] w = {{{values}}}, {kind}[2] b = {{{values[: values.index(",", values.index(",") + 1)]}}}>
        {{ m = MatMul(x, w) y = Add(m, b) }}"""
    assert rewritten(MakeGemm(), text).ops == ["Gemm"]


# --- Gemm and what is around it -------------------------------------------------------------------------------


def test_gemm_takes_an_addition(rewritten, net):
    out = rewritten(MakeGemm(), model(net, "m = Gemm <alpha = 2.0> (x, w) y = Add(m, b)"))
    assert out.ops == ["Gemm"] and out.node("Gemm").inputs[2].name == "b" and out.node("Gemm").attrs["alpha"] == 2


def test_gemm_with_a_bias_takes_another(rewritten, net):
    out = rewritten(MakeGemm(), model(net, "m = Gemm <beta = 0.5> (x, w, b) z = Add(m, row) y = Sub(z, c)"))
    assert out.ops == ["Gemm"] and "beta" not in out.node("Gemm").attrs
    assert out.node("Gemm").inputs[2].values.tolist() == [-3.5, -2, -0.5]
    assert out.result.metrics["biases"] == 2


def test_a_beta_without_a_bias_does_not_scale_the_new_one(rewritten, net):
    out = rewritten(MakeGemm(), model(net, "m = Gemm <beta = 0.5> (x, w) y = Add(m, b)"))
    assert out.ops == ["Gemm"] and "beta" not in out.node("Gemm").attrs


def test_a_bias_that_is_computed_stays(rewritten, net):
    out = rewritten(MakeGemm(), model(net, "m = Gemm(x, w, k) y = Add(m, b)", x="float[N,4] x, float[3] k"))
    assert not out.result.changed and "the bias of" in out.reasons[out.node("Add").name]


def test_a_sum_that_overflows_stays(rewritten):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,1] x) => (float[N,1] y)
        <float[1,1] w = {1}, float[1] b = {3e38}, float[1] d = {3e38}> { m = Gemm(x, w, b) y = Add(m, d) }"""
    out = rewritten(MakeGemm(), text)
    assert not out.result.changed and "would not be finite" in out.reasons[out.node("Add").name]


def test_shared_biases_keep_their_values(rewritten, net):
    body = "m = Gemm(x, w, b) y = Add(m, c) z = Gemm(x, w, b)"
    out = rewritten(MakeGemm(), model(net, body, y=Y + ", float[N,3] z"))
    assert out.ops == ["Gemm", "Gemm"] and out.initializer("b").tolist() == [1, 2, 3]


@pytest.mark.parametrize("perm", ["<perm = [1,0]>", ""])
def test_transposes(rewritten, net, perm):
    body = f"a = Transpose {perm} (x) t = Transpose {perm} (k) y = Gemm(a, t, b)"
    out = rewritten(MakeGemm(), model(net, body, x="float[4,N] x, float[3,4] k"))
    assert out.ops == ["Gemm"] and out.node("Gemm").attrs == {"transA": 1, "transB": 1}


def test_a_transpose_undoes_another(rewritten, net):
    out = rewritten(
        MakeGemm(), model(net, "t = Transpose(k) y = Gemm <transB = 1> (x, t, b)", x="float[N,4] x, float[4,3] k")
    )
    assert out.ops == ["Gemm"] and out.node("Gemm").attrs["transB"] == 0


def test_a_transpose_that_others_read_stays_for_them(rewritten, net):
    body = "t = Transpose(k) y = Gemm(x, t, b) z = Neg(t)"
    out = rewritten(MakeGemm(), model(net, body, x="float[N,4] x, float[3,4] k", y=Y + ", float[4,3] z"))
    assert out.counts["Transpose"] == 1 and out.node("Gemm").attrs["transB"] == 1


def test_transpose_matmul_and_add_together(rewritten, net):
    body = "t = Transpose(k) m = MatMul(x, t) y = Add(m, b)"
    out = rewritten(MakeGemm(), model(net, body, x="float[N,4] x, float[3,4] k"))
    assert out.ops == ["Gemm"] and out.node("Gemm").attrs["transB"] == 1
    again = rewritten(MakeGemm(), model(net, "s = Add(x, c) t = Transpose(s) y = Gemm <transA = 1> (t, w, b)"))
    assert again.ops == ["Add", "Gemm"] and np.array_equal(again.initializer("b"), [1, 2, 3])


def test_inside_a_subgraph(rewritten, net):
    body = """y = If (c0) <then_branch = t () => (float[N,3] p) { m = MatMul(x, w) p = Add(m, b) },
                           else_branch = e () => (float[N,3] q) { m2 = MatMul(x, w) q = Sub(m2, b) }>"""
    out = rewritten(MakeGemm(), model(net, body, x="float[N,4] x, bool c0"))
    branches = out.node("If").attrs
    assert [n.op for n in branches["then_branch"].nodes] == ["Gemm"]
    assert [n.op for n in branches["else_branch"].nodes] == ["Gemm"]
