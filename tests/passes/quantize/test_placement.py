"""Where int8 goes: the cheapest assignment, and reasons for what stays in float."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import Model
from graphopt.passes.quantize.cut import Network
from graphopt.passes.quantize.placement import decide
from graphopt.runtime.target import Costs, OpCost, get_target

IMAGE = "[N,3,8,8]"
TARGET = dataclasses.replace(get_target("ort-cpu"), costs=Costs(convert_ns=1.0, node_ns=0.0))


# --- the cut ------------------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    """Times of some operators in a DAG, and tensors as (producer, readers, elements, op); None is in float."""
    n = draw(st.integers(1, 6))
    times = [(draw(st.integers(0, 20)), draw(st.integers(0, 20))) for _ in range(n)]
    tensors = []
    for producer in (None, *range(n)):
        later = range(n) if producer is None else range(producer + 1, n)
        readers = draw(st.lists(st.sampled_from([*later, None]), max_size=4))
        op = draw(st.sampled_from(["Add", "Gemm"]))
        tensors.append((producer, readers, draw(st.integers(1, 12)), op))
    return times, tensors, draw(st.sets(st.integers(0, n - 1), max_size=2))


def total(times, tensors, int8: set[int]) -> int:
    cost = sum(t[1] if i in int8 else t[0] for i, t in enumerate(times))
    for producer, readers, elements, op in tensors:
        inside = producer in int8
        if not inside and any(r in int8 for r in readers):
            cost += elements
        if inside and any(r not in int8 for r in readers) and op not in TARGET.float_output_ops:
            cost += elements
    return cost


@given(problems())
@settings(max_examples=200, deadline=None)
def test_the_cut_is_the_cheapest_of_all_assignments(problem):
    times, tensors, forbidden = problem
    network = Network(TARGET)
    for i, t in enumerate(times):
        if i in forbidden:
            network.forbid(i)
        else:
            network.operator(i, *t)
    for tensor in tensors:
        network.tensor(*tensor)
    found = network.solve()
    allowed = [i for i in range(len(times)) if i not in forbidden]
    subsets = (set(s) for k in range(len(allowed) + 1) for s in itertools.combinations(allowed, k))
    assert not found & forbidden
    assert total(times, tensors, found) == min(total(times, tensors, s) for s in subsets)


# --- what pays ----------------------------------------------------------------------------------------------------


def costs(**ops: tuple[float, float]):
    table = tuple((k, OpCost(*v)) for k, v in ops.items())
    return dataclasses.replace(TARGET, costs=Costs(table, OpCost(1.0, 1.0), convert_ns=1.0, node_ns=0.0))


def ops(model: Model, chosen: set[int]) -> list[str]:
    return [model.graph.nodes[i].op for i in sorted(chosen)]


ISLAND = "a = Conv(x, w) s = Sigmoid(a) c = Conv(s, v) y = Relu(c)"


@pytest.mark.parametrize(
    ("sigmoid", "expected"),
    [
        ((1.0, 1.0), ["Conv", "Sigmoid", "Conv"]),
        ((1.0, 2.5), ["Conv", "Sigmoid", "Conv"]),
        ((1.0, 4.0), ["Conv", "Conv"]),
    ],
)
def test_an_operator_between_int8_ones_is_left_out_when_conversion_is_cheaper(graph, sigmoid, expected):
    model = Model.from_text(graph(ISLAND, IMAGE, "[N,3,8,8]", w=(1, 3, 3, 1, 1), v=(2, 3, 3, 1, 1)))
    plan = decide(model, costs(Conv=(100.0, 1.0), Sigmoid=sigmoid))
    assert ops(model, plan.int8) == expected


def test_nothing_is_placed_where_nothing_gains(graph):
    model = Model.from_text(graph(ISLAND, IMAGE, "[N,3,8,8]", w=(1, 3, 3, 1, 1), v=(2, 3, 3, 1, 1)))
    assert not decide(model, costs(Conv=(1.0, 1.0))).int8


def test_smaller_places_all_weights(graph):
    model = Model.from_text(graph(ISLAND, IMAGE, "[N,3,8,8]", w=(1, 3, 3, 1, 1), v=(2, 3, 3, 1, 1)))
    plan = decide(model, costs(Conv=(1.0, 9.0), Sigmoid=(1.0, 99.0)), all_weights=True)
    assert ops(model, plan.int8) == ["Conv", "Conv"]


def test_smaller_through_the_pass(graph, quantized, eager_target):
    dear = dataclasses.replace(eager_target, costs=Costs(default=OpCost(1.0, 2.0)))
    text = graph("c = Conv(x, w) y = Relu(c)", IMAGE, "[N,8,8,8]", w=(1, 8, 3, 1, 1))
    faster, smaller = (quantized(text, 8, 3, 8, 8, target=dear, place=p) for p in ("faster", "smaller"))
    assert not faster.result.changed and "nothing was quantized" in faster.warnings[0]
    assert smaller.result.metrics["int8_operators"] == {"Conv": 1} and smaller.error < 0.02


def test_a_depthwise_conv_has_its_own_cost(graph):
    text = graph("y = Conv<group=3>(x, w)", IMAGE, "[N,3,8,8]", w=(1, 3, 1, 1, 1))
    model = Model.from_text(text)
    assert decide(model, costs(Conv=(0.0, 9.0), depthwise=(99.0, 0.0))).int8
    assert not decide(model, costs(Conv=(99.0, 0.0), depthwise=(0.0, 9.0))).int8


@pytest.mark.parametrize(("relayout", "first"), [(0.0, False), (9.0, True)])
def test_what_sums_join_is_dear_to_bring_from_float(graph, relayout, first):
    """The first Conv is faster in float by itself, but the sum then has another layout than what is added to it."""
    body = "a = Conv<group=3>(x, w) b = Conv(a, v) s = Add(a, b) t = Add(s, b) y = Conv(t, v)"
    model = Model.from_text(graph(body, "[1,3,8,8]", "[1,3,8,8]", w=(1, 3, 1, 1, 1), v=(2, 3, 3, 1, 1)))
    table = (("Conv", OpCost(99.0, 1.0)), ("Add", OpCost(9.0, 1.0)), ("depthwise", OpCost(1.0, 8.0)))
    plan = decide(
        model, dataclasses.replace(TARGET, costs=Costs(table, convert_ns=1.0, node_ns=0.0, relayout=relayout))
    )
    assert (0 in plan.int8) is first and {1, 2, 3, 4} <= plan.int8


# --- reasons ------------------------------------------------------------------------------------------------------

CONV = "c = Conv(x, w) "


@pytest.mark.parametrize(
    ("body", "y", "op", "text"),
    [
        (CONV + "y = Erf(c)", "[N,3,8,8]", "Erf", "ort-cpu has no int8 kernel for Erf; an operator out of its list"),
        (CONV + "y = Relu(x)", "[N,3,8,8]", "Relu", "no int8 operator stands before it"),
        ("k = Relu(w) y = Conv(x, k)", "[N,3,8,8]", "Conv", "its weights are computed while it runs"),
        ("k = Relu(b) y = Conv(x, w, k)", "[N,3,8,8]", "Conv", "its bias is computed while it runs"),
        (CONV + "y = HardSigmoid<alpha=-1.0>(c)", "[N,3,8,8]", "HardSigmoid", "its slope is not positive"),
        (CONV + "y = Pad(c, p, o)", "[N,3,8,10]", "Pad", "it pads with a value other than 0"),
        (CONV + "o2 = Neg(o) y = Pad(c, p, o2)", "[N,3,8,10]", "Pad", "its padding value is computed while it runs"),
        (
            CONV + 'y = Resize<mode="cubic">(c, e, s)',
            "[N,3,16,16]",
            "Resize",
            "cubic interpolation goes beyond the range of its input",
        ),
        (
            CONV + "y, i = MaxPool<kernel_shape=[1,1]>(c)",
            "[N,3,8,8]",
            "MaxPool",
            "it also returns where the maxima are",
        ),
        (
            "f = Reshape(x, r) y = Gemm<transA=1>(f, g)",
            "[192,2]",
            "Gemm",
            "it transposes its data (transA=1): put a Transpose before it",
        ),
        ("f = Reshape(x, r) y = Gemm(f, m, d)", "[N,2]", "Gemm", "its bias differs by row"),
        ("y = MatMul(x, t)", "[N,3,8,8]", "MatMul", "its constant operand is not a matrix"),
        ("y = MatMul(t, x)", "[N,3,8,8]", "MatMul", "its data is constant and its weights are not: swap"),
    ],
)
def test_reasons(graph, body, y, op, text):
    constants = {
        "w": (1, 3, 3, 1, 1),
        "b": (2, 3),
        "p": "int64[8] p = {0,0,0,1,0,0,0,1}",
        "o": "float o = {1}",
        "e": "float[0] e = {}",
        "s": "float[4] s = {1,1,2,2}",
        "r": "int64[2] r = {1,192}",
        "g": (3, 1, 2),
        "m": (4, 192, 2),
        "d": "float[1,1] d = {0.5}" if "Gemm(f, m, d)" not in body else "float[2,2] d = {1,2,3,4}",
        "t": (5, 3, 8, 8),
    }
    if "m, d)" in body:
        constants["r"], constants["m"], y = "int64[2] r = {2,96}", (4, 96, 2), "[2,2]"
    used = {k: v for k, v in constants.items() if re.search(rf"\b{k}\b", body)}
    model = Model.from_text(graph(body, IMAGE, y, **used))
    plan = decide(model, costs(Conv=(99.0, 0.0)))
    assert any(s.op == op and s.reason.startswith(text) for s in plan.skipped), plan.skipped


def test_constants_that_are_not_finite_keep_their_node_in_float(graph):
    model = Model.from_text(graph(CONV + "y = Conv(c, v)", IMAGE, IMAGE, w=(1, 3, 3, 1, 1), v=(2, 3, 3, 1, 1)))
    weight = next(c for c in model.constants() if c.name == "v")
    weight.values = np.full_like(weight.values, np.nan)
    plan = decide(model, costs(Conv=(99.0, 0.0)))
    assert plan.int8 == {0} and [s.reason for s in plan.skipped] == [
        "its constants are not all finite: no scale covers them"
    ]


def test_operators_of_other_domains_are_named():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
        net (float[N,3] x) => (float[N,3] y) { y = mine.Conv(x) }""")
    model.graph.nodes[0].outputs[0].dtype = np.dtype(np.float32)
    assert "operators of domain 'mine' are not known" in decide(model, TARGET).skipped[0].reason


