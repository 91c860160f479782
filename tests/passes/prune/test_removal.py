"""Removal on small graphs: what is left is exactly the original with the removed channels masked."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from small_graphs import HEAD, build, shapes

from graphopt.analysis.labels import propagate
from graphopt.ir import infer_shapes
from graphopt.passes.prune.surgery import remove


def test_conv_relu_gemm(assert_exact):
    model = build("a = Conv(x, w, b)\n z = Relu(a)\n" + HEAD, {"w": (8, 3, 3, 3), "b": (8,), "wf": (5, 8), "bf": (5,)})
    pruned, labels = assert_exact(model)
    assert shapes(pruned) == {"w": [4, 3, 3, 3], "b": [4], "wf": [5, 4], "bf": [5]}
    assert [f.producers for f in labels.families] == [(model.graph.nodes[0].name,)]


def test_batchnorm_and_sigmoid_keep_a_residue_that_is_not_zero(assert_exact):
    body = "a = Conv(x, w)\n n = BatchNormalization(a, s, b, m, var)\n z = Sigmoid(n)\n" + HEAD
    weights = {"w": (8, 3, 3, 3), "s": (8,), "b": (8,), "m": (8,), "var": (8,), "wf": (5, 8), "bf": (5,)}
    pruned, _ = assert_exact(build(body, weights))
    assert shapes(pruned)["var"] == [4]


def test_residual_couples_both_branches(assert_exact):
    body = "a = Conv(x, w)\n b = Relu(a)\n c = Conv<pads=[1,1,1,1]>(b, v)\n z = Add(c, b)\n" + HEAD
    pruned, labels = assert_exact(build(body, {"w": (8, 3, 1, 1), "v": (8, 8, 3, 3), "wf": (5, 8), "bf": (5,)}))
    assert shapes(pruned)["v"] == [4, 4, 3, 3]
    assert len(labels.families) == 1 and len(labels.families[0].producers) == 2


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_rewrites_group(assert_exact, multiplier):
    out = 8 * multiplier
    body = "a = Conv(x, w)\n z = Conv<group=8>(a, d, b)\n" + HEAD
    pruned, _ = assert_exact(
        build(body, {"w": (8, 3, 1, 1), "d": (out, 1, 3, 3), "b": (out,), "wf": (5, out), "bf": (5,)})
    )
    depthwise = pruned.graph.nodes[1]
    assert depthwise.attrs["group"] == 4 and list(depthwise.inputs[1].shape) == [4 * multiplier, 1, 3, 3]


def test_grouped_conv_stays_rectangular(assert_exact):
    body = "a = Conv(x, w)\n z = Conv<group=2>(a, d)\n" + HEAD
    pruned, labels = assert_exact(
        build(body, {"w": (8, 3, 1, 1), "d": (12, 4, 3, 3), "wf": (5, 12), "bf": (5,)}), at_least=2
    )
    assert pruned.graph.nodes[1].attrs["group"] == 2
    assert shapes(pruned)["d"] == [6, 2, 3, 3]
    assert sorted(f.groups.size for f in labels.families) == [4, 6]


def test_grouped_conv_with_one_output_per_group_drops_whole_groups(assert_exact):
    body = "a = Conv(x, w)\n z = Conv<group=4>(a, d)\n" + HEAD
    pruned, _ = assert_exact(build(body, {"w": (8, 3, 1, 1), "d": (4, 2, 3, 3), "wf": (5, 4), "bf": (5,)}))
    assert pruned.graph.nodes[1].attrs["group"] == 2 and shapes(pruned)["w"] == [4, 3, 1, 1]


@pytest.mark.parametrize(("per_in", "per_out"), [(1, 3), (2, 1), (2, 3)])
def test_grouped_conv_transpose(assert_exact, per_in, per_out):
    body = "a = Conv(x, w)\n z = ConvTranspose<group=4, strides=[2,2]>(a, t, b)\n" + HEAD
    out = 4 * per_out
    weights = {"w": (4 * per_in, 3, 1, 1), "t": (4 * per_in, per_out, 2, 2), "b": (out,), "wf": (5, out), "bf": (5,)}
    pruned, _ = assert_exact(build(body, weights))
    whole = per_in == 1 or per_out == 1
    assert pruned.graph.nodes[1].attrs["group"] == (2 if whole else 4)
    assert shapes(pruned)["w"][0] == 2 * per_in


def test_conv_transpose_has_its_axes_swapped(assert_exact):
    body = "a = Conv(x, w)\n z = ConvTranspose<strides=[2,2]>(a, t, b)\n" + HEAD
    weights = {"w": (8, 3, 1, 1), "t": (8, 6, 2, 2), "b": (6,), "wf": (5, 6), "bf": (5,)}
    pruned, _ = assert_exact(build(body, weights), at_least=2)
    assert shapes(pruned)["t"] == [4, 3, 2, 2]


def test_squeeze_excite_gate_couples_on_channels(assert_exact):
    body = (
        "a = Conv(x, w)\n g = ReduceMean<axes=[2,3]>(a)\n h = Conv(g, s1)\n r = Relu(h)\n i = Conv(r, s2, sb)\n"
        "k = HardSigmoid(i)\n z = Mul(a, k)\n" + HEAD
    )
    weights = {"w": (8, 3, 1, 1), "s1": (4, 8, 1, 1), "s2": (8, 4, 1, 1), "sb": (8,), "wf": (5, 8), "bf": (5,)}
    pruned, _labels = assert_exact(build(body, weights), at_least=2)
    assert shapes(pruned)["s1"] == [2, 4, 1, 1]


def test_padded_shortcut(assert_exact):
    """The CIFAR ResNet shortcut: a strided spatial Slice, then zero channels on both sides."""
    body = (
        "a = Conv<pads=[1,1,1,1]>(x, w)\n b = Relu(a)\n c = Conv<strides=[2,2], pads=[1,1,1,1]>(b, v)\n"
        "s = Slice(b, st, en, ax, step)\n q = Pad(s, pads)\n z = Add(c, q)\n" + HEAD
    )
    ints = {"st": [0, 0], "en": [8, 8], "ax": [2, 3], "step": [2, 2], "pads": [0, 2, 0, 0, 0, 2, 0, 0]}
    pruned, labels = assert_exact(
        build(body, {"w": (8, 3, 3, 3), "v": (12, 8, 3, 3), "wf": (5, 12), "bf": (5,)}, ints=ints), at_least=2
    )
    assert sorted(f.groups.size for f in labels.families) == [4, 8]
    pads = next(n for n in pruned.graph.nodes if n.op == "Pad").inputs[1].values
    assert pads[1] + pads[5] == 2 and shapes(pruned)["v"] == [6, 4, 3, 3]


def test_nhwc_flatten_repeats_labels(assert_exact):
    body = "a = Conv(x, w)\n t = Transpose<perm=[0,2,3,1]>(a)\n f = Reshape(t, shape)\n y = MatMul(f, m)"
    pruned, _labels = assert_exact(build(body, {"w": (8, 3, 3, 3), "m": (288, 5)}, ints={"shape": [-1, 288]}))
    assert shapes(pruned)["m"] == [144, 5]
    assert list(pruned.graph.nodes[2].inputs[1].values) == [-1, 144]


def test_nchw_flatten(assert_exact):
    body = "a = Conv(x, w)\n f = Flatten(a)\n y = Gemm(f, m)"
    pruned, _ = assert_exact(build(body, {"w": (8, 3, 3, 3), "m": (288, 5)}))
    assert shapes(pruned)["m"] == [144, 5]


def test_channel_shuffle_becomes_a_gather(assert_exact):
    body = (
        "a = Conv(x, w)\n r = Reshape(a, s5)\n t = Transpose<perm=[0,2,1,3,4]>(r)\n q = Reshape(t, s4)\n"
        "z = Conv<group=2>(q, d)\n" + HEAD
    )
    ints = {"s5": [0, 2, 4, 8, 8], "s4": [0, -1, 8, 8]}
    pruned, _ = assert_exact(build(body, {"w": (8, 3, 1, 1), "d": (8, 4, 1, 1), "wf": (5, 8), "bf": (5,)}, ints=ints))
    assert [n.op for n in pruned.graph.nodes[:3]] == ["Conv", "Gather", "Conv"]
    assert sorted(pruned.graph.nodes[1].inputs[1].values) == [0, 1, 2, 3]


def test_channel_shuffle_ties_no_channels(assert_exact):
    """The depthwise convolution behind it lets each channel go by itself."""
    body = (
        "a = Conv(x, w)\n r = Reshape(a, s5)\n t = Transpose<perm=[0,2,1,3,4]>(r)\n q = Reshape(t, s4)\n"
        "z = Conv<group=8>(q, d)\n" + HEAD
    )
    ints = {"s5": [0, 2, 4, 8, 8], "s4": [0, -1, 8, 8]}
    model = build(body, {"w": (8, 3, 1, 1), "d": (8, 1, 1, 1), "wf": (5, 8), "bf": (5,)}, ints=ints)
    _, labels = assert_exact(model, part=0.3)
    assert [f.groups.size for f in labels.families] == [8]


def test_channel_shuffle_that_others_read_stays_rectangular(assert_exact):
    body = (
        "a = Conv(x, w)\n r = Reshape(a, s5)\n t = Transpose<perm=[0,2,1,3,4]>(r)\n q = Reshape(t, s4)\n"
        "m = ReduceMax<axes=[2], keepdims=0>(r)\n k = ReduceMax<axes=[1], keepdims=1>(m)\n z = Mul(q, k)\n" + HEAD
    )
    body = body.replace("ReduceMax<axes=[2]", "ReduceMax<axes=[1]")
    ints = {"s5": [0, 2, 4, 8, 8], "s4": [0, -1, 8, 8]}
    model = build(body, {"w": (8, 3, 1, 1), "wf": (5, 8), "bf": (5,)}, ints=ints)
    labels = propagate(model)
    assert not labels.shuffles and all(f.groups.size < 8 for f in labels.families)


def test_concat_split_slice_gather(assert_exact):
    body = (
        "a = Conv(x, w)\n b = Conv(x, v)\n c = Concat<axis=1>(a, b)\n s1, s2 = Split<axis=1>(c, parts)\n"
        "h = Slice(s2, st, en, ax)\n g = Gather<axis=1>(s1, idx)\n u = Conv(h, wu)\n k = Conv(g, wk)\n z = Add(u, k)\n"
        + HEAD
    )
    ints = {"parts": [6, 8], "st": [2], "en": [9223372036854775807], "ax": [1], "idx": [4, 0, 5, 2]}
    weights = {"w": (8, 3, 1, 1), "v": (6, 3, 1, 1), "wu": (4, 6, 1, 1), "wk": (4, 4, 1, 1), "wf": (5, 4), "bf": (5,)}
    assert_exact(build(body, weights, ints=ints), at_least=3)


@pytest.mark.parametrize("channels", [8, 7])
def test_split_without_sizes_gets_some(assert_exact, channels):
    """The parts may lose different numbers of channels; the last of them may be smaller from the start."""
    body = "a = Conv(x, w)\n b, c = Split<axis=1, num_outputs=2>(a)\n u = Conv(b, wu)\n k = Conv(c, wk)\n"
    half = channels - 4
    weights = {"w": (channels, 3, 1, 1), "wu": (6, 4, 1, 1), "wk": (6, half, 1, 1), "wf": (5, 6), "bf": (5,)}
    pruned, _ = assert_exact(build(body + "z = Add(u, k)\n" + HEAD, weights, opset=18), part=0.4, at_least=3)
    node = next(n for n in pruned.graph.nodes if n.op == "Split")
    assert list(node.inputs[1].values) == [2, half - 2] and "num_outputs" not in node.attrs


@pytest.mark.parametrize("op", ["Reshape", "Expand"])
def test_target_shapes_computed_at_run_time(assert_exact, op):
    source = "a" if op == "Reshape" else "e"
    body = (
        "a = Conv(x, w)\n e = ReduceMax<axes=[1]>(x)\n b = Conv(x, v)\n s = Shape(x)\n n = Gather(s, i)\n"
        f"t = Concat<axis=0>(n, rest)\n r = {op}({source}, t)\n q = Sigmoid(r)\n z = Mul(q, b)\n" + HEAD
    )
    weights = {"w": (8, 3, 1, 1), "v": (8, 3, 1, 1), "wf": (5, 8), "bf": (5,)}
    model = build(body, weights, ints={"i": [0], "rest": [8, 8, 8]})
    pruned, labels = assert_exact(model)
    assert {f.groups.size for f in labels.families} == {8} and shapes(pruned)["v"] == [4, 3, 1, 1]


def test_repeated_constant_is_cut_with_what_it_is_joined_to(assert_exact):
    """The class token of a transformer."""
    body = (
        "a = Conv(x, w)\n r = Reshape(a, flat)\n s = Shape(x)\n n = Gather(s, i)\n t = Concat<axis=0>(n, one)\n"
        "e = Expand(token, t)\n c = Concat<axis=2>(e, r)\n m = ReduceMean<axes=[2], keepdims=0>(c)\n"
        "y = Gemm<transB=1>(m, wf, bf)"
    )
    weights = {"w": (8, 3, 1, 1), "token": (1, 8, 1), "wf": (5, 8), "bf": (5,)}
    pruned, _ = assert_exact(build(body, weights, ints={"flat": [0, 8, 64], "i": [0], "one": [1, 1]}))
    assert shapes(pruned)["token"] == [1, 4, 1]


@pytest.mark.parametrize(("start", "end", "step"), [(0, 8, 2), (1, 99, 3), (-1, -99, -2)])
def test_slice_with_a_step(assert_exact, start, end, step):
    body = "a = Conv(x, w)\n z = Slice(a, st, en, ax, by)\n" + HEAD
    left = len(range(8)[start:end:step])
    ints = {"st": [start, 0], "en": [end, 5], "ax": [1, 2], "by": [step, 1]}
    pruned, _ = assert_exact(build(body, {"w": (8, 3, 1, 1), "wf": (5, left), "bf": (5,)}, ints=ints))
    assert shapes(pruned)["w"][0] < 5 and "Gather" in [n.op for n in pruned.graph.nodes]


def test_gather_of_single_channels_keeps_those(assert_exact):
    body = "a = Conv(x, w)\n c = Gather<axis=1>(a, one)\n u = Unsqueeze(c, ax)\n z = Add(a, u)\n" + HEAD
    ints = {"one": [5], "ax": [1]}
    model = build(body, {"w": (8, 3, 1, 1), "wf": (5, 8), "bf": (5,)}, ints=ints)
    with model.edit() as graph:
        gather = next(n for n in graph.nodes if n.op == "Gather")
        gather.inputs[1] = gs.Constant("five", np.array(5))
        for tensor in (gather.outputs[0], graph.nodes[2].outputs[0]):
            tensor.shape = None
    infer_shapes(model, fresh=True)
    pruned, labels = assert_exact(model)
    assert sum(f.groups.size for f in labels.families) == 7
    index = next(n for n in pruned.graph.nodes if n.op == "Gather").inputs[1]
    assert index.values.shape == () and index.values < 4


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(assert_exact, mode):
    body = (
        f'a = Conv(x, w)\n s = DepthToSpace<blocksize=2, mode="{mode}">(a)\n z = SpaceToDepth<blocksize=2>(s)\n' + HEAD
    )
    pruned, labels = assert_exact(build(body, {"w": (16, 3, 1, 1), "wf": (5, 16), "bf": (5,)}))
    assert [f.groups.size for f in labels.families] == [4] and shapes(pruned)["w"] == [8, 3, 1, 1]


def test_constant_sizes_are_rewritten(assert_exact):
    body = "a = Conv(x, w)\n e = Relu(a)\n z = Resize(e, , , sizes)\n" + HEAD
    model = build(
        body,
        {"w": (8, 3, 1, 1), "wf": (5, 8), "bf": (5,)},
        x="float[1,3,8,8] x",
        y="float[1,5] y",
        ints={"sizes": [1, 8, 16, 16]},
    )
    pruned, _ = assert_exact(model)
    assert list(pruned.graph.nodes[2].inputs[3].values) == [1, 4, 16, 16]


def test_per_channel_quantized_weight(assert_exact):
    text = "a = Conv(x, w)\n qa = QuantizeLinear(a, sa, za)\n z = DequantizeLinear(qa, sa, za)\n" + HEAD
    model = build(text.replace("sa, za", "sa"), {"w": (8, 3, 1, 1), "sa": (1,), "wf": (5, 8), "bf": (5,)})
    conv = model.graph.nodes[0]
    weight = np.random.default_rng(0).integers(-127, 128, (8, 3, 1, 1)).astype(np.int8)
    scale = gs.Variable("wq", dtype=np.float32, shape=[8, 3, 1, 1])
    node = gs.Node(
        "DequantizeLinear",
        "dq",
        {"axis": 0},
        [
            gs.Constant("wi", weight),
            gs.Constant("ws", np.linspace(0.01, 0.1, 8, dtype=np.float32)),
            gs.Constant("wz", np.zeros(8, dtype=np.int8)),
        ],
        [scale],
    )
    sa = next(t for k, t in model.graph.tensors().items() if k == "sa")
    sa.values = np.array(0.05, dtype=np.float32)
    with model.edit() as graph:
        conv.inputs[1] = scale
        graph.nodes.insert(0, node)
    pruned, _ = assert_exact(model)
    assert shapes(pruned)["wi"] == [4, 3, 1, 1] and shapes(pruned)["ws"] == [4]


def test_shared_initializer_is_cloned_when_uses_differ(assert_exact):
    """Two convolutions share a bias and lose different channels."""
    body = "a = Conv(x, w, b)\n c = Relu(a)\n z = Conv(c, v, b)\n" + HEAD
    model = build(body, {"w": (8, 3, 1, 1), "v": (8, 8, 1, 1), "b": (8,), "wf": (5, 8), "bf": (5,)})
    pruned, _labels = assert_exact(model, at_least=2)
    biases = [n.inputs[2] for n in pruned.graph.nodes if n.op == "Conv"]
    assert len({b.name for b in biases}) == 2 and all(list(b.shape) == [4] for b in biases)


def test_shared_initializer_used_alike_stays_shared(assert_exact):
    body = "a = Conv(x, w)\n b = Add(a, c)\n z = Mul(b, c)\n" + HEAD
    model = build(body, {"w": (8, 3, 1, 1), "c": (8, 1, 1), "wf": (5, 8), "bf": (5,)})
    pruned, _ = assert_exact(model)
    assert shapes(pruned)["c"] == [4, 1, 1] and len(shapes(pruned)) == 4


def test_initializer_that_a_subgraph_reads_keeps_its_original(assert_exact):
    body = (
        "a = Conv(x, w, b)\n z = Relu(a)\n p = GlobalAveragePool(z)\n f = Flatten(p)\n y0 = Gemm<transB=1>(f, wf, bf)\n"
        "s = ReduceSum<keepdims=0>(x)\n t = Greater(s, zero)\n"
        "e = If(t)<then_branch = g1 () => (float[8] o) { o = Identity(b) }, "
        "else_branch = g2 () => (float[8] o) { o = Neg(b) }>\n"
        "k = ReduceSum<keepdims=0>(e)\n y = Add(y0, k)"
    )
    model = build(body, {"w": (8, 3, 1, 1), "b": (8,), "wf": (5, 8), "bf": (5,), "zero": (1,)})
    pruned, _ = assert_exact(model)
    assert list(pruned.graph.nodes[0].inputs[2].shape) == [4]
    inner = next(n for n in pruned.graph.nodes if n.op == "If").attrs["then_branch"]
    assert list(inner.nodes[0].inputs[0].shape) == [8]


def test_attention_prunes_head_dimensions(assert_exact):
    """Scores are a product of two activations: q and k lose the same positions, v its own."""
    body = (
        "q = MatMul(x, wq)\n k = MatMul(x, wk)\n v = MatMul(x, wv)\n q4 = Reshape(q, s)\n k4 = Reshape(k, s)\n"
        "v4 = Reshape(v, s)\n qt = Transpose<perm=[0,2,1,3]>(q4)\n kt = Transpose<perm=[0,2,3,1]>(k4)\n"
        "vt = Transpose<perm=[0,2,1,3]>(v4)\n sc = MatMul(qt, kt)\n p = Softmax<axis=-1>(sc)\n o = MatMul(p, vt)\n"
        "ot = Transpose<perm=[0,2,1,3]>(o)\n f = Reshape(ot, back)\n y = MatMul(f, wo)"
    )
    weights = {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 8)}
    model = build(body, weights, x="float[N,6,8] x", y="float[N,6,8] y", ints={"s": [0, 6, 2, 6], "back": [0, 6, 12]})
    pruned, _labels = assert_exact(model, at_least=2)
    assert shapes(pruned)["wq"] == [8, 6] and shapes(pruned)["wo"] == [6, 8]


def test_keeping_everything_is_doing_nothing():
    model = build("a = Conv(x, w)\n z = Relu(a)\n" + HEAD, {"w": (8, 3, 3, 3), "wf": (5, 8), "bf": (5,)})
    before, revision = model.to_bytes(), model.revision
    labels = propagate(model)
    remove(model, labels, labels.everything())
    assert model.to_bytes() == before and model.revision == revision
