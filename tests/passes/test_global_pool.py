"""Means and maxima over whole images become global poolings; those of normalisations do not."""

from __future__ import annotations

import pytest

from graphopt.passes.global_pool import GlobalPool

AXES = "int64[2] hw = {2,3}, int64[2] neg = {-1,-2}, int64[1] l = {2}, int64[3] dhw = {2,3,4}, int64[1] c = {1}"


def model(net, body, x="float[N,3,5,4] x", y="float[N,3,1,1] y", weights=AXES, opset=18, **given):
    return net(body, x=x, y=y, weights=weights, opset=opset, **given)


KINDS = [("Mean", "GlobalAveragePool"), ("Max", "GlobalMaxPool")]


@pytest.mark.parametrize(("kind", "op"), KINDS)
@pytest.mark.parametrize(
    ("axes", "opset"), [("<axes = [2,3]> (x)", 13), ("<axes = [-1,-2]> (x)", 9), ("(x, hw)", 18), ("(x, neg)", 20)]
)
def test_reductions(rewritten, net, kind, op, axes, opset):
    out = rewritten(GlobalPool(), model(net, f"y = Reduce{kind} {axes}", opset=opset, ir=7))
    assert out.ops == [op] and out.result.metrics["reductions"] == 1


@pytest.mark.parametrize(("kind", "op"), KINDS)
@pytest.mark.parametrize(
    ("x", "axes", "y"), [("float[N,3,L] x", "l", "float[N,3,1] y"), ("float[N,3,2,3,4] x", "dhw", "float[N,3,1,1,1] y")]
)
def test_one_and_three_spatial_axes(rewritten, net, kind, op, x, axes, y):
    assert rewritten(GlobalPool(), model(net, f"y = Reduce{kind}(x, {axes})", x=x, y=y)).ops == [op]


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_float_types_where_onnx_runtime_has_them(rewritten, net, kind):
    out = rewritten(GlobalPool(), model(net, "y = ReduceMean(x, hw)", x=f"{kind}[N,3,5,4] x", y=f"{kind}[N,3,1,1] y"))
    if kind == "float16":
        assert out.ops == ["GlobalAveragePool"]
    else:
        assert "no GlobalAveragePool of float64" in out.reasons[out.node("ReduceMean").name]


def test_integers_have_no_pooling(rewritten, net):
    out = rewritten(GlobalPool(), model(net, "y = ReduceMax(x, hw)", x="int32[N,3,5,4] x", y="int32[N,3,1,1] y"))
    assert "GlobalMaxPool takes no int32" in out.reasons[out.node("ReduceMax").name]


@pytest.mark.parametrize(
    ("body", "y"),
    [
        ("y = ReduceMean(x, c)", "float[N,1,5,4] y"),
        ("y = ReduceMean(x, l)", "float[N,3,1,4] y"),
        ("y = ReduceMean(x)", "float[1,1,1,1] y"),
        ("y = ReduceMean <noop_with_empty_axes = 1> (x)", "float[N,3,5,4] y"),
        ("y = ReduceSum(x, hw)", "float[N,3,1,1] y"),
    ],
)
def test_other_axes_are_none_of_it(rewritten, net, body, y):
    out = rewritten(GlobalPool(), model(net, body, y=y))
    assert not out.result.changed and not out.reasons


def test_axes_and_ranks_that_are_unknown(rewritten, net):
    out = rewritten(GlobalPool(), model(net, "y = ReduceMean(x, k)", x="float[N,3,5,4] x, int64[2] k"), run=False)
    assert not out.result.changed and "are not constant" in out.reasons[out.node("ReduceMean").name]
    body = "r = Reshape(x, s) y = ReduceMean(r, hw)"
    out = rewritten(GlobalPool(), model(net, body, x="float[N,3,5,4] x, int64[k] s"), run=False)
    assert not out.result.changed and "the rank of 'r' is unknown" in out.reasons[out.node("ReduceMean").name]


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean(x, l) y = Sub(x, m)",
        "p = Mul(x, x) y = ReduceMean(p, l)",
        "p = Pow(x, two) y = ReduceMean(p, l)",
    ],
)
def test_the_mean_of_a_normalisation_stays(rewritten, net, body):
    y = "float[N,5,1] y" if "Sub" not in body else "float[N,5,4] y"
    out = rewritten(GlobalPool(), model(net, body, x="float[N,5,4] x", y=y, weights=AXES + ", float two = {2}"))
    assert not out.result.changed and "of a normalisation" in out.reasons[out.node("ReduceMean").name]


def test_a_product_of_two_is_no_variance(rewritten, net):
    body = "p = Mul(x, z) y = ReduceMean(p, hw)"
    out = rewritten(GlobalPool(), model(net, body, x="float[N,3,5,4] x, float[N,3,5,4] z"))
    assert out.ops == ["Mul", "GlobalAveragePool"]


# --- keepdims=0 -----------------------------------------------------------------------------------------------

DROPS = "m = ReduceMean <keepdims = 0> (x, hw) "


