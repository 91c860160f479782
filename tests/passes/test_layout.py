"""Moving operators to the other side of Transposes: what moves, what stays, and why."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt import Model
from graphopt.ir.io import load
from graphopt.passes.layout import Layout
from graphopt.passes.layout.cut import _reached, _reached_of_many
from graphopt.passes.layout.reshape import groups
from graphopt.pipeline.registry import Registry

TO_NHWC, TO_NCHW = "Transpose<perm=[0,2,3,1]>", "Transpose<perm=[0,3,1,2]>"
X4, Y4 = "float[N,4,6,5] x", "float[N,4,6,5] y"
FLOATS = ", ".join(str(v / 7 - 1) for v in range(12))


@pytest.fixture
def between(rewritten, net):
    """Run the pass on an NHWC body from ``a`` to ``b`` between two Transposes of an NCHW graph, and count those left.

    ``exits``: whether the graph ends in NCHW, by a Transpose after ``b``.
    """

    def run(body: str, y: str = Y4, weights: str = "", opset: int = 17, exits: bool = True, **options):
        end = f"c = {TO_NCHW}(b) y = Abs(c)" if exits else ""
        text = net(f"r = Abs(x) a = {TO_NHWC}(r) {body} {end}", X4, y, weights, opset)
        return rewritten(Layout(), text, rtol=1e-5, **options)

    return run


@pytest.mark.parametrize(
    "body",
    [
        "b = Relu(a)",
        "b = Clip(a, low, high)",
        "d = Sigmoid(a) b = Mul(a, d)",
        "b = Add(a, channel)",
        "b = Mul(one, a)",
        "b = Add(a, row)",
        "b = Sub(full, a)",
        "b = Max(a, channel, row)",
        "b = Sum(a, a, full)",
        "b = Mean(a, channel)",
        "b = PRelu(a, channel)",
        "c1 = Greater(a, channel) b = Where(c1, a, channel)",
        "d = Cast<to=11>(a) b = Cast<to=1>(d)",
        "b = Dropout(a)",
        "b = Softmax<axis=-1>(a)",
        "b = LogSoftmax<axis=1>(a)",
        "m = ReduceMean<axes=[1,2],keepdims=1>(a) b = Mul(a, m)",
        "m = ReduceSum(a, last) b = Sub(a, m)",
        "b = Tile(a, ones)",
        "s, t = Split<axis=3>(a, halves) b = Concat<axis=-1>(t, s)",
        "s = Slice(a, one_i, two_i, three_i) u = Expand(s, to4) b = Add(a, u)",
        "u = Gather<axis=3>(a, order) b = Add(a, u)",
        "p = Pad(a, pads) b = Slice(p, zero_i, four_i, three_i)",
        "z = Identity(a) n = LpNormalization<axis=3,p=2>(z) b = Neg(n)",
        "q = QuantizeLinear(a, scale, zp) b = DequantizeLinear(q, scale, zp)",
        "q = QuantizeLinear<axis=3>(a, scales, zps) b = DequantizeLinear<axis=-1>(q, scales, zps)",
        "e = Unsqueeze(a, two_i) f = Relu(e) b = Squeeze(f, two_i)",
        "e = Reshape(a, to3) f = Relu(e) b = Reshape(f, back4)",
    ],
)
def test_moves_what_lies_between(between, body):
    weights = f"""float low = {{-0.5}}, float high = {{0.5}}, float[4] channel = {{1,2,3,4}}, float[1] one = {{2}},
        float[5,1] row = {{1,2,3,4,5}}, float[1,1,5,4] full = {{{", ".join(str(v / 9) for v in range(20))}}},
        int64[1] last = {{-1}}, int64[4] ones = {{1,1,1,1}}, int64[2] halves = {{2,2}}, int64[1] one_i = {{1}},
        int64[1] two_i = {{2}}, int64[1] three_i = {{3}}, int64[1] zero_i = {{0}}, int64[1] four_i = {{4}},
        int64[4] order = {{3,1,0,2}}, int64[4] to4 = {{1,1,1,4}}, int64[8] pads = {{0,0,0,0,0,0,0,1}},
        float scale = {{0.1}}, uint8 zp = {{3}}, float[4] scales = {{0.1,0.2,0.3,0.4}}, uint8[4] zps = {{1,2,3,4}},
        int64[3] to3 = {{0,30,4}}, int64[4] back4 = {{0,6,5,4}}"""
    done = between(body, weights=weights)
    assert done.counts["Transpose"] == 0, done.reasons
    assert done.result.metrics["transposes_saved"] == 2


@pytest.mark.parametrize(
    ("body", "y"),
    [
        ("b = ReduceMean<axes=[1,2],keepdims=0>(a) y = Relu(b)", "float[N,4] y"),
        ("b = ReduceMax<axes=[-1],keepdims=0>(a) y = Relu(b)", "float[N,6,5] y"),
        ("b = ArgMax<axis=3,keepdims=0>(a) y = Neg(b)", "int64[N,6,5] y"),
        ("b = Gather<axis=3>(a, i) y = Relu(b)", "float[N,6,5] y"),
        ("y = ReduceMean<keepdims=0>(a)", "float y"),
        ("s = Shape(a) y = Neg(s)", "int64[4] y"),
        ("s = Shape<start=1,end=-1>(a) y = Neg(s)", "int64[2] y"),
    ],
)
def test_leaves_no_transpose_before_what_drops_the_moved_axes(between, body, y):
    done = between(body, y, weights="int64 i = {2}", exits=False)
    assert done.counts["Transpose"] == 0, done.reasons


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 18, 21])
def test_reads_axes_where_each_opset_has_them(between, opset):
    given, weights = [], "int64[2] sp = {1,2}, int64[1] ax = {0}"
    given.append("m = ReduceMean(a, sp)" if opset >= 18 else "m = ReduceMean<axes=[1,2]>(a)")
    given.append("u = Unsqueeze(m, ax)" if opset >= 13 else "u = Unsqueeze<axes=[0]>(m)")
    given.append("v = Squeeze(u, ax)" if opset >= 13 else "v = Squeeze<axes=[0]>(u)")
    done = between(" ".join([*given, "b = Add(a, v)"]), weights=weights, opset=opset)
    assert done.counts["Transpose"] == 0, done.reasons


@pytest.mark.parametrize("opset", [9, 11, 17])
def test_pads_and_slices(between, opset):
    if opset == 9:
        body = "p = Pad<pads=[0,1,0,0,0,0,2,0],value=1.5>(a) b = Slice<axes=[1,2],starts=[1,0],ends=[7,5]>(p)"
    else:
        body = "p = Pad<mode='reflect'>(a, pads) b = Slice(p, starts, ends, axes)"
        body = body.replace("'", '"')
    weights = """int64[8] pads = {0,1,0,0,0,0,2,0}, int64[2] starts = {1,0}, int64[2] ends = {7,5},
        int64[2] axes = {-3,2}"""
    assert between(body, weights=weights, opset=opset).counts["Transpose"] == 0


def test_slices_without_axes_and_with_computed_bounds(between):
    body = "d = Add(ends, none) b = Slice(a, starts, d)"
    weights = "int64[3] starts = {0,0,0}, int64[3] ends = {9,9,9}, int64[3] none = {0,0,0}"
    assert between(body, weights=weights).counts["Transpose"] == 0


@pytest.mark.parametrize(("mode", "left"), [("nearest", 0), ("linear", 0)])
def test_resizes(between, mode, left):
    y = "float[N,4,12,10] y"
    done = between(f'b = Resize<mode="{mode}">(a, , scales)', y, "float[4] scales = {1,2,2,1}")
    assert done.counts["Transpose"] == left


def test_leaves_an_interpolation_that_would_leave_the_last_axes(rewritten, net):
    body = f'a = {TO_NCHW}(x) b = Resize<mode="linear">(a, , s) y = {TO_NHWC}(b)'
    done = rewritten(Layout(), net(body, "float[1,6,5,4] x", "float[1,12,10,4] y", "float[4] s = {1,1,2,2}"))
    assert done.counts["Transpose"] == 2
    assert any("interpolates" in r for r in done.reasons.values())


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        ("f = Reshape(a, shape) y = MatMul(f, w)", "int64[2] shape = {0,-1}"),
        ("f = Flatten(a) y = MatMul(f, w)", ""),
        ("f = Flatten(a) r1 = Relu(f) y = Gemm(r1, w, c)", ""),
        ("f = Flatten(a) r1 = Add(f, k) y = Gemm<transB=1>(r1, wt, c)", ""),
        ("f = Flatten(a) v = DequantizeLinear<axis=1>(q, s, z) y = MatMul(f, v)", ""),
        ("f = Flatten(a) v = DequantizeLinear<axis=0>(qt, s, z) y = Gemm<transB=1>(f, v)", ""),
        ("f = Flatten(a) v = DequantizeLinear<axis=0>(q, sr) y = MatMul(f, v)", ""),
    ],
)
def test_weights_after_a_flattening_take_in_the_order(rewritten, net, body, weights):
    model = with_weights(
        net(f"r = Abs(x) a = {TO_NHWC}(r) {body}", X4, "float[N,3] y", weights),
        w=draw(120, 3),
        wt=draw(3, 120),
        c=draw(3),
        k=draw(120),
        q=np.arange(360).reshape(120, 3).astype(np.int8),
        qt=np.arange(360).reshape(3, 120).astype(np.int8),
        s=np.array([0.1, 0.2, 0.3], np.float32),
        z=np.array([1, 2, 3], np.int8),
        sr=np.linspace(0.1, 1, 120, dtype=np.float32),
    )
    done = rewritten(Layout(), model)
    assert done.counts["Transpose"] == 0, done.reasons


def test_a_projection_before_the_transposes_takes_in_the_order(rewritten, net):
    body = f"g = Gemm(x, w, c) r = Reshape(g, shape) a = {TO_NCHW}(r) y = MaxPool<kernel_shape=[2,2]>(a)"
    text = net(body, "float[N,4] x", "float[N,3,1,1] y", "int64[4] shape = {-1,2,2,3}")
    done = rewritten(Layout(), with_weights(text, w=draw(4, 12), c=draw(12)))
    assert done.ops == ["Gemm", "Reshape", "MaxPool"]
    assert not np.array_equal(done.initializer("w"), draw(4, 12))


def test_weights_that_others_read_are_copied(rewritten, net):
    body = f"r = Abs(x) a = {TO_NHWC}(r) f = Flatten(a) g = Flatten(r) m = MatMul(f, w) n = MatMul(g, w) y = Sub(m, n)"
    model = with_weights(net(body, "float[N,2,2,2] x", "float[N,3] y"), w=draw(8, 3))
    done = rewritten(Layout(), model)
    assert done.counts["Transpose"] == 0
    assert np.array_equal(done.initializer("w"), draw(8, 3))


def test_large_weights_are_not_copied(rewritten, net):
    body = f"r = Abs(x) a = {TO_NHWC}(r) f = Flatten(a) g = Flatten(r) m = MatMul(f, w) n = MatMul(g, w) y = Sub(m, n)"
    done = rewritten(Layout(), with_weights(net(body, X4, "float[N,20] y"), w=draw(120, 20)))
    assert not done.result.changed
    assert "other nodes read its weights 'w'" in next(iter(done.reasons.values()))


def test_an_unknown_size_is_not_flattened(rewritten, net):
    body = f"r = Abs(x) a = {TO_NHWC}(r) f = Flatten(a) y = MatMul(f, w)"
    model = with_weights(net(body, "float[N,4,H,5] x", "float[N,3] y"), w=draw(120, 3))
    done = rewritten(Layout(), model, run=False)
    assert not done.result.changed and "unknown" in next(iter(done.reasons.values()))


@pytest.mark.parametrize("left_over", ["o = Relu(a)", "o = Identity(b)"])
def test_a_graph_output_in_the_old_order_costs_one(rewritten, net, left_over):
    body = f"r = Abs(x) a = {TO_NHWC}(r) b = Relu(a) {left_over} c = {TO_NCHW}(b) y = Abs(c)"
    text = net(body, X4, Y4).replace("=> (", "=> (float[N,6,5,4] o, ")
    done = rewritten(Layout(), text)
    assert done.counts["Transpose"] == 1
    assert [t.name for t in done.model.graph.outputs] == ["o", "y"]


def test_both_ends_are_interfaces(rewritten, net):
    body = f"a = {TO_NCHW}(x) b = Conv(a, w) r = Relu(b) y = {TO_NHWC}(r)"
    model = with_weights(net(body, "float[N,6,5,3] x", "float[N,6,5,2] y"), w=draw(2, 3, 1, 1))
    done = rewritten(Layout(), model)
    assert not done.result.changed
    assert all("an input of the graph" in r or "(Conv)" in r for r in done.reasons.values())
    assert len(done.reasons) == 2


def test_the_output_itself_comes_from_the_other_order(rewritten, net):
    body = f"a = {TO_NHWC}(x) b = Relu(a) y = {TO_NCHW}(b)"
    done = rewritten(Layout(), net(body, X4, Y4))
    assert done.ops == ["Relu"] and done.model.graph.nodes[0].outputs[0].name == "y"


def test_two_outputs_of_the_same_value(rewritten, net):
    body = f"a = {TO_NHWC}(x) b = Relu(a) y = {TO_NCHW}(b) z = {TO_NCHW}(b)"
    done = rewritten(Layout(), net(body, X4, Y4).replace("=> (", "=> (float[N,4,6,5] z, "))
    assert done.counts == Counter({"Relu": 1, "Identity": 1})


RESIDUAL = f"""a = {TO_NHWC}(c0) r0 = Relu(a)
    n1 = {TO_NCHW}(r0) c1 = Conv(n1, w) a1 = {TO_NHWC}(c1) s1 = Add(r0, a1) r1 = Relu(s1)
    n2 = {TO_NCHW}(r1) c2 = Conv(n2, w) a2 = {TO_NHWC}(c2) s2 = Add(a2, r1) r2 = Relu(s2)
    k = Concat<axis=3>(r2, r1) n3 = {TO_NCHW}(k) y = GlobalAveragePool(n3)"""


def test_residual_blocks_in_nhwc(rewritten, net):
    text = net(f"n0 = {TO_NCHW}(x) c0 = Conv(n0, w) {RESIDUAL}", "float[N,6,5,4] x", "float[N,8,1,1] y")
    done = rewritten(Layout(), with_weights(text, w=draw(4, 4, 1, 1)))
    assert done.counts["Transpose"] == 1 and done.ops[0] == "Transpose"
    (reason,) = done.reasons.values()
    assert "'x' is an input of the graph" in reason and "(Conv)" in reason


def test_one_blocked_consumer_gets_its_own_transpose(rewritten, net):
    body = f"""r = Abs(x) a = {TO_NHWC}(r) b = Relu(a) c = {TO_NCHW}(b) d = Sigmoid(b) e = {TO_NCHW}(d)
        f = Add(c, e) g = CumSum(b, ax) h = ReduceMean<keepdims=0>(g) y = Add(f, h)"""
    done = rewritten(Layout(), net(body, X4, Y4, "int64 ax = {3}"))
    assert done.counts["Transpose"] == 1
    assert "(CumSum)" in next(iter(done.reasons.values()))


def test_nothing_is_gained_where_as_many_would_stay(rewritten, net):
    body = f"r = CumSum(x, ax) a = {TO_NHWC}(r) b = Relu(a) y = CumSum(b, ax)"
    done = rewritten(Layout(), net(body, X4, "float[N,6,5,4] y", "int64 ax = {3}"))
    assert not done.result.changed and "(CumSum)" in next(iter(done.reasons.values()))


@pytest.mark.parametrize(
    ("shrink", "y"),
    [
        ("Slice(a, zero, two, three)", "float[N,6,5,2] y"),
        ("ReduceMean<axes=[1]>(a)", "float[N,1,5,4] y"),
        ("Gather<axis=3>(a, two)", "float[N,6,5,1] y"),
    ],
)
def test_a_transpose_moves_to_where_it_moves_less(rewritten, net, shrink, y):
    body = f"r = CumSum(x, ax) a = {TO_NHWC}(r) b = {shrink} c = Relu(b) y = CumSum(c, ax)"
    weights = "int64 ax = {2}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] three = {3}"
    done = rewritten(Layout(), net(body, X4, y, weights))
    assert done.counts["CumSum"] == 2 and done.ops[1] == shrink.partition("<")[0].partition("(")[0]
    assert done.counts["Transpose"] + done.counts["Reshape"] == 1


def test_two_transposes_of_little_do_not_become_one_of_much(rewritten, net):
    # Above the Slices there would be one, of the whole tensor.
    body = f"""r = CumSum(x, ax) s = Slice(r, zero, two, one) t = Slice(r, two, four, one) a = {TO_NHWC}(s)
        b = {TO_NHWC}(t) c = CumSum(a, ax) d = CumSum(b, ax) y = Add(c, d)"""
    weights = "int64 ax = {2}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}"
    done = rewritten(Layout(), net(body, "float[N,8,6,5] x", "float[N,6,5,2] y", weights))
    assert not done.result.changed
    assert any("more elements" in r for r in done.reasons.values())


def test_axes_of_size_one_become_a_reshape(rewritten, net):
    done = rewritten(Layout(), net(f"y = {TO_NCHW}(x)", "float[N,6,5,1] x", "float[N,1,6,5] y"))
    assert done.ops == ["Reshape"]
    done = rewritten(Layout(), net(f"y = {TO_NCHW}(x)", "float[N,6,5,C] x", "float[N,C,6,5] y"))
    assert done.ops == ["Transpose"]


def test_squeeze_and_excitation_by_dense_layers(between):
    body = """m = ReduceMean<axes=[1,2],keepdims=0>(a) g = Gemm(m, w) s = Sigmoid(g) e = Reshape(s, shape)
        b = Mul(a, e)"""
    weights = f"float[4,4] w = {{{', '.join(str(v / 16) for v in range(16))}}}, int64[4] shape = {{-1,1,1,4}}"
    assert between(body, weights=weights).counts["Transpose"] == 0


def test_other_permutations_and_nested_ones(rewritten, net):
    body = """r = Abs(x) a = Transpose<perm=[2,0,1]>(r) b = Relu(a) c = Transpose<perm=[2,1,0]>(b) d = Neg(c)
        e = Transpose<perm=[2,1,0]>(d) f = Exp(e) g = Transpose<perm=[1,2,0]>(f) y = Abs(g)"""
    done = rewritten(Layout(), net(body, "float[N,3,4] x", "float[N,3,4] y"))
    assert done.counts["Transpose"] == 0, done.reasons


def test_transposes_without_perm(rewritten, net):
    done = rewritten(Layout(), net("a = Transpose(x) b = Relu(a) y = Transpose(b)", "float[N,3,4] x", "float[N,3,4] y"))
    assert done.ops == ["Relu"]


def test_batched_products_and_normalizations(rewritten, net):
    swap = "Transpose<perm=[1,0,2]>"
    body = f"a = {swap}(x) n = LayerNormalization(a, g) m = MatMul(n, w) p = Softmax<axis=2>(m) y = {swap}(p)"
    weights = f"float[4] g = {{1,2,3,4}}, float[4,3] w = {{{FLOATS}}}"
    assert rewritten(Layout(), net(body, "float[N,3,4] x", "float[N,3,3] y", weights)).counts["Transpose"] == 0
    body = body.replace("[1,0,2]", "[0,2,1]")
    done = rewritten(Layout(), net(body, "float[N,4,3] x", "float[N,3,3] y", weights))
    assert done.counts["Transpose"] == 2 and any("last ax" in r for r in done.reasons.values())


def test_products_of_swapped_matrices_are_left(rewritten, net):
    swap = "Transpose<perm=[0,2,1]>"
    body = f"r = Abs(x) a = {swap}(r) b = Neg(a) m = MatMul(a, b) y = {swap}(m)"
    done = rewritten(Layout(), net(body, "float[N,3,3] x", "float[N,3,3] y"))
    assert done.counts["Transpose"] == 2
    assert any("last two axes" in r for r in done.reasons.values())


def test_an_operand_of_higher_rank_is_left(rewritten, net):
    swap = "Transpose<perm=[0,2,1]>"
    body = f"r = Abs(x) a = {swap}(r) b = Add(a, one) s = Squeeze(b, zero) y = {swap}(s)"
    weights = "float[1,1,1,1] one = {2}, int64[1] zero = {0}"
    done = rewritten(Layout(), net(body, "float[N,3,4] x", "float[N,3,4] y", weights))
    assert not done.result.changed
    assert any("rank" in r for r in done.reasons.values())


def test_a_node_that_reads_a_tensor_in_both_orders(between):
    done = between("d = Relu(a) b = CastLike(d, d)")
    assert done.counts["Transpose"] == 1


def test_an_old_softmax_over_several_axes(between):
    assert between("b = Softmax<axis=1>(a)", opset=11).counts["Transpose"] == 0
    done = between("b = Softmax<axis=3>(a)", opset=11)
    assert done.counts["Transpose"] == 2 and any("opset 13" in r for r in done.reasons.values())


def test_global_pooling_of_what_was_transposed(rewritten, net):
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        for opset in (13, 18):
            body = f"r = Abs(x) a = {TO_NCHW}(r) p = {op}(a) f = Flatten(p) y = Relu(f)"
            done = rewritten(Layout(), net(body, "float[N,6,5,4] x", "float[N,4] y", opset=opset))
            assert done.counts["Transpose"] == 0 and not done.counts[op], done.ops


def test_unknown_ranks_and_low_ranks_are_left(rewritten, net):
    body = "s = Reshape(x, shape) a = Transpose(s) b = Relu(a) y = Transpose(b)"
    text = net(body, "float[6] x, int64[R] shape", "float[D,E] y")
    done = rewritten(Layout(), text, run=False)
    assert not done.result.changed and all("rank" in r for r in done.reasons.values()), done.reasons
    body = f"r = Abs(x) a = {TO_NHWC}(r) b = Add(a, v) y = {TO_NCHW}(b)"
    text = net(body, X4, Y4).replace("x)", "x, float[C] v)", 1)
    done = rewritten(Layout(), text, run=False)
    assert not done.result.changed and any("lower rank" in r for r in done.reasons.values())


def test_custom_operators_keep_their_inputs(rewritten, net):
    body = f"r = Abs(x) a = {TO_NHWC}(r) b = Relu(a) d = my.domain.Thing(b) c = {TO_NCHW}(b) y = Add(c, d)"
    text = net(body, X4, Y4).replace('"" : 17', '"" : 17, "my.domain" : 1')
    done = rewritten(Layout(), text, run=False, valid=False)
    thing = done.node("Thing")
    assert thing.inputs[0].name == "b" and done.counts["Transpose"] == 1
    assert done.model.graph.nodes[[n.op for n in done.model.graph.nodes].index("Transpose")].outputs[0].name == "b"


def test_subgraphs_keep_what_they_read(rewritten, net):
    branch = (
        "then_branch = t () => (float[N,6,5,4] p) { p = Neg(b) }, else_branch = e () => (float[N,6,5,4] q) {q = Abs(b)}"
    )
    body = (
        f"r = Abs(x) a = {TO_NHWC}(r) b = Relu(a) i = If<{branch}>(k) c = {TO_NCHW}(b) j = {TO_NCHW}(i) y = Add(c, j)"
    )
    done = rewritten(Layout(), net(body, X4, Y4, "bool k = {1}"))
    assert done.counts["Transpose"] == 2
    assert any(t.name == "b" for n in done.model.graph.nodes if n.op == "Transpose" for t in n.outputs)


def test_moves_inside_subgraphs(rewritten, net):
    inner = f"a = {TO_NHWC}(x) b = Add(a, w) p = {TO_NCHW}(b)"
    then = f"then_branch = t () => (float[N,4,6,5] p) {{ {inner} }}"
    branch = f"{then}, else_branch = e () => (float[N,4,6,5] q) {{q = Abs(x)}}"
    done = rewritten(Layout(), net(f"y = If<{branch}>(k)", X4, Y4, "bool k = {1}, float[4] w = {1,2,3,4}"))
    assert not any(n.op == "Transpose" for g in done.model.graphs() for n in g.nodes)


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_other_types(rewritten, net, kind):
    body = f"r = Abs(x) a = {TO_NHWC}(r) b = Add(a, w) y = {TO_NCHW}(b)"
    text = net(body, X4.replace("float", kind), Y4.replace("float", kind), f"{kind}[4] w = {{1,2,3,4}}")
    assert rewritten(Layout(), text).counts["Transpose"] == 0


def test_groups_of_a_reshape():
    def pairs(a, b):
        return [(g.before, g.after) for g in groups(a, b)]

    assert pairs([None, 6, 6, 64], [None, 2304]) == [([0], [0]), ([1, 2, 3], [1])]
    assert pairs(["N", 1, 1, 4], ["N", 4]) == [([0], [0]), ([1, 2, 3], [1])]
    assert pairs(["N", 4], ["N", 4, 1, 1]) == [([0], [0]), ([1], [1, 2, 3])]
    assert pairs(["N", 8, 7], ["64*N", 7]) == [([0, 1], [0]), ([2], [1])]
    assert pairs([2, 3, 4], [4, 3, 2]) == [([0, 1, 2], [0, 1, 2])]
    assert pairs([], [1]) in ([([], [0])], [])


def test_a_real_model_of_channels_last(shared):
    model = load(shared / "models" / "seed-cnn-cifar10.onnx")
    passes = Registry().pipeline("simplify").passes
    changed = True
    while changed:
        changed = False
        for step in passes:
            changed |= step.run(model, None).changed
    before = model.to_bytes()
    Layout().run(model, None)
    (left,) = [n for n in model.graph.nodes if n.op == "Transpose"]
    assert left.inputs[0].name == model.inputs[0].name
    same(before, model.to_bytes())
    assert len(model.to_bytes()) <= len(before)


@pytest.mark.parametrize("chain", [True, False])
def test_time_is_linear_in_nodes(net, chain):
    """12,000 nodes, in one trunk of residual blocks, or as many readers of one tensor."""
    if chain:
        parts = [f"t0 = {TO_NHWC}(r)"]
        for k in range(2000):
            parts.append(
                f"n{k} = {TO_NCHW}(t{k}) c{k} = MaxPool<kernel_shape=[1,1]>(n{k}) m{k} = {TO_NHWC}(c{k}) "
                f"e{k} = Neg(m{k}) s{k} = Add(e{k}, t{k}) t{k + 1} = Relu(s{k})"
            )
        parts.append(f"y = {TO_NCHW}(t2000)")
    else:
        parts = [f"t = {TO_NHWC}(r)", *(f"a{k} = Relu(t) b{k} = {TO_NCHW}(a{k})" for k in range(6000))]
        groups = [", ".join(f"b{k}" for k in range(start, start + 60)) for start in range(0, 6000, 60)]
        parts.extend(f"g{k} = Sum({group})" for k, group in enumerate(groups))
        parts.append("y = Sum(" + ", ".join(f"g{k}" for k in range(100)) + ")")
    model = Model.from_text(net("r = Abs(x) " + " ".join(parts), X4, Y4))
    began = time.perf_counter()
    Layout().run(model, None)
    assert time.perf_counter() - began < 15
    assert not any(n.op == "Transpose" for n in model.graph.nodes)


# --- random graphs ------------------------------------------------------------------------------------------------

_UNARY = ("Relu", "Sigmoid", "Neg", "Abs")


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_random_graphs_of_two_orders(rewritten, data):
    def number(low, high):
        return data.draw(st.integers(low, high))

    proto = random_graph(number)
    before = Counter(n.op_type for n in proto.graph.node)["Transpose"]
    done = rewritten(Layout(), Model.from_proto(onnx.shape_inference.infer_shapes(proto)), rtol=1e-4)
    assert done.counts["Transpose"] <= before


def random_graph(number) -> onnx.ModelProto:
    """A graph whose tensors are NCHW, NHWC, or of other orders of the same axes, and what reads and mixes them."""
    sizes = {"N": "N", "H": 3, "W": 2, "C": 4}
    nodes, weights = [], []
    have = [("x", "NCHW")]
    counter = [0]

    def name():
        counter[0] += 1
        return f"t{counter[0]}"

    def weight(array):
        weights.append(numpy_helper.from_array(array, f"w{len(weights)}"))
        return weights[-1].name

    def pick(n):
        return have[number(max(0, n - 6), n - 1)]

    def add(op, inputs, order, **attrs):
        out = name()
        nodes.append(helper.make_node(op, inputs, [out], name=f"node_{out}", **attrs))
        have.append((out, order))
        return out

    def transposed(source, order, target):
        return source if order == target else add("Transpose", [source], target, perm=[order.index(a) for a in target])

    for _ in range(number(3, 14)):
        source, order = pick(len(have))
        kind = number(0, 14)
        if kind <= 2:
            target = ("NCHW", "NHWC", "NHWC", "NCHW", "HNCW", "NWHC")[number(0, 5)]
            if target != order:
                transposed(source, order, target)
        elif kind == 3:
            add(_UNARY[number(0, 3)], [source], order)
        elif kind == 4:
            other, its = pick(len(have))
            add(("Add", "Mul", "Max")[number(0, 2)], [source, transposed(other, its, order)], order)
        elif kind == 5:
            rank = number(0, 4)
            shape = [1 if a == "N" or number(0, 1) else sizes[a] for a in order[4 - rank :]]
            add("Add", [source, weight(values(*shape))], order)
        elif kind == 6:
            add("Softmax", [source], order, axis=number(-4, 3))
        elif kind == 7:
            axes = [a for a in range(4) if order[a] != "N" and number(0, 1)]
            if axes:
                mean = add("ReduceMean", [source], order, axes=axes, keepdims=1)
                have.pop()
                add("Mul", [source, mean], order)
        elif kind == 8:
            axis = order.index("C")
            parts = [name(), name()]
            nodes.append(helper.make_node("Split", [source], parts, name=f"node_{parts[0]}", axis=axis))
            add("Concat", parts[::-1], order, axis=axis - 4 * number(0, 1))
        elif kind == 9:
            image = transposed(source, order, "NCHW")
            add("Conv", [image, weight(values(4, 4, 1, 1))], "NCHW")
        elif kind == 10:
            pads = [0] * 8
            pads[order.index("H")] = 1
            padded = add("Pad", [source, weight(np.array(pads, np.int64))], order)
            have.pop()
            bounds = [weight(np.array([v], np.int64)) for v in (0, 3, order.index("H"))]
            add("Slice", [padded, *bounds], order)
        elif kind == 11:
            axis = [a for a in range(4) if order[a] != "N"][number(0, 2)]
            small = add("ReduceMax", [source], order, axes=[axis], keepdims=0)
            wide = add("Unsqueeze", [add("Neg", [small], order), weight(np.array([axis], np.int64))], order)
            del have[-3:]
            add("Sub", [wide, source], order)
        elif kind == 12:
            axis = order.index("C")
            scales = [weight(np.array([0.1, 0.2, 0.3, 0.4], np.float32)), weight(np.array([1, 2, 3, 4], np.int8))]
            small = add("QuantizeLinear", [source, *scales], order, axis=axis)
            add("DequantizeLinear", [small, *scales], order, axis=axis - 4)
            del have[-2]
        elif kind == 13:
            axis = order.index("C")
            slim = add("Gather", [source, weight(np.array(1, np.int64))], order, axis=axis)
            wide = add("Unsqueeze", [slim, weight(np.array([axis], np.int64))], order)
            del have[-2:]
            add("Add", [source, wide], order)
        else:
            # There and back through a Reshape of the last two axes.
            if order[0] == "N":
                flat = [0, *[sizes[a] for a in order[1:2]], sizes[order[2]] * sizes[order[3]]]
                add("Reshape", [source, weight(np.array(flat, np.int64))], order)
                small, _ = have.pop()
                add("Relu", [small], order)
                small, _ = have.pop()
                back = weight(np.array([0, *[sizes[a] for a in order[1:]]], np.int64))
                add("Reshape", [small, back], order)
    outputs = []
    for tensor, order in have[-1 : -1 - number(1, 3) : -1]:
        if tensor != "x":
            outputs.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [sizes[a] for a in order]))
    last, order = have[-1]
    if order[0] == "N" and number(0, 1):
        flat = add("Flatten", [last], order)
        add("MatMul", [flat, weight(values(24, 2))], "")
        outputs.append(helper.make_tensor_value_info(have[-1][0], TensorProto.FLOAT, ["N", 2]))
    if not outputs:
        add("Relu", ["x"], "NCHW")
        outputs.append(helper.make_tensor_value_info(have[-1][0], TensorProto.FLOAT, ["N", 4, 3, 2]))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 3, 2])
    graph = helper.make_graph(nodes, "random", [source], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape) + len(shape)).uniform(-1, 1, shape).astype(np.float32)


draw = values


def with_weights(text: str, **arrays: np.ndarray) -> Model:
    """A model in text format with initializers of these values, as far as it reads them."""
    proto = onnx.parser.parse_model(text)
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items() if n in read)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto))


def same(before: bytes, after: bytes) -> None:
    from graphopt.runtime.equivalence import compare_outputs
    from graphopt.runtime.feeds import random_feeds

    found = compare_outputs(before, after, random_feeds(before, (1, 3)), rtol=1e-5)
    assert found.equal, found


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 9).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.dictionaries(
                st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] != e[1]),
                st.integers(1, 9),
                min_size=1,
            ),
        )
    )
)
def test_both_ways_of_cutting_find_the_same_side(case: tuple[int, dict[tuple[int, int], int]]) -> None:
    size, capacity = case
    assert _reached(capacity) == _reached_of_many(capacity, size)