def test_subgraphs_are_named():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,3] x, bool p) => (float[N,3] y) {
            y = If(p) <then_branch = a () => (float[N,3] u) { u = Relu(x) },
                       else_branch = b () => (float[N,3] v) { v = Neg(x) }> }""")
    assert any("subgraphs are left as they are" in s.reason for s in decide(model, TARGET).skipped)


def test_what_does_not_pay_is_an_estimate_and_says_so(graph):
    model = Model.from_text(graph("c = Conv(x, w) y = Sigmoid(c)", IMAGE, IMAGE, w=(1, 3, 3, 1, 1)))
    reasons = {s.op: s.reason for s in decide(model, costs(Conv=(1.0, 1.0), Sigmoid=(1.0, 0.9))).skipped}
    assert reasons == {
        "Conv": "by estimate from the cost table of ort-cpu (not measured), it would be no faster in int8 than in "
        "float; place=smaller does it anyway",
        "Sigmoid": "by estimate from the cost table of ort-cpu (not measured), int8 would save less time than "
        "converting its tensors to int8 and back takes; it would follow neighbours in int8",
    }


def test_reasons_of_unlike_nodes_can_be_grouped(graph):
    """No number of one node is in its reason, or a report could not count them."""
    body = "a = Conv(x, w) b = Sigmoid(a) p = AveragePool<kernel_shape=[2,2]>(b) y = Conv(p, v)"
    model = Model.from_text(graph(body, IMAGE, "[N,2,7,7]", w=(1, 3, 3, 1, 1), v=(2, 2, 3, 1, 1)))
    skipped = decide(model, costs(Conv=(1.0, 1.0))).skipped
    assert len(skipped) == 4 and len({s.reason for s in skipped if s.op == "Conv"}) == 1
    assert not any(re.search(r"\d", s.reason.replace("int8", "")) for s in skipped)


def test_the_plan_is_the_same_again(graph):
    model = Model.from_text(graph(ISLAND, IMAGE, IMAGE, w=(1, 3, 3, 1, 1), v=(2, 3, 3, 1, 1)))
    assert decide(model, TARGET) == decide(model.copy(), TARGET)
