"""Constant subgraphs: what is evaluated, what the byte budget allows, and what is never touched."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Model, UsageError
from graphopt.passes.fold import Fold, evaluate


def graph(body: str, outputs="float[N,4] y", more="", inputs="float[N,4] x", opset=17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {more} {{ {body} }}'


@pytest.mark.parametrize(
    "value",
    ["value = float[2,2] {1.0,2.0,3.0,4.0}", "value_float = 2.0", "value_floats = [1.0,2.0]", "value = double {2.0}"],
)
def test_constant_nodes_become_initializers_of_the_same_name(fold, value):
    cast = "" if "double" not in value else "k2 = Cast<to = 1>(k)"
    found = fold(
        graph(f"k = Constant<{value}>() {cast} y = Mul(x, {'k2' if cast else 'k'})", "float[P,Q] y", "", "float[P,2] x")
        if "2,2" not in value
        else graph(f"k = Constant<{value}>() y = MatMul(x, k)", "float[N,2] y", "", "float[N,2] x")
    )
    assert len(found.ops) == 1
    if not cast:
        assert found.initializer("k").dtype == np.float32


def test_integer_constant_attributes(fold):
    body = """i = Constant<value_ints = [2, 0]>() j = Constant<value_int = 1>()
        a = Gather<axis=1>(x, i) y = Gather<axis=1>(a, j)"""
    found = fold(graph(body, "float[N] y"))
    assert found.ops == ["Gather", "Gather"]
    assert found.initializer("j").shape == ()


def test_a_constant_that_is_a_graph_output_stays_a_node(fold):
    found = fold(graph("k = Constant<value_float = 2.0>() y = Mul(x, k)", "float[N,4] y, float k"))
    assert found.ops == ["Constant", "Mul"]
    assert "output of the graph" in found.reason("Constant")


def test_a_computed_graph_output_becomes_one_constant_node(fold):
    found = fold(
        graph("a = Add(k, k) z = Exp(a) y = Mul(x, z)", "float[N,4] y, float[4] z", "<float[4] k = {1.0,2.0,3.0,4.0}>")
    )
    assert found.ops == ["Constant", "Mul"]


def test_a_text_constant_is_left_alone(fold):
    found = fold(graph('k = Constant<value_string = "text">() y = Relu(x)', "float[N,4] y, string k"), run=False)
    assert "Constant" in found.ops


def test_a_subgraph_is_evaluated_at_once_and_its_weights_vanish(fold, tensor, monkeypatch):
    import graphopt.passes.fold.evaluate as evaluate

    sessions = []
    opener = evaluate.open_session
    monkeypatch.setattr(evaluate, "open_session", lambda *a, **k: sessions.append(a) or opener(*a, **k))
    found = fold(
        graph(
            "a = Transpose(w) b = Mul(a, w2) c, d = Split<axis = 1>(b) e = Concat<axis = 1>(d, c) f = Exp(k)"
            " g = MatMul(x, e) y = Add(g, f)",
            more=f"<{tensor('w', 4, 4)}, {tensor('w2', 4, 4)}, {tensor('k', 4)}>",
        )
    )
    assert found.ops == ["Gemm"]
    assert found.result.metrics["constants"] == 5
    assert len(sessions) == 1


def test_values_computed_from_scalars_and_empty_tensors(fold):
    found = fold(
        graph(
            "r = Range(a, b, c) f = Cast<to = 1>(r) s = ReduceSum(f, axes) y = Add(x, s)",
            more="<int64 a = {0}, int64 b = {5}, int64 c = {2}, int64[0] axes = {}>",
            outputs="float[N,4] y",
        )
    )
    assert found.counts["Add"] == 1
    assert len(found.ops) == 1


BLOW_UPS = {
    "ConstantOfShape": "big = ConstantOfShape(shape)",
    "Expand": "big = Expand(one, shape)",
    "Tile": "big = Tile(one2, shape)",
    "Range": "big0 = Range(zero, four_million, oneint) big1 = Cast<to = 1>(big0) big = Reshape(big1, shape)",
}


@pytest.mark.parametrize("op", BLOW_UPS)
def test_a_small_file_stays_small(fold, op):
    """A 150-byte model must not become one of 16.8 MB."""
    found = fold(
        graph(
            f"{BLOW_UPS[op]} y = Add(x, big)",
            "float[2048,2048] y",
            "<int64[2] shape = {2048, 2048}, float one = {1.5}, float[1,1] one2 = {1.5}, int64 zero = {0},"
            " int64 four_million = {4194304}, int64 oneint = {1}>",
            "float[2048,2048] x",
        ),
        run=False,
    )
    assert op in found.ops
    assert len(found.after) < len(found.before) + 200
    assert "budget" in found.reason(op)


def test_what_feeds_a_blow_up_is_folded_although_it_is_not(fold):
    found = fold(
        graph(
            "s = Add(half, half) big = ConstantOfShape(s) n = Neg(big) y = Add(x, n)",
            "float[2048,2048] y",
            "<int64[2] half = {1024, 1024}>",
            "float[2048,2048] x",
        ),
        run=False,
    )
    assert found.ops == ["ConstantOfShape", "Neg", "Add"]
    assert len(found.after) < 500


def test_a_blow_up_that_shrinks_again_is_folded(fold):
    found = fold(
        graph(
            "big = ConstantOfShape<value = float[1] {1.0}>(s) n = ReduceSum<keepdims = 0>(big) y = Mul(x, n)",
            more="<int64[2] s = {512, 512}>",
        )
    )
    assert found.ops == ["Mul"]


def test_a_blow_up_beyond_the_working_memory_is_not_computed(fold):
    found = fold(
        graph(
            "big = ConstantOfShape<value = float[1] {1.0}>(s) n = ReduceSum<keepdims = 0>(big) y = Mul(x, n)",
            more="<int64[3] s = {100000, 100000, 100000}>",
        ),
        run=False,
    )
    assert found.ops == ["ConstantOfShape", "ReduceSum", "Mul"]
    assert "too large to compute" in found.reason("ConstantOfShape")


def test_the_budget_is_an_option(fold):
    text = graph(
        "big = ConstantOfShape(s) y = Add(x, big)", "float[10,10] y", "<int64[2] s = {10, 10}>", "float[10,10] x"
    )
    assert fold(text).ops == ["Add"]
    assert fold(text, budget=384).ops == ["Add"]  # 400 bytes for the 16 of s, which vanishes
    assert fold(text, budget=383).ops == ["ConstantOfShape", "Add"]
    with pytest.raises(UsageError):
        Fold(budget=-1)


def test_weights_that_stay_are_not_doubled(fold, tensor):
    """A transposed copy of a weight that another node reads would add its bytes to the file."""
    body = "t = Transpose(w) a = MatMul(x, w) y = MatMul(a, t)"
    small = f"<{tensor('w', 4, 4)}>"
    assert fold(graph(body, more=small)).ops == ["MatMul", "MatMul"]
    found = fold(graph(body, more=small), budget=0)
    assert found.ops == ["Transpose", "MatMul", "MatMul"]


def test_nonzero_is_bounded_and_computed(fold):
    found = fold(
        graph(
            "n = NonZero(k) t = Transpose(n) i = Squeeze(t, ax) a = Gather<axis = 1>(x, i) y = Relu(a)",
            "float[N,m] y",
            "<float[4] k = {1.0, 0.0, 0.0, 2.0}, int64[1] ax = {1}>",
        )
    )
    assert found.ops == ["Gather", "Relu"]


KEPT = {
    "RandomNormal": "r = RandomNormal<shape = [4]>()",
    "RandomNormalLike": "r = RandomNormalLike(k)",
    "RandomUniform": "r = RandomUniform<shape = [4]>()",
    "RandomUniformLike": "r = RandomUniformLike(k)",
    "Bernoulli": "r = Bernoulli(k)",
    "Multinomial": "q = Multinomial<sample_size = 4>(k2) r0 = Cast<to = 1>(q) r = Squeeze(r0, zero)",
    "Dropout": "r = Dropout(k, half, yes)",
    "QuantizeLinear": "q = QuantizeLinear(k, half, point) r = DequantizeLinear(q, half, point)",
    "DequantizeLinear": "r = DequantizeLinear(eight, half, point)",
}


@pytest.mark.parametrize("op", KEPT)
def test_never_evaluated(fold, op):
    found = fold(
        graph(
            f"{KEPT[op]} y = Add(x, r)",
            more="<float[4] k = {0.1, 0.2, 0.3, 0.4}, float[1,4] k2 = {0.1, 0.2, 0.3, 0.4}, float half = {0.5},"
            " bool yes = {1}, int8 point = {0}, int8[4] eight = {1, 2, 3, 4}, int64[1] zero = {0}>",
        ),
        run=False,
    )
    assert op in found.ops
    if op not in ("RandomNormal", "RandomUniform"):  # these have no inputs: nothing suggests folding them
        assert found.reason(op)


def test_unused_random_nodes_stay(fold):
    found = fold(graph("r = RandomNormal<shape = [4]>() y = Relu(x)"), run=False)
    assert found.ops == ["RandomNormal", "Relu"]
    assert "random" in found.reason("RandomNormal")


def test_a_default_input_is_not_constant(fold):
    found = fold(graph("a = Exp(k) y = Add(x, a)", inputs="float[N,4] x, float[4] k = {1.0, 2.0, 3.0, 4.0}"), run=False)
    assert found.ops == ["Exp", "Add"]
    proto = onnx.load_from_string(found.after)
    assert [t.name for t in proto.graph.initializer] == ["k"]


def test_an_initializer_that_had_to_be_an_input_is_constant(fold):
    """Before IR version 4 the format listed every weight among the inputs."""
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "k")
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Exp", ["k"], ["a"]), helper.make_node("Add", ["x", "a"], ["y"])],
            "g",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 4]), ("k", [4]))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 9)],
        ir_version=3,
    )
    model = Model.from_proto(proto)
    assert [t.name for t in model.graph.inputs] == ["x"]
    assert len(proto.graph.input) == 2
    from graphopt.ir import infer_shapes

    infer_shapes(model)
    assert fold(model).ops == ["Add"]


def test_what_onnxruntime_cannot_compute_is_named_and_the_rest_folds(fold):
    # The runtime has a kernel of Erf for float, not for double.
    found = fold(
        graph(
            "e = Erf(d) f = Cast<to = 1>(e) g = Exp(k) h = Neg(g) a = Add(x, f) y = Mul(a, h)",
            more="<double[4] d = {0.1, 0.2, 0.3, 0.4}, float[4] k = {0.1, 0.2, 0.3, 0.4}>",
        ),
        run=False,
    )
    assert found.ops == ["Erf", "Cast", "Add", "Mul"]
    assert "ONNX Runtime cannot compute it" in found.reason("Erf")


def test_types_that_numpy_lacks_are_left_alone(fold):
    found = fold(
        graph(
            "b = Constant<value = bfloat16[4] {16256, 16384, 16448, 16512}>() f = Cast<to = 1>(b) y = Add(x, f)",
        ),
        run=False,
    )
    assert found.ops == ["Cast", "Add"]
    assert "numpy" in found.reason("Cast")


def test_a_wrong_recorded_shape_does_not_get_past_the_budget(fold):
    """The file may say that a tensor is small; what is stored is what was computed."""
    model = Model.from_text(
        graph(
            "big = Expand(one, shape) y = Add(x, big)",
            "float[2048,2048] y",
            "<float one = {1.5}>",
            "float[2048,2048] x, int64[2] shape = {2048, 2048}",
        )
    )
    # As a default input the shape is not seen by inference; made constant afterwards, the wrong record stays.
    default = model.header.input_defaults.pop("shape")
    shape = model.graph.inputs.pop()
    shape.to_constant(numpy_helper.to_array(default))
    big = model.graph.nodes[0].outputs[0]
    big.shape = [1, 1]
    model.touch()
    result = Fold().run(model, None)  # type: ignore[arg-type]
    assert len(model.to_bytes()) < 1000
    assert any(s.op == "Expand" for s in result.skipped)


def test_reading_values_does_not_change_how_they_are_written(fold):
    """A constant that is only looked at keeps its bytes, even in the typed fields of the proto."""
    proto = onnx.parser.parse_model(
        graph(
            "a = Reshape(x, s) y = Transpose<perm = [1, 0]>(a)",
            "float[4,N] y",
            "<int64[2] s = {-1, 4}>",
            "float[N,2,2] x",
        )
    )
    assert proto.graph.initializer[0].int64_data
    found = fold(Model.from_proto(proto))
    assert not found.result.changed


def test_constants_are_computed_in_batches_of_what_belongs_together(fold, monkeypatch):
    sizes = []
    monkeypatch.setattr(evaluate, "_BATCH", 4)
    compute = evaluate._compute
    monkeypatch.setattr(evaluate, "_compute", lambda *args: sizes.append(len(args[1])) or compute(*args))
    chains = [f"a{k} = Neg(w) b{k} = Mul(a{k}, c{k}) d{k} = Add(b{k}, a{k})" for k in range(3)]
    long = " ".join(f"e{k} = Exp(e{k - 1})" if k else "e0 = Neg(w)" for k in range(6))
    used = [f"y{k} = Add({f'y{k - 1}' if k else 'x'}, {t})" for k, t in enumerate(["d0", "d1", "d2", "e5"])]
    weights = ", ".join(f"float[2] c{k} = {{{k}, 3}}" for k in range(3))
    body = " ".join([*chains, long, *used[:-1], "y = Add(y2, e5)"])
    found = fold(graph(body, "float[N,2] y", f"<float[2] w = {{1, 2}}, {weights}>", "float[N,2] x"))
    assert found.ops == ["Add"] * 4
    assert sorted(sizes[:4]) == [3, 3, 3, 6]
    assert found.initializer("d2").tolist() == [-3.0, -8.0]
