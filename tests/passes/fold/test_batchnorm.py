"""BatchNormalization and per-channel arithmetic into the layer before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def test_conv_without_bias_takes_a_batchnorm(fold, tensor, norm):
    found = fold(f"""{HEAD}
        g (float[N,3,5,5] x) => (float[N,4,5,5] y) <{tensor("w", 4, 3, 3, 3)}, {norm(4)}> {{
            c = Conv<pads = [1,1,1,1]>(x, w)
            y = BatchNormalization(c, s, b, m, v)
        }}""")
    assert found.ops == ["Conv"]
    assert found.result.metrics["batchnorms"] == 1
    assert found.result.skipped == []
    assert [t.name for t in found.model.graph.nodes[0].inputs][:2] == ["x", "w"]


def test_conv_with_bias_groups_and_epsilon(fold, tensor, norm):
    found = fold(f"""{HEAD}
        g (float[N,4,5,5] x) => (float[N,6,3,3] y) <{tensor("w", 6, 2, 3, 3)}, {tensor("k", 6)}, {norm(6)}> {{
            c = Conv<group = 2>(x, w, k)
            n = BatchNormalization<epsilon = 0.01>(c, s, b, m, v)
            y = Relu(n)
        }}""")
    assert found.ops == ["Conv", "Relu"]


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(fold, tensor, norm, group):
    found = fold(f"""{HEAD}
        g (float[N,4,5,5] x) => (float[N,6,7,7] y) <{tensor("w", 4, 6 // group, 3, 3)}, {norm(6)}> {{
            c = ConvTranspose<group = {group}>(x, w)
            y = BatchNormalization(c, s, b, m, v)
        }}""")
    assert found.ops == ["ConvTranspose"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["", "float[5] k", "float[1] k", "float[1,5] k"])
def test_gemm(fold, tensor, norm, transposed, bias):
    shape = (5, 7) if transposed else (7, 5)
    given = ""
    if bias:
        count = int(np.prod([int(d) for d in bias[6:-3].split(",")]))
        given = bias + " = {" + ", ".join(str(i / 3) for i in range(count)) + "}, "
    found = fold(f"""{HEAD}
        g (float[N,7] x) => (float[N,5] y) <{given}{tensor("w", *shape)}, {norm(5)}> {{
            c = Gemm<transB = {transposed}, alpha = 0.5, beta = 3.0>(x, w{", k" if bias else ""})
            y = BatchNormalization(c, s, b, m, v)
        }}""")
    assert found.ops == ["Gemm"]


@pytest.mark.parametrize("bias", [(2, 5), (5, 1), (5, 5), (2, 1)])
def test_gemm_with_a_bias_that_differs_between_rows_is_left_alone(fold, tensor, norm, bias):
    """One of [5,1] has as many values as there are channels, and is still one value a row."""
    rows = bias[0]
    found = fold(f"""{HEAD}
        g (float[{rows},7] x) => (float[{rows},5] y) <{tensor("w", 7, 5)}, {tensor("k", *bias)}, {norm(5)}> {{
            c = Gemm(x, w, k)
            y = BatchNormalization(c, s, b, m, v)
        }}""")
    assert found.ops == ["Gemm", "BatchNormalization"]
    assert "differs between rows" in found.reason("BatchNormalization")


def test_a_chain_of_norms_folds_completely(fold, tensor, norm):
    found = fold(f"""{HEAD}
        g (float[N,3,5,5] x) => (float[N,4,5,5] y)
        <{tensor("w", 4, 3, 1, 1)}, {norm(4)}, {norm(4, "2")}, float[1,4,1,1] t = {{0.5, 2.0, -1.0, 3.0}}> {{
            c = Conv(x, w)
            n = BatchNormalization(c, s, b, m, v)
            i = Identity(n)
            p = Mul(i, t)
            q = BatchNormalization(p, s2, b2, m2, v2)
            y = Add(t, q)
        }}""")
    assert found.ops == ["Conv"]
    assert found.result.metrics["affines"] == 2


@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
def test_arithmetic_with_one_value_a_channel(fold, tensor, op):
    found = fold(f"""{HEAD}
        g (float[N,3,5,5] x) => (float[N,2,5,5] y) <{tensor("w", 2, 3, 1, 1)}, float[2,1,1] t = {{0.5, -3.0}}> {{
            c = Conv(x, w)
            y = {op}(c, t)
        }}""")
    assert found.ops == ["Conv"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = Sub(t, c)", ""),  # constant minus layer: would negate the weights, left alone
        ("y = Div(c, z)", "zero"),
        ("y = Add(c, f)", "one value a channel"),
    ],
)
def test_other_arithmetic_is_left_alone(fold, tensor, body, why):
    found = fold(f"""{HEAD}
        g (float[N,3,2,2] x) => (float[N,2,2,2] y) <{tensor("w", 2, 3, 1, 1)}, {tensor("f", 2, 2, 2)},
            float[2,1,1] t = {{0.5, -3.0}}, float[2,1,1] z = {{1.0, 0.0}}> {{
            c = Conv(x, w)
            {body}
        }}""")
    assert len(found.ops) == 2
    if why:
        assert why in found.result.skipped[0].reason


def test_weights_shared_by_two_convs_are_cloned(fold, tensor, norm):
    found = fold(f"""{HEAD}
        g (float[N,3,5,5] x) => (float[N,3,5,5] y, float[N,3,5,5] z)
        <{tensor("w", 3, 3, 1, 1)}, {tensor("k", 3)}, {norm(3)}, {norm(3, "2")}> {{
            c = Conv(x, w, k)
            y = BatchNormalization(c, s, b, m, v)
            d = Conv(y, w, k)
            z = BatchNormalization(d, s2, b2, m2, v2)
        }}""")
    assert found.ops == ["Conv", "Conv"]
    first, second = found.model.graph.nodes
    assert first.inputs[1] is not second.inputs[1]
    assert first.inputs[2] is not second.inputs[2]


def test_weights_that_another_node_or_the_graph_output_reads_stay(fold, tensor, norm):
    found = fold(f"""{HEAD}
        g (float[N,3,5,5] x) => (float[N,3,5,5] y, float[3,3,1,1] w) <{norm(3)}> {{
            w = Constant<value = float[3,3,1,1] {{1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0}}>()
            c = Conv(x, w)
            y = BatchNormalization(c, s, b, m, v)
        }}""")
    assert found.ops == ["Constant", "Conv", "BatchNormalization"]


REFUSED = {
    "read twice": (
        "y = BatchNormalization(c, s, b, m, v)\n z = Relu(c)",
        "float[N,4,5,5] y, float[N,4,5,5] z",
        "other nodes read",
    ),
    "graph output": (
        "y = BatchNormalization(c, s, b, m, v)",
        "float[N,4,5,5] y, float[N,4,5,5] c",
        "output of the graph",
    ),
    "through an activation": (
        "r = Relu(c)\n y = BatchNormalization(r, s, b, m, v)",
        "float[N,4,5,5] y",
        "not written by",
    ),
    "negative variance": ("y = BatchNormalization(c, s, b, m, neg)", "float[N,4,5,5] y", "not positive"),
    "computed scale": (
        "t = ReduceMax<keepdims=0, axes=[0,2,3]>(c)\n y = BatchNormalization(x4, t, b, m, v)",
        "float[N,4,5,5] y",
        "not constant",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(fold, tensor, norm, case):
    body, outputs, why = REFUSED[case]
    found = fold(
        f"""{HEAD}
        g (float[N,3,5,5] x, float[N,4,5,5] x4) => ({outputs})
        <{tensor("w", 4, 3, 1, 1)}, {norm(4)}, float[4] neg = {{1.0, 1.0, -1.0, 1.0}}> {{
            c = Conv(x, w)
            {body}
        }}""",
        run=case != "negative variance",
    )
    if case == "computed scale":
        assert "not written by" in found.reason("BatchNormalization") or why in found.reason("BatchNormalization")
    else:
        assert why in found.reason("BatchNormalization")
    assert "BatchNormalization" in found.ops


def test_training_mode_is_refused(fold, tensor, norm):
    found = fold(
        f"""{HEAD}
        g (float[N,3,5,5] x) => (float[N,4,5,5] y, float[4] rm, float[4] rv) <{tensor("w", 4, 3, 1, 1)}, {norm(4)}> {{
            c = Conv(x, w)
            y, rm, rv = BatchNormalization<training_mode = 1>(c, s, b, m, v)
        }}""",
        run=False,
    )
    assert found.reason("BatchNormalization") == "it is in training mode"


def test_weights_that_come_from_dequantization_are_refused(fold, norm):
    found = fold(f"""{HEAD}
        g (float[N,1,5,5] x) => (float[N,2,5,5] y)
        <int8[2,1,1,1] q = {{3, -7}}, float k = {{0.5}}, int8 z = {{0}}, {norm(2)}> {{
            w = DequantizeLinear(q, k, z)
            c = Conv(x, w)
            y = BatchNormalization(c, s, b, m, v)
        }}""")
    assert found.ops == ["DequantizeLinear", "Conv", "BatchNormalization"]
    assert "not float constants" in found.reason("BatchNormalization")
    assert "quantized" in found.reason("DequantizeLinear")


def test_a_default_input_is_not_a_constant(fold, norm):
    found = fold(
        f"""{HEAD}
        g (float[N,1,5,5] x, float[2,1,1,1] w = {{3.0, -7.0}}) => (float[N,2,5,5] y) <{norm(2)}> {{
            c = Conv(x, w)
            y = BatchNormalization(c, s, b, m, v)
        }}""",
        run=False,
    )
    assert found.ops == ["Conv", "BatchNormalization"]
    assert [t.name for t in found.model.graph.inputs] == ["x", "w"]


def test_weights_that_a_subgraph_reads_stay(fold, tensor, norm):
    found = fold(f"""{HEAD}
        g (bool cond, float[N,3,5,5] x) => (float[N,3,5,5] y, float[3,3,1,1] z)
        <{tensor("w", 3, 3, 1, 1)}, {norm(3)}> {{
            c = Conv(x, w)
            y = BatchNormalization(c, s, b, m, v)
            f = Cast <to = 1> (cond)
            z = If (cond) <
                then_branch = a () => (float[3,3,1,1] t) {{ t = Add(w, f) }},
                else_branch = e () => (float[3,3,1,1] u) {{ u = Sub(w, f) }}
            >
        }}""")
    assert found.ops == ["Conv", "Cast", "If"]
    proto = onnx.load_from_string(found.before)
    weight = next(onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "w")
    assert np.array_equal(found.initializer("w"), weight)


def test_overflow_in_float16_is_refused(fold):
    # The text format takes float16 values by their bits: 60000, 2, 0, 0, 1.
    found = fold(
        f"""{HEAD}
        g (float16[N,1,2,2] x) => (float16[N,1,2,2] y)
        <float16[1,1,1,1] w = {{31571}}, float16[1] s = {{16384}}, float16[1] b = {{0}}, float16[1] m = {{0}},
         float16[1] v = {{15360}}> {{
            c = Conv(x, w)
            y = BatchNormalization(c, s, b, m, v)
        }}""",
        run=False,
    )
    assert "not finite in float16" in found.reason("BatchNormalization")


def test_old_opset_with_spatial_attribute(fold, tensor, norm):
    found = fold(f"""<ir_version: 4, opset_import: ["" : 7]>
        g (float[N,3,5,5] x) => (float[N,4,5,5] y) <{tensor("w", 4, 3, 1, 1)}, {norm(4)}> {{
            c = Conv(x, w)
            y = BatchNormalization<spatial = 1>(c, s, b, m, v)
        }}""")
    assert found.ops == ["Conv"]


def test_one_constant_as_weights_and_bias(fold, tensor, norm):
    found = fold(f"""{HEAD}
        g (float[N,1] x) => (float[N,4] y) <{tensor("w", 1, 4)}, {norm(4)}> {{
            c = Gemm(x, w, w)
            y = BatchNormalization(c, s, b, m, v)
        }}""")
    assert found.ops == ["Gemm"]