@pytest.mark.parametrize(
    ("after", "y"),
    [
        ("y = Flatten(m)", "float[N,3] y"),
        ("y = Flatten <axis = -1> (m)", "float[N,3] y"),
        ("y = Flatten <axis = 0> (m)", "float[A,B] y"),
        ("y = Flatten <axis = 2> (m)", "float[M,1] y"),
        ("y = Flatten <axis = -2> (m)", "float[A,B] y"),
        ("y = Reshape(m, copy)", "float[N,3,1] y"),
        ("y = Reshape(m, flat)", "float[M] y"),
    ],
)
def test_the_node_after_it_drops_the_axes(rewritten, net, after, y):
    weights = AXES + ", int64[3] copy = {0,0,1}, int64[1] flat = {-1}"
    out = rewritten(GlobalPool(), model(net, DROPS + after, y=y, weights=weights))
    assert out.ops == ["GlobalAveragePool", "Reshape" if "Reshape" in after else "Flatten"]


@pytest.mark.parametrize("given", ["Squeeze(m, first)", "Squeeze(m, last)", "Squeeze(m)"])
def test_a_squeeze_squeezes_more(rewritten, net, given):
    weights = AXES + ", int64[1] first = {0}, int64[1] last = {-2}"
    out = rewritten(
        GlobalPool(), model(net, DROPS + f"y = {given}", x="float[1,3,5,4] x", y="float[3] y", weights=weights)
    )
    assert out.ops == ["GlobalAveragePool", "Squeeze"]


def test_a_squeeze_with_an_attribute(rewritten, net):
    body = "m = ReduceMax <keepdims = 0, axes = [2,3]> (x) y = Squeeze <axes = [0]> (m)"
    out = rewritten(GlobalPool(), model(net, body, x="float[1,3,5,4] x", y="float[3] y", opset=11, ir=7))
    assert out.ops == ["GlobalMaxPool", "Squeeze"] and out.node("Squeeze").attrs["axes"] == [0, 2, 3]


@pytest.mark.parametrize("axes", ["hw", "neg"])
def test_an_unsqueeze_that_brings_them_back_goes(rewritten, net, axes):
    assert rewritten(GlobalPool(), model(net, DROPS + f"y = Unsqueeze(m, {axes})")).ops == ["GlobalAveragePool"]


@pytest.mark.parametrize(
    ("after", "y", "reason"),
    [
        ("y = Relu(m)", "float[N,3] y", "one more node"),
        ("y = Unsqueeze(m, c)", "float[N,1,3] y", "brings back others"),
        ("y = Flatten(m) z = Neg(m)", "float[N,3] y, float[N,3] z", "one more node"),
        ("y = Flatten(m)", "float[N,3] y, float[N,3] m", "an output of the graph"),
    ],
)
def test_without_one_it_stays(rewritten, net, after, y, reason):
    out = rewritten(GlobalPool(), model(net, DROPS + after, y=y))
    assert not out.result.changed and reason in out.reasons[out.node("ReduceMean").name]


# --- poolings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "op"), [("Average", "GlobalAveragePool"), ("Max", "GlobalMaxPool")])
@pytest.mark.parametrize(
    "attrs", ["", ", strides = [5,4]", ", pads = [0,0,0,0]", ', auto_pad = "VALID"', ", ceil_mode = 1, strides = [2,2]"]
)
def test_a_kernel_as_large_as_the_image(rewritten, net, kind, op, attrs):
    out = rewritten(GlobalPool(), model(net, f"y = {kind}Pool <kernel_shape = [5,4]{attrs}> (x)"))
    assert out.ops == [op] and not out.node(op).attrs and out.result.metrics["poolings"] == 1


def test_a_smaller_kernel_is_none_of_it(rewritten, net):
    out = rewritten(GlobalPool(), model(net, "y = MaxPool <kernel_shape = [5,2]> (x)", y="float[N,3,1,3] y"))
    assert not out.result.changed and not out.reasons


@pytest.mark.parametrize(
    ("attrs", "y", "reason"),
    [
        ("pads = [1,1,1,1], strides = [5,4]", "float[N,3,1,1] y", "it pads the image"),
        ('auto_pad = "SAME_UPPER", strides = [5,4]', "float[N,3,1,1] y", "its padding is automatic (SAME_UPPER)"),
    ],
)
def test_padding(rewritten, net, attrs, y, reason):
    y = y.replace("1,1]", "A,B]")
    out = rewritten(GlobalPool(), model(net, f"y = AveragePool <kernel_shape = [5,4], {attrs}> (x)", y=y))
    assert not out.result.changed and reason in out.reasons[out.node("AveragePool").name]


def test_a_size_that_is_unknown(rewritten, net):
    body = "y = AveragePool <kernel_shape = [5,4]> (x)"
    out = rewritten(GlobalPool(), model(net, body, x="float[N,3,H,4] x", y="float[N,3,A,1] y"), run=False)
    assert not out.result.changed and "is unknown: the size is ['H', 4]" in out.reasons[out.node("AveragePool").name]


def test_indices_of_maxima(rewritten, net):
    body = "y, i = MaxPool <kernel_shape = [5,4]> (x)"
    unread = rewritten(GlobalPool(), model(net, body))
    assert unread.ops == ["GlobalMaxPool"] and len(unread.node("GlobalMaxPool").outputs) == 1
    used = rewritten(GlobalPool(), model(net, body, y="float[N,3,1,1] y, int64[N,3,1,1] i"))
    assert not used.result.changed and "also returns where" in used.reasons[used.node("MaxPool").name]


def test_maxima_of_integers(rewritten, net):
    body = "y = MaxPool <kernel_shape = [5,4]> (x)"
    out = rewritten(GlobalPool(), model(net, body, x="uint8[N,3,5,4] x", y="uint8[N,3,1,1] y"))
    assert "GlobalMaxPool takes no uint8" in out.reasons[out.node("MaxPool").name]
