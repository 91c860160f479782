"""LayerNormalization and RMSNormalization, with the scale and bias after them."""

from __future__ import annotations

import pytest

from graphopt import Model
from graphopt.passes.recognize import Recognize

CONSTANTS = """float eps = {0.001}, float two = {2}, float half = {0.5}, float one = {1}, float minus = {-0.5},
    int64[1] last = {-1}, int64[2] both = {1, 2}, int64[1] middle = {1},
    float[4] w = {1,2,3,4}, float[4] b = {4,3,2,1}, float[1,1,4] wide = {1,2,3,4}, float[3,1] rows = {1,2,3},
    float[2,1,1] batch = {1,2}, float c = {3}, float[1,1,1,4] wider = {1,2,3,4}"""
MEAN = "m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) "
ROOT = "v = ReduceMean <axes = [-1]> (p) e = Add(v, eps) s = Sqrt(e) "
CORE = MEAN + "p = Pow(d, two) " + ROOT
CORES = [
    CORE + "n = Div(d, s) ",
    MEAN + "p = Mul(d, d) v = ReduceMean <axes = [2]> (p) e = Add(eps, v) s = Sqrt(e) n = Div(d, s) ",
    CORE + "r = Reciprocal(s) n = Mul(d, r) ",
    CORE + "r = Div(one, s) n = Mul(r, d) ",
    CORE.replace("s = Sqrt(e)", "s = Pow(e, half)") + "n = Div(d, s) ",
    CORE.replace("s = Sqrt(e)", "s = Pow(e, minus)") + "n = Mul(d, s) ",
    CORE + "d2 = Sub(x, m) n = Div(d2, s) ",
]
AFFINE = "y0 = Mul(n, w) y = Add(y0, b)"
X, Y = "float[N,3,4] x", "float[N,3,4] y"


def model(net, body, x=X, y=Y, opset=17, **given):
    return net(body, x=x, y=y, weights=CONSTANTS, opset=opset, **given)


@pytest.mark.parametrize("body", CORES)
def test_layer_norm_with_scale_and_bias(rewritten, net, body):
    out = rewritten(Recognize(), model(net, body + AFFINE))
    assert out.ops == ["LayerNormalization"]
    node = out.node("LayerNormalization")
    assert node.attrs == {"axis": -1, "epsilon": pytest.approx(0.001)}
    assert [t.values.tolist() for t in node.inputs[1:]] == [[1, 2, 3, 4], [4, 3, 2, 1]]


def test_axes_as_input(rewritten, net):
    body = CORES[0].replace(" <axes = [-1]> (x)", "(x, last)").replace(" <axes = [-1]> (p)", "(p, last)")
    out = rewritten(Recognize(), model(net, body + AFFINE, opset=18))
    assert out.ops == ["LayerNormalization"]


def test_several_last_axes(rewritten, net):
    body = CORES[0].replace("[-1]", "[1, 2]").replace("[-1]", "[-1, -2]")
    out = rewritten(Recognize(), model(net, body + "y0 = Mul(n, rows) y = Add(b, y0)"))
    node = out.node("LayerNormalization")
    assert out.ops == ["LayerNormalization"] and node.attrs["axis"] == -2
    assert node.inputs[1].shape == (3, 4) and node.inputs[2].shape == (3, 4)


@pytest.mark.parametrize(
    ("after", "scale", "bias"),
    [
        ("y = Identity(n)", [1, 1, 1, 1], None),
        ("y = Mul(w, n)", [1, 2, 3, 4], None),
        ("y = Add(n, b)", [1, 1, 1, 1], [4, 3, 2, 1]),
        ("y = Mul(n, c)", [3, 3, 3, 3], None),
        ("y = Mul(n, wide)", [1, 2, 3, 4], None),
        ("z = Add(n, b) y = Mul(z, w)", [1, 2, 3, 4], [4, 6, 6, 4]),
    ],
)
def test_what_comes_after(rewritten, net, after, scale, bias):
    out = rewritten(Recognize(), model(net, CORES[0] + after))
    node = out.node("LayerNormalization")
    assert node.inputs[1].values.tolist() == scale
    assert (node.inputs[2].values.tolist() if len(node.inputs) > 2 else None) == bias
    assert len(out.ops) == (2 if "Identity" in after else 1)


@pytest.mark.parametrize(
    ("after", "y", "x"),
    [
        ("y = Mul(n, rows)", Y, X),
        ("y = Mul(n, batch)", "float[2,3,4] y", "float[1,3,4] x"),
        ("y = Add(n, wider)", "float[1,N,3,4] y", X),
    ],
)
def test_a_constant_over_other_axes_stays(rewritten, net, after, y, x):
    out = rewritten(Recognize(), model(net, CORES[0] + after, y=y, x=x), run="batch" not in after)
    assert out.ops[0] == "LayerNormalization" and len(out.ops) == 2
    assert "does not fit the normalised axes [4]" in next(iter(out.reasons.values()))


