"""Activations and normalisations that were taken apart become one operator, or the report says why not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt import Model
from graphopt.passes.recognize import Recognize
from graphopt.rewrite import kernels

ROOT2, CUBE = "1.41421354", "0.0447149985"


def typed(text: str, dtype: str) -> Model:
    """A float32 model in text format, in another float type throughout."""
    proto, kind = onnx.parser.parse_model(text), onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    model = Model.from_proto(proto)
    from graphopt.ir import infer_shapes

    infer_shapes(model)
    return model


# --- Gelu -----------------------------------------------------------------------------------------------------

GELU = f"float r = {{{ROOT2}}}, float i = {{0.707106769}}, float one = {{1}}, float h = {{0.5}}, float two = {{2}}"
ERF = "a = Div(x, r) e = Erf(a) s = Add(e, one) "
ERFS = [
    ERF + "b = Mul(x, s) y = Mul(b, h)",
    ERF + "b = Mul(s, x) y = Div(b, two)",
    ERF + "b = Mul(x, h) y = Mul(b, s)",
    ERF + "b = Div(x, two) y = Mul(s, b)",
    ERF + "b = Mul(h, s) y = Mul(x, b)",
    "a = Mul(i, x) e = Erf(a) s = Add(one, e) b = Mul(s, h) y = Mul(b, x)",
    "a = Mul(x, i) e = Erf(a) b = Mul(e, h) s = Add(b, h) y = Mul(x, s)",
]


@pytest.mark.parametrize("body", ERFS)
def test_gelu_with_erf(rewritten, net, body):
    out = rewritten(Recognize(), net(body, weights=GELU, opset=20, ir=9))
    assert out.ops == ["Gelu"] and out.node("Gelu").attrs.get("approximate", "none") == "none"
    assert out.result.metrics["gelus"] == 1


TANH = f"""float k = {{0.797884583}}, float c = {{{CUBE}}}, float one = {{1}}, float h = {{0.5}}, float three = {{3}},
           float two = {{2}}"""
TANH_END = "t = Tanh(u) s = Add(t, one) b = Mul(x, h) y = Mul(b, s)"
TANHS = [
    "p = Pow(x, three) q = Mul(p, c) w = Add(x, q) u = Mul(w, k) ",
    "p = Mul(x, x) p3 = Mul(x, p) q = Mul(c, p3) w = Add(q, x) u = Mul(k, w) ",
    "q = Mul(c, x) q2 = Mul(q, x) q3 = Mul(q2, x) w = Add(x, q3) u = Mul(k, w) ",
    "q = Mul(c, x) q2 = Mul(q, x) v = Add(one, q2) xk = Mul(x, k) u = Mul(xk, v) ",
    "p = Pow(x, two) q = Mul(c, p) v = Add(q, one) xk = Mul(x, v) u = Mul(xk, k) ",
]


@pytest.mark.parametrize("body", TANHS)
def test_gelu_with_tanh(rewritten, net, body):
    out = rewritten(Recognize(), net(body + TANH_END, weights=TANH, opset=20, ir=9))
    assert out.ops == ["Gelu"] and out.node("Gelu").attrs["approximate"] == "tanh"


@pytest.mark.parametrize("opset", [20, 22])
@pytest.mark.parametrize("body", [(ERFS[0], GELU), (TANHS[0] + TANH_END, TANH)])
def test_gelu_in_float16(rewritten, net, body, opset):
    out = rewritten(Recognize(), typed(net(body[0], weights=body[1], opset=opset, ir=9), "float16"))
    assert out.ops == ["Gelu"]


def test_gelu_in_float64_only_where_onnx_runtime_has_it(rewritten, net):
    out = rewritten(Recognize(), typed(net(ERFS[0], weights=GELU, opset=20, ir=9), "float64"), run=False)
    assert "Gelu" not in out.ops and "no Gelu of float64" in out.reasons[out.node("Erf").o().o().o().name]
    tanh = rewritten(Recognize(), typed(net(TANHS[0] + TANH_END, weights=TANH, opset=20, ir=9), "float64"))
    assert tanh.ops == ["Gelu"]


def test_gelu_needs_its_opset(rewritten, net):
    out = rewritten(Recognize(), net(ERFS[0], weights=GELU, opset=17))
    assert "Gelu" not in out.ops
    assert list(out.reasons.values()) == [
        "it computes Gelu, but Gelu is standard from opset 20 on, and the model has 17: upgrade it first"
    ]


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        (ERFS[0], GELU.replace(ROOT2, "1.5"), "'r' is 1.5, not 1.41421"),
        (ERFS[0], GELU.replace("{0.5}", "{0.25}"), "'h' is 0.25, not 0.5"),
        (ERFS[0], GELU.replace("float one = {1}", "float[4] one = {1,2,1,1}"), "'one' is several values, not 1"),
        (ERFS[0] + " z = Neg(s)", GELU, "nodes outside of it read 's'"),
        (ERFS[0] + " z = Neg(x) ", GELU.replace("float h = {0.5}", "float[1,1,1] h = {0.5}"), "'h' has more axes"),
        (TANHS[0] + TANH_END, TANH.replace(CUBE, "0.05"), "'c' is 0.05"),
    ],
)
def test_nearly_gelu(rewritten, net, body, weights, reason):
    y = "float[1,N,4] y" if "more axes" in reason else "float[N,4] y"
    y += ", float[N,4] z" if "z =" in body else ""
    out = rewritten(Recognize(), net(body, y=y, weights=weights, opset=20, ir=9))
    assert not out.result.changed
    assert any(r.startswith("nearly Gelu: ") and reason in r for r in out.reasons.values())


def test_another_tensor_is_no_gelu(rewritten, net):
    body = "z = Neg(x) a = Div(x, r) e = Erf(a) s = Add(e, one) b = Mul(z, s) y = Mul(b, h)"
    out = rewritten(Recognize(), net(body, weights=GELU, opset=20, ir=9))
    assert not out.result.changed and not out.reasons


def test_a_function_of_the_name_keeps_it(rewritten):
    text = f"""<ir_version: 9, opset_import: ["" : 20, "local" : 1]>
        net (float[N,4] x) => (float[N,4] y) <{GELU}> {{ {ERFS[0]} }}"""
    out = rewritten(Recognize(), text)
    assert out.ops == ["Gelu"]


# --- Swish and Mish -------------------------------------------------------------------------------------------


def test_swish_from_opset_24(rewritten, net):
    out = rewritten(Recognize(), net("s = Sigmoid(x) y = Mul(s, x)", opset=24, ir=10))
    assert out.ops == ["Swish"] and out.result.metrics["swishes"] == 1
    old = rewritten(Recognize(), net("s = Sigmoid(x) y = Mul(s, x)", opset=23, ir=10))
    assert old.ops == ["Sigmoid", "Mul"] and "Swish is standard from opset 24 on" in old.reasons[old.node("Mul").name]


def test_swish_with_a_factor(rewritten, net):
    body = "a = Mul(x, c) s = Sigmoid(a) y = Mul(x, s)"
    out = rewritten(Recognize(), net(body, weights="float c = {1.702}", opset=24, ir=10))
    assert out.ops == ["Swish"] and out.node("Swish").attrs["alpha"] == pytest.approx(1.702)


def test_what_onnx_runtime_cannot_run_is_not_written(rewritten, net, monkeypatch):
    monkeypatch.setattr(kernels, "_runs", lambda *_: False)
    out = rewritten(Recognize(), net("s = Sigmoid(x) y = Mul(s, x)", opset=24, ir=10))
    assert not out.result.changed
    assert "the installed ONNX Runtime has no Swish of float32 for opset 24" in out.reasons[out.node("Mul").name]


def test_onnx_runtime_is_tried_once_for_each_operator():
    kernels._runs.cache_clear()
    model = Model.from_text(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }'
    )
    from graphopt.rewrite import Workbench

    bench = Workbench(model)
    for _ in range(3):
        assert kernels.why_not_written(bench, "Gelu", model.inputs[0]) is None
    assert kernels._runs.cache_info().misses == 1
    assert "rank" not in (kernels.why_not_written(bench, "Gelu", model.inputs[0], approximate="tanh") or "")
    assert kernels.why_not_written(bench, "Gelu", model.inputs[0], approximate="wrong") is not None
    assert "is no standard operator" in (kernels.why_not_written(bench, "Fancy", model.inputs[0]) or "")


@pytest.mark.parametrize("body", ["s = Softplus(x) ", "e = Exp(x) p = Add(one, e) s = Log(p) "])
def test_mish(rewritten, net, body):
    out = rewritten(Recognize(), net(body + "t = Tanh(s) y = Mul(x, t)", weights="float one = {1}", opset=18))
    assert out.ops == ["Mish"]
    old = rewritten(Recognize(), net(body + "t = Tanh(s) y = Mul(x, t)", weights="float one = {1}", opset=17))
    assert "Mish is standard from opset 18 on" in old.reasons[old.node("Mul").name]


def test_softplus_alone_stays_since_log_overflows(rewritten, net):
    body = "e = Exp(x) p = Add(one, e) y = Log(p)"
    assert not rewritten(Recognize(), net(body, weights="float one = {1}", opset=18)).result.changed


# --- HardSwish, HardSigmoid, Clip -----------------------------------------------------------------------------

SIX = "float zero = {0}, float six = {6}, float three = {3}, float sixth = {0.166666672}"
UP_TO_SIX = "a = Add(x, three) c = Clip(a, zero, six) "
HARD_SWISHES = [
    UP_TO_SIX + "m = Mul(x, c) y = Div(m, six)",
    UP_TO_SIX + "m = Mul(c, x) y = Mul(sixth, m)",
    UP_TO_SIX + "m = Div(c, six) y = Mul(x, m)",
    UP_TO_SIX + "m = Mul(c, sixth) y = Mul(m, x)",
    UP_TO_SIX + "m = Div(x, six) y = Mul(m, c)",
    "a = Add(three, x) r = Relu(a) c = Min(r, six) m = Mul(x, c) y = Div(m, six)",
    "a = Add(three, x) r = Relu(a) c = Clip(r, , six) m = Mul(x, c) y = Div(m, six)",
    "g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(g, x)",
]


@pytest.mark.parametrize("body", HARD_SWISHES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_hardswish(rewritten, net, body, dtype):
    out = rewritten(Recognize(), typed(net(body, weights=SIX, opset=14, ir=7), dtype))
    assert out.ops == ["HardSwish"] and out.result.metrics["hardswishes"] == 1


@pytest.mark.parametrize("body", HARD_SWISHES[:7])
def test_before_opset_14_it_is_a_gate(rewritten, net, body):
    out = rewritten(Recognize(), net(body, weights=SIX, opset=13, ir=7))
    assert out.ops == ["HardSigmoid", "Mul"]


def test_bounds_as_attributes(rewritten, net):
    body = "a = Add(x, three) c = Clip <min = 0.0, max = 6.0> (a) m = Mul(x, c) y = Div(m, six)"
    out = rewritten(Recognize(), net(body, weights=SIX, opset=9, ir=7))
    assert out.ops == ["HardSigmoid", "Mul"]
    wrong = rewritten(Recognize(), net(body.replace("6.0", "5.0"), weights=SIX, opset=9, ir=7))
    assert "clips to 0 .. 5, not to 0 .. 6" in next(iter(wrong.reasons.values()))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (HARD_SWISHES[0].replace("three)", "six)"), "'six' is 6, not 3"),
        (HARD_SWISHES[0].replace("Clip(a, zero, six)", "Clip(a, , six)"), "clips to -inf .. 6, not to 0 .. 6"),
        (HARD_SWISHES[7].replace("0.16666667", "0.2"), "has alpha 0.2 and beta 0.5, not 1/6 and 0.5"),
        (HARD_SWISHES[2].replace("m = Div(c, six)", "m = Div(c, three)"), "clipped to 0 .. 6 and then multiplied by"),
    ],
)
def test_nearly_hardswish(rewritten, net, body, reason):
    out = rewritten(Recognize(), net(body, weights=SIX, opset=17))
    assert not out.result.changed and any(reason in r for r in out.reasons.values())


def test_bounds_that_are_computed(rewritten, net):
    body = HARD_SWISHES[0].replace("zero, six", "low, six")
    out = rewritten(Recognize(), net(body, x="float[N,4] x, float low", weights=SIX, opset=17))
    assert not out.result.changed and any("bounds that are not constant" in r for r in out.reasons.values())


LINES = [
    ("a = Mul(x, s) b = Add(a, h) y = Clip(b, zero, one)", 0.25, 0.5),
    ("a = Div(x, four) b = Add(h, a) y = Clip(b, zero, one)", 0.25, 0.5),
    ("b = Add(x, h) y = Clip(b, zero, one)", 1, 0.5),
    ("a = Add(x, h) b = Clip(a, zero, four) y = Div(b, four)", 0.25, 0.125),
    ("a = Add(x, h) b = Clip(a, zero, four) y = Mul(s, b)", 0.25, 0.125),
]
LINE = "float zero = {0}, float one = {1}, float h = {0.5}, float s = {0.25}, float four = {4}"


@pytest.mark.parametrize(("body", "alpha", "beta"), LINES)
@pytest.mark.parametrize("opset", [11, 17, 22])
def test_hardsigmoid(rewritten, net, body, alpha, beta, opset):
    out = rewritten(Recognize(), net(body, weights=LINE, opset=opset, ir=7))
    assert out.ops == ["HardSigmoid"]
    assert out.node("HardSigmoid").attrs == {"alpha": pytest.approx(alpha), "beta": pytest.approx(beta)}


def test_a_line_by_channel_is_no_hardsigmoid(rewritten, net):
    body = "a = Mul(x, s) b = Add(a, v) y = Clip(b, zero, TOP)"
    weights = LINE + ", float[4] v = {1,2,3,4}"
    out = rewritten(Recognize(), net(body.replace("TOP", "one"), weights=weights))
    assert not out.result.changed and "'v' is several values" in next(iter(out.reasons.values()))
    assert not rewritten(Recognize(), net(body.replace("TOP", "four"), weights=weights)).reasons


CLIPS = [
    "r = Relu(x) y = Min(r, high)",
    "m = Min(high, x) y = Relu(m)",
    "m = Max(x, zero) y = Min(m, high)",
    "m = Min(x, high) y = Max(zero, m)",
    "r = Relu(x) y = Clip(r, low, high)",
    "c = Clip(x, low, high) y = Relu(c)",
]


@pytest.mark.parametrize("body", CLIPS)
def test_clip(rewritten, net, body):
    out = rewritten(Recognize(), net(body, weights="float zero = {0}, float high = {0.7}, float low = {-3}", opset=13))
    assert out.ops == ["Clip"]
    assert [float(t.values) for t in out.node("Clip").inputs[1:]] == pytest.approx([0, 0.7])


def test_clip_without_an_upper_bound(rewritten, net):
    out = rewritten(Recognize(), net("r = Relu(x) y = Clip(r, low)", weights="float low = {0.3}", opset=13))
    assert out.ops == ["Clip"] and len(out.node("Clip").inputs) == 2


def test_clip_by_attributes(rewritten, net):
    out = rewritten(Recognize(), net("r = Relu(x) y = Min(r, high)", weights="float high = {0.7}", opset=8, ir=7))
    assert out.ops == ["Clip"] and out.node("Clip").attrs == {"min": 0.0, "max": pytest.approx(0.7)}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = Relu(x) y = Min(r, low)", "its lower bound 0 is above its upper one -3"),
        ("r = Relu(x) y = Min(r, v)", "'v' is several values"),
        ("r = Relu(x) y = Min(r, high, x)", None),
        ("r = Relu(x) y = Min(r, x)", None),
    ],
)
def test_no_clip(rewritten, net, body, reason):
    out = rewritten(Recognize(), net(body, weights="float high = {6}, float low = {-3}, float[4] v = {1,2,3,4}"))
    assert not out.result.changed
    assert (reason is None and not out.reasons) or any(reason in r for r in out.reasons.values())
