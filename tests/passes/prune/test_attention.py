"""Removal where axes are split, merged and summed over: attention in its forms, shuffles, Einsum."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from small_graphs import build, shapes

from graphopt.analysis.labels import propagate

SPLIT = (
    "q = MatMul(x, wq)\n k = MatMul(x, wk)\n v = MatMul(x, wv)\n q4 = Reshape(q, s)\n k4 = Reshape(k, s)\n"
    "v4 = Reshape(v, s)\n qt = Transpose<perm=[0,2,1,3]>(q4)\n kt = Transpose<perm=[0,2,1,3]>(k4)\n"
    "vt = Transpose<perm=[0,2,1,3]>(v4)\n"
)
MERGE = "ot = Transpose<perm=[0,2,1,3]>(o)\n f = Reshape(ot, back)\n y = MatMul(f, wo)"
WEIGHTS = {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 8)}
INTS = {"s": [0, 6, 2, 6], "back": [0, 6, 12]}
IO = {"x": "float[N,6,8] x", "y": "float[N,6,8] y"}


def reasons(model) -> str:
    return " | ".join(x.reason for x in propagate(model).locked)


def test_einsum_couples_by_letter(assert_exact):
    body = (
        SPLIT + 'sc = Einsum<equation="b h i d, b h j d -> b h i j">(qt, kt)\n p = Softmax<axis=-1>(sc)\n'
        'o = Einsum<equation="bhij,bhjd->bhid">(p, vt)\n' + MERGE
    )
    pruned, labels = assert_exact(build(body, WEIGHTS, ints=INTS, **IO), at_least=2)
    assert sorted(f.groups.size for f in labels.families) == [6, 6]
    assert [shapes(pruned)[k] for k in ("wq", "wk", "wv", "wo")] == [[8, 6], [8, 6], [8, 6], [6, 8]]


@pytest.mark.parametrize("einsum", [False, True])
def test_whole_heads_take_their_bias_and_scale_along(assert_exact, einsum):
    scores = (
        'sc = Einsum<equation="bhid,bhjd->bhij">(qt, kt)\n'
        if einsum
        else ("kk = Transpose<perm=[0,1,3,2]>(kt)\n sc = MatMul(qt, kk)\n")
    )
    body = SPLIT + scores + "t = Mul(sc, scale)\n u = Add(t, bias)\n p = Softmax<axis=-1>(u)\n o = MatMul(p, vt)\n"
    weights = {**WEIGHTS, "scale": (2, 1, 1), "bias": (1, 2, 6, 6)}
    pruned, labels = assert_exact(build(body + MERGE, weights, ints=INTS, **IO), heads=True)
    assert [f.groups.size for f in labels.families] == [2]
    assert shapes(pruned)["bias"] == [1, 1, 6, 6] and shapes(pruned)["scale"] == [1, 1, 1]
    assert shapes(pruned)["wo"] == [6, 8]


def test_no_heads_where_nothing_is_repeated_over_them(assert_exact):
    """A split that no product of activations looks at loses positions, as ever."""
    body = "a = MatMul(x, w)\n r = Reshape(a, s)\n t = Sigmoid(r)\n b = Reshape(t, back)\n y = MatMul(b, v)"
    model = build(body, {"w": (8, 12), "v": (12, 8)}, ints=INTS, **IO)
    _, labels = assert_exact(model, heads=True)
    assert [f.groups.size for f in labels.families] == [6]


def test_einsum_by_a_constant_is_a_layer(assert_exact):
    body = 'h = Einsum<equation="nij,jk->nik">(x, w)\n r = Relu(h)\n y = Einsum<equation="nik,mk->nim">(r, v)'
    pruned, labels = assert_exact(build(body, {"w": (8, 12), "v": (8, 12)}, **IO))
    assert shapes(pruned) == {"w": [8, 6], "v": [8, 6]}
    assert labels.macs(labels.everything()) == 2 * 6 * 8 * 12


@pytest.mark.parametrize("equation", ["...ij,jk->...ik", "nij,jk"])
def test_einsum_without_letters_for_all(equation):
    body = f'h = MatMul(x, w)\n r = Einsum<equation="{equation}">(h, v)\n y = MatMul(r, u)'
    model = build(body, {"w": (8, 12), "v": (12, 12), "u": (12, 8)}, **IO)
    if "..." in equation:
        assert "it has an ellipsis or a diagonal" in reasons(model)
    else:
        assert "ellipsis" not in reasons(model)


def test_cosine_attention_sums_squares_over_what_goes(assert_exact):
    """Swin v2: q and k are divided by their norms, expanded to the shape that they have at run time."""
    unit = "{0}n = ReduceL2<axes=[-1]>({0}t)\n {0}c = Max({0}n, tiny)\n {0}s = Shape({0}t)\n"
    unit += " {0}e = Expand({0}c, {0}s)\n {0}u = Div({0}t, {0}e)\n"
    body = (
        SPLIT + unit.format("q") + unit.format("k") + "kk = Transpose<perm=[0,1,3,2]>(ku)\n sc = MatMul(qu, kk)\n"
        "t = Mul(sc, scale)\n u = Add(t, bias)\n p = Softmax<axis=-1>(u)\n o = MatMul(p, vt)\n" + MERGE
    )
    weights = {**WEIGHTS, "tiny": (1,), "scale": (2, 1, 1), "bias": (1, 2, 6, 6)}
    pruned, _ = assert_exact(build(body, weights, ints=INTS, **IO), at_least=2)
    assert shapes(pruned)["wq"] == [8, 6]


def test_reduce_mean_over_channels_fixes_them():
    body = SPLIT + "m = ReduceMean<axes=[-1]>(qt)\n u = Sub(qt, m)\n kk = Transpose<perm=[0,1,3,2]>(kt)\n"
    body += "sc = MatMul(u, kk)\n p = Softmax<axis=-1>(sc)\n o = MatMul(p, vt)\n" + MERGE
    assert "ReduceMean runs over the channels" in reasons(build(body, WEIGHTS, ints=INTS, **IO))


def test_heads_merged_with_the_batch(assert_exact):
    """The packed attention of PyTorch: sequence first, q, k and v from one product, heads next to the batch."""
    body = (
        "xt = Transpose<perm=[1,0,2]>(x)\n m = MatMul(xt, w)\n a = Add(m, b)\n r = Reshape(a, s3)\n"
        "q = Gather<axis=2>(r, i0)\n k = Gather<axis=2>(r, i1)\n v = Gather<axis=2>(r, i2)\n"
        "q3 = Reshape(q, s)\n k3 = Reshape(k, s)\n v3 = Reshape(v, s)\n qt = Transpose<perm=[1,0,2]>(q3)\n"
        "kt = Transpose<perm=[1,2,0]>(k3)\n vt = Transpose<perm=[1,0,2]>(v3)\n q4 = Reshape(qt, sq)\n"
        "k4 = Reshape(kt, sk)\n v4 = Reshape(vt, sq)\n sc = MatMul(q4, k4)\n p = Softmax<axis=-1>(sc)\n"
        "o = MatMul(p, v4)\n ot = Transpose<perm=[2,0,1,3]>(o)\n f = Reshape(ot, back)\n g = Gemm(f, wo)\n"
        "h = Reshape(g, out)\n y = Transpose<perm=[1,0,2]>(h)"
    )
    ints = {"s3": [6, 0, 3, 8], "s": [6, -1, 4], "sq": [-1, 2, 6, 4], "sk": [-1, 2, 4, 6], "back": [-1, 8]}
    ints |= {"out": [6, -1, 8]}
    model = build(body, {"w": (8, 24), "b": (24,), "wo": (8, 8)}, ints=ints, **IO)
    with model.edit() as graph:
        gathers = [n for n in graph.nodes if n.op == "Gather"]
        for k, node in enumerate(gathers):
            node.inputs[1] = gs.Constant(f"i{k}", np.array(k))
    pruned, _ = assert_exact(model)
    assert shapes(pruned)["w"] == [8, 12]
    pruned, labels = assert_exact(model, heads=True)
    assert shapes(pruned)["w"] == [8, 12] and [f.groups.size for f in labels.families] == [2]


NORMED = "a = MatMul(x, w)\n n = LayerNormalization<axis=-1>(a, g, b)\n s = Add(n, a)\n y = MatMul(s, v)"


def test_a_normalisation_goes_on_counting_what_is_gone(assert_exact):
    weights = {"w": (8, 12), "g": (12,), "b": (12,), "v": (12, 8)}
    pruned, _ = assert_exact(build(NORMED, weights, **IO), norms=True)
    assert [n.op for n in pruned.graph.nodes] == ["MatMul", "Pad", "LayerNormalization", "Slice", "Add", "MatMul"]
    assert shapes(pruned)["w"] == [8, 6] and shapes(pruned)["v"] == [6, 8]


def test_a_normalisation_without_a_bias(assert_exact):
    body = NORMED.replace("(a, g, b)", "(a, g)")
    assert_exact(build(body, {"w": (8, 12), "g": (12,), "v": (12, 8)}, **IO), norms=True)


@pytest.mark.parametrize("what", ["default", "two axes", "statistics used"])
def test_normalisations_that_lock(what):
    body = NORMED.replace("<axis=-1>(a, g, b)", "<axis=-2>(a, g2)" if what == "two axes" else "<axis=-1>(a, g, b)")
    if what == "statistics used":
        body = body.replace("n = LayerN", "n, mean = LayerN").replace(
            "s = Add(n, a)", "o = Sub(n, mean)\n s = Add(o, a)"
        )
    weights = {"w": (8, 12), "v": (12, 8)} | ({"g2": (6, 12)} if what == "two axes" else {"g": (12,), "b": (12,)})
    labels = propagate(build(body, weights, **IO), norms=what != "default")
    (reason,) = {x.reason for x in labels.locked if "takes its statistics over them" in x.reason}
    assert not labels.families and ("norms frees" in reason) == (what == "default")