def test_a_scale_of_a_norm_that_is_read_twice(rewritten, net):
    out = rewritten(Recognize(), model(net, CORES[0] + "y = Mul(n, w) z = Add(n, b)", y=Y + ", float[N,3,4] z"))
    assert out.ops == ["LayerNormalization", "Mul", "Add"]
    assert all("cannot take it in: other nodes read 'n' as well" in r for r in out.reasons.values())


def test_a_norm_that_was_one_already(rewritten, net):
    body = "n = LayerNormalization <epsilon = 0.01> (x, w, b) z = Mul(n, w) y = Add(z, c)"
    out = rewritten(Recognize(), model(net, body))
    assert out.ops == ["LayerNormalization"] and out.result.metrics["norm_affines"] == 2
    # The Mul reads the scale, too, so its values must not change under it.
    values = [t.values.tolist() for t in out.node("LayerNormalization").inputs[1:]]
    assert values == [[1, 4, 9, 16], [7, 9, 9, 7]]
    computed = rewritten(Recognize(), model(net, body.replace("(x, w, b)", "(x, s, b)"), x=X + ", float[4] s"))
    assert computed.ops == ["LayerNormalization", "Mul", "Add"]
    assert "its scale or bias is not constant" in next(iter(computed.reasons.values()))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (CORES[0].replace("[-1]", "[1]"), "go over axes [1] of 3"),
        (CORES[0].replace("[-1]> (p)", "[1, 2]> (p)"), "go over different axes"),
        (CORES[0].replace("Pow(d, two)", "Pow(d, one)"), "'one' is 1, not 2"),
        (CORES[0].replace("Add(v, eps)", "Add(v, w)"), "'w' is several values"),
        (CORES[0].replace("Add(v, eps)", "Add(v, minus)"), "negative"),
        (CORES[0] + "z = Neg(d) ", "nodes outside of it read 'd'"),
    ],
)
def test_nearly_layer_norm(rewritten, net, body, reason):
    y = Y + (", float[N,3,4] z" if "z =" in body else "")
    out = rewritten(Recognize(), model(net, body + "y = Identity(n)", y=y))
    assert not out.result.changed
    assert any(r.startswith("nearly LayerNormalization: ") and reason in r for r in out.reasons.values())


def test_an_unknown_size(rewritten, net):
    out = rewritten(Recognize(), model(net, CORES[0] + "y = Identity(n)", x="float[N,3,C] x", y="float[N,3,C] y"))
    assert not out.result.changed and "the size ['C'] of the normalised axes is unknown" in next(
        iter(out.reasons.values())
    )


def test_before_opset_17(rewritten, net):
    out = rewritten(Recognize(), model(net, CORES[0] + AFFINE, opset=16))
    assert not out.result.changed
    assert "LayerNormalization is standard from opset 17 on, and the model has 16" in next(iter(out.reasons.values()))


def test_in_float64_the_operator_would_lose_digits(rewritten):
    text = """<ir_version: 8, opset_import: ["" : 17]> net (double[N,3,4] x) => (double[N,3,4] n)
        <double eps = {0.001}, double two = {2}> { """
    out = rewritten(Recognize(), text + CORES[0] + "}")
    assert not out.result.changed and "computes in float32" in next(iter(out.reasons.values()))


def test_in_float16(rewritten):
    # The text format gives float16 by its bits: 0.001, 2, and 1 .. 4.
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float16[N,3,4] x) => (float16[N,3,4] y)
        <float16 eps = {5145}, float16 two = {16384}, float16[4] w = {15360, 16384, 16896, 17408},
         float16[4] b = {15360, 16384, 16896, 17408}> { """
    out = rewritten(Recognize(), text + CORES[0] + AFFINE + "}")
    assert out.ops == ["LayerNormalization"]
    assert out.node("LayerNormalization").inputs[1].values.dtype == "float16"


@pytest.mark.parametrize("norm", ["s = Sqrt(e) n = Div(x, s) ", "s = Sqrt(e) r = Reciprocal(s) n = Mul(r, x) "])
def test_rms_norm(rewritten, net, norm):
    body = "p = Mul(x, x) v = ReduceMean(p, last) e = Add(v, eps) " + norm
    out = rewritten(Recognize(), model(net, body + AFFINE, opset=23, ir=10))
    assert out.ops == ["RMSNormalization", "Add"]  # it has no bias
    assert out.node("RMSNormalization").inputs[1].values.tolist() == [1, 2, 3, 4]
    old = rewritten(Recognize(), model(net, body + AFFINE, opset=18))
    assert not old.result.changed
    assert "RMSNormalization is standard from opset 23 on" in next(iter(old.reasons.values()))


def test_axes_that_are_computed(rewritten, net):
    body = CORES[0].replace(" <axes = [-1]> (x)", "(x, k)").replace(" <axes = [-1]> (p)", "(p, last)")
    source = model(net, body + "y = Identity(n)", x=X + ", int64[1] k", opset=18)
    out = rewritten(Recognize(), Model.from_text(source), run=False)
    assert not out.result.changed and "are not constant" in next(iter(out.reasons.values()))
