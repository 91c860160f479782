"""The model: copies, revisions, names, subgraphs, functions, input defaults, size."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Model, ModelError, load, save
from graphopt.ir import infer_shapes, verify
from graphopt.ir.contents import walk_graphs
from graphopt.ir.values import nbytes
from graphopt.runtime.session import open_session, run_feeds

BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[2] x) => (float[2] y, float[2] z) <float[2] w = {1.0, 2.0}, float[2] only = {3.0, 4.0}> {
        k = Constant<value_floats = [5.0, 6.0]>()
        y = Mul(x, w)
        z = If (c) <
            then_branch = a () => (float[2] t) <float[2] own = {7.0, 8.0}> {
                s = Add(x, w) u = Mul(s, own) t = Add(u, k) },
            else_branch = b () => (float[2] e) { v = Sub(x, only) e = Mul(v, w) }
        >
    }"""


def outputs(model: Model, **feeds: np.ndarray) -> list[np.ndarray]:
    return run_feeds(open_session(model.to_bytes(), optimize=False), feeds)


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_subgraphs_and_what_they_read_stay_intact(tmp_path, copies):
    proto = onnx.parser.parse_model(BRANCHES)
    model = Model.from_proto(proto)
    infer_shapes(model)
    for _ in range(copies):
        model = model.copy()
    verify(model)
    written = onnx.load_from_string(model.to_bytes())
    onnx.checker.check_model(written, full_check=True)
    names = [t.name for t in written.graph.initializer]
    assert sorted(names) == ["only", "w"]  # once each, in the scope that they were in
    branch = next(a.g for a in written.graph.node[-1].attribute if a.name == "then_branch")
    assert [t.name for t in branch.initializer] == ["own"]
    save(model, tmp_path / "m.onnx")
    again = load(tmp_path / "m.onnx")
    x = np.array([1, -1], np.float32)
    for c in (True, False):
        expected = run_feeds(open_session(proto.SerializeToString(), optimize=False), {"c": np.array(c), "x": x})
        for candidate in (model, again):
            for a, b in zip(expected, outputs(candidate, c=np.array(c), x=x), strict=True):
                assert np.array_equal(a, b)


def test_captured_names():
    model = Model.from_text(BRANCHES)
    assert {"x", "w", "k", "only"} <= model.captured()
    assert "y" not in model.captured()


def test_nested_subgraphs():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] z) <float[2] w = {1.0, 2.0}> {
            a = Relu(x)
            z = If (c) <
                then_branch = p () => (float[2] t) {
                    t = If (c) < then_branch = q () => (float[2] i) { i = Mul(a, w) },
                                 else_branch = r () => (float[2] j) { j = Identity(a) } >
                },
                else_branch = s () => (float[2] e) { e = Neg(w) }
            >
        }""").copy()
    verify(model)
    assert {"a", "w", "c"} <= model.captured()
    assert outputs(model, c=np.array(True), x=np.float32([2, 3]))[0].tolist() == [2, 6]
    assert len(list(model.graphs())) == 5


def test_a_subgraph_that_reads_what_is_written_later_or_never():
    def text(body: str) -> str:
        head = '<ir_version: 8, opset_import: ["" : 17]>'
        return f"""{head} g (bool c, float[2] x) => (float[2] y, float[2] z) {{ {body} }}"""

    branch = """z = If (c) < then_branch = a () => (float[2] t) {{ t = Relu({0}) }},
        else_branch = b () => (float[2] e) {{ e = Neg(x) }} >"""
    from graphopt.ir.verify import verify_input

    def model(body: str) -> Model:
        return Model.from_proto(onnx.parser.parse_model(text(body)))

    verify_input(model("y = Relu(x) " + branch.format("y")), "m")
    with pytest.raises(ModelError, match="before it is written"):
        verify_input(model(branch.format("y") + " y = Relu(x)"), "m")
    with pytest.raises(ModelError, match="which nothing writes"):
        verify_input(model("y = Relu(x) " + branch.format("nowhere")), "m")


def test_local_functions_are_kept():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N,4] x) => (float[N,4] y) { y = f.double(x) }
        <domain: "f", opset_import: ["" : 17]> double (a) => (b) { c = Constant<value_float = 2.0>() b = Mul(a, c) }
    """).copy()
    proto = onnx.load_from_string(model.to_bytes())
    onnx.checker.check_model(proto)
    assert [f.name for f in proto.functions] == ["double"]
    assert outputs(model, x=np.ones((1, 4), np.float32))[0].tolist() == [[2, 2, 2, 2]]


def test_input_defaults_are_kept_and_are_not_constants():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x, float[2] w = {3.0, 4.0}) => (float[N,2] y) { y = Mul(x, w) }""").copy()
    assert [t.name for t in model.inputs] == ["x"]
    assert list(model.constants()) == []
    proto = onnx.load_from_string(model.to_bytes())
    assert [t.name for t in proto.graph.input] == ["x", "w"]
    x = np.ones((1, 2), np.float32)
    assert outputs(model, x=x)[0].tolist() == [[3, 4]]
    assert outputs(model, x=x, w=np.zeros(2, np.float32))[0].tolist() == [[0, 0]]


def test_names_are_given_to_nameless_nodes_and_are_unique():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) { a = Relu(x) b = Relu(a) y = Neg(b) }""")
    assert [n.name for n in model.graph.nodes] == ["Relu_0", "Relu_1", "Neg_0"]


def test_fresh_names_avoid_all_names_and_repeat():
    first, second = Model.from_text(BRANCHES), Model.from_text(BRANCHES)
    for stem in ("x", "own", "If_0", "t", "new", "new"):
        name = first.fresh_name(stem)
        assert name == second.fresh_name(stem)
        assert (name == stem) == (stem == "new" and name == "new")
    assert first.fresh_name("new") == "new_2"


def test_constants_keep_rank_and_order():
    model = Model.from_text(BRANCHES)
    assert model.constant("scalar", np.float32(3)).shape == ()
    turned = model.constant("turned", np.arange(6).reshape(2, 3).T)
    assert turned.values.flags.c_contiguous
    assert turned.values.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_editing_moves_the_revision_even_when_it_fails():
    model = Model.from_text(BRANCHES)
    start = model.revision
    with model.edit() as graph:
        assert graph is model.graph
    assert model.revision == start + 1
    with pytest.raises(RuntimeError), model.edit():
        raise RuntimeError
    assert model.revision == start + 2


def test_copies_do_not_follow_each_other(classifier):
    model = load(classifier)
    before = model.to_bytes()
    twin = model.copy()
    assert twin.uid != model.uid
    with twin.edit() as graph:
        conv = graph.nodes[0]
        conv.attrs["pads"][0] = 0
        conv.inputs[1].values = conv.inputs[1].values * 2
        conv.name = "other"
        graph.outputs[0].shape[1] = 9
        twin.metadata["a"] = "b"
        twin.header.opsets["x"] = 1
        graph.nodes.pop()
    assert model.to_bytes() == before


def test_copies_share_weights(classifier):
    model = load(classifier)
    for constant in model.constants():
        assert constant.values is constant.values
    for ours, theirs in zip(model.constants(), model.copy().constants(), strict=True):
        assert ours.values is theirs.values


def test_a_copy_can_take_values_of_another_type(classifier):
    twin = load(classifier).copy()
    weight = twin.graph.nodes[0].inputs[1]
    weight.values = weight.values.astype(np.float16)
    proto = twin.to_proto()
    assert next(t for t in proto.graph.initializer if t.name == weight.name).data_type == TensorProto.FLOAT16


def test_the_fingerprint_sees_structure_and_values(classifier):
    model = load(classifier)
    start = model.fingerprint()
    assert model.copy().fingerprint() == start
    model.graph.nodes[0].attrs["pads"] = [1, 1, 1, 2]
    other = model.fingerprint()
    assert other != start
    model.graph.nodes[0].inputs[1].values = np.zeros((16, 3, 3, 3), np.float32)
    assert model.fingerprint() != other


def test_shapes_are_inferred_and_known_ones_kept():
    model = Model.from_text(
        """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[N,3,8,8] x) => (float[N,8] y) <float[4,3,3,3] w, float[2] r> {
            c = Conv(x, w) a = my.Thing(c) y = Relu(a)
        }""".replace("<float[4,3,3,3] w, float[2] r>", f"<float[4,3,3,3] w = {{{', '.join(['0.5'] * 108)}}}>")
    )
    tensors = model.graph.tensors()
    assert list(tensors["c"].shape) == ["N", 4, 6, 6]
    assert tensors["a"].shape is None
    tensors["a"].shape = ["N", 8]
    infer_shapes(model)
    assert list(tensors["a"].shape) == ["N", 8]
    infer_shapes(model, fresh=True)
    assert tensors["a"].shape is None
    assert list(tensors["c"].shape) == ["N", 4, 6, 6]
    assert list(tensors["y"].shape) == ["N", 8]


def test_inference_twice_is_inference_once(classifier):
    model = load(classifier)
    once = model.to_bytes()
    infer_shapes(model)
    assert model.to_bytes() == once


@pytest.mark.parametrize(
    "kind", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.UINT4, TensorProto.STRING]
)
def test_types_that_numpy_lacks_keep_their_bytes(tmp_path, kind):
    if kind == TensorProto.STRING:
        weight = helper.make_tensor("w", kind, [3], [b"a", b"bc", b"d"])
    else:
        weight = TensorProto(name="w", data_type=kind, dims=[3])
        sizes = {TensorProto.BFLOAT16: 6, TensorProto.FLOAT8E4M3FN: 3, TensorProto.INT4: 2, TensorProto.UINT4: 2}
        weight.raw_data = bytes(range(sizes[kind]))
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"]), helper.make_node("Relu", ["x"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", kind, [3]), helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load(path)
    expected = {TensorProto.STRING: 48, TensorProto.BFLOAT16: 6, TensorProto.FLOAT8E4M3FN: 3}.get(kind, 2)
    assert nbytes(next(model.constants())) == expected
    save(model.copy(), tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx").graph.initializer[0]
    assert written == weight


def test_unreadable_attributes_are_named():
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"], name="odd", extra=helper.make_tensor_type_proto(1, [2]))],
            "g",
            [helper.make_tensor_value_info("x", 1, [2])],
            [helper.make_tensor_value_info("y", 1, [2])],
        )
    )
    with pytest.raises(ModelError, match=r"'odd'.*'extra'"):
        Model.from_proto(proto)


def test_twenty_thousand_nodes(tmp_path):
    """Loading, checking, copying and saving are linear; a quadratic step would take minutes here."""
    n = 20_000
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    nodes = [helper.make_node("Add", [f"t{i}" if i else "x", "w"], [f"t{i + 1}"]) for i in range(n)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info(f"t{n}", TensorProto.FLOAT, ["N", 2])],
        [weight],
    )
    path = tmp_path / "long.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    model = load(path)
    twin = model.copy()
    verify(twin)
    save(twin, tmp_path / "out.onnx")
    assert len(model.graph.nodes) == n
    assert isinstance(model.graph.nodes[-1].outputs[0], gs.Variable)


def test_reading_weights_is_no_change(classifier):
    model = load(classifier)
    twin = model.copy()
    start = model.fingerprint()
    for constant in model.constants():
        assert constant.values.size
    assert model.fingerprint() == start == twin.fingerprint()
    for ours, theirs in zip(model.constants(), twin.constants(), strict=True):
        assert ours.values is theirs.values, "read once for both"
    weight = model.graph.nodes[0].inputs[1]
    weight.values = weight.values.copy()
    assert model.fingerprint() != start


def test_copies_do_not_share_constants_in_attributes():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) { w = Constant<value = float[2] {1.0, 2.0}>() y = Add(x, w) }""")
    before = model.to_bytes()
    model.copy().graph.nodes[0].attrs["value"].values = np.zeros(2, np.float32)
    assert model.to_bytes() == before
    assert model.copy().to_bytes() == before


def test_empty_lists_keep_their_type():
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (bool c, float[1] x) => (float y, float z) {
            s = Constant<value_ints: ints = []>()
            y = Reshape(x, s)
            z = If (c) < then_branch = a () => (float t) { k = Constant<value_ints: ints = []>() t = Reshape(x, k) },
                         else_branch = b () => (float e) { e = f.flat(x) } >
        }
        <domain: "f", opset_import: ["" : 17]> flat (a) => (b) {
            k = Constant<value_ints: ints = []>() b = Reshape(a, k)
        }
    """)
    model = Model.from_proto(proto)
    infer_shapes(model)
    model = model.copy()
    written = onnx.load_from_string(model.to_bytes())
    assert written.graph.node[0].attribute[0] == proto.graph.node[0].attribute[0]
    assert written.functions[0].node[0].attribute[0].type == onnx.AttributeProto.INTS
    assert Model.from_proto(written).to_bytes() == model.to_bytes()
    for c in (True, False):
        assert outputs(model, c=np.array(c), x=np.float32([3])) == [3, 3]


@pytest.mark.parametrize("kind", ["FLOATS", "INTS", "STRINGS"])
def test_empty_lists_of_every_type(kind):
    proto = Model.from_text("""<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[2] x) => (float[2] y) { y = my.Thing(x) }""").to_proto()
    proto.graph.node[0].attribute.add(name="none", type=onnx.AttributeProto.AttributeType.Value(kind))
    written = Model.from_proto(proto).copy().to_proto()
    assert written.graph.node[0].attribute == proto.graph.node[0].attribute


def test_a_list_that_a_pass_empties_can_be_written():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[2] x) => (float[2] y) { y = my.Thing<sizes = [1, 2]>(x) }""")
    with model.edit() as graph:
        graph.nodes[0].attrs["sizes"] = []
    assert model.to_proto().graph.node[0].attribute[0].type == onnx.AttributeProto.INTS
    assert model.graph.nodes[0].attrs["sizes"] == []


def test_branches_may_use_a_name_for_tensors_of_different_shapes():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[2,3] x, float[4] u) => (float[N] z) {
            z = If (c) <
                then_branch = a () => (float[K] t) { s = Relu(x) k = Constant<value_ints = [-1]>() t = Reshape(s, k) },
                else_branch = b () => (float[L] e) { s = Relu(u) e = Neg(s) } >
        }""")
    assert [list(g.tensors()["s"].shape) for g in list(model.graphs())[1:]] == [[2, 3], [4]]


def test_an_initializer_of_a_branch_stays_in_the_branch_that_owns_it():
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[2] x) => (float[2] z) {
            z = If (c) <
                then_branch = p () => (float[2] t) <float[2] w = {1.0, 2.0}> {
                    a = Mul(x, w)
                    t = If (c) < then_branch = q () => (float[2] i) { i = Mul(a, w) },
                                 else_branch = r () => (float[2] j) { j = Identity(w) } >
                },
                else_branch = s () => (float[2] e) <float[2] w = {5.0, 5.0}> { e = Mul(x, w) }
            >
        }""")
    model = Model.from_proto(proto).copy()
    written = model.to_proto()
    found = {g.name: [t.name for t in g.initializer] for g in walk_graphs(written.graph)}
    assert found == {"g": [], "p": ["w"], "q": [], "r": [], "s": ["w"]}
    x = np.ones(2, np.float32)
    assert outputs(model, c=np.array(True), x=x)[0].tolist() == [1, 4]
    assert outputs(model, c=np.array(False), x=x)[0].tolist() == [5, 5]


def test_outputs_that_are_weights_or_inputs():
    proto = Model.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) <float[2] w = {1.0, 2.0}> { y = Add(x, w) }""").to_proto()
    proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2]))
    proto.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]))
    model = Model.from_proto(proto).copy()
    verify(model)
    x = np.float32([3, 4])
    assert [o.tolist() for o in outputs(model, x=x)] == [[4, 6], [1, 2], [3, 4]]


def test_functions_with_attributes_still_run():
    model = Model.from_text("""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N,4] x) => (float[N,4] y) { y = f.d<alpha = 2.0, perm = [0, 1]>(x) }
        <domain: "f", opset_import: ["" : 17]> d <alpha, perm, beta: float = 3.0> (a) => (b) {
            c = Constant<value_float: float = @alpha>() e = Constant<value_float: float = @beta>()
            k = Transpose<perm: ints = @perm>(a) h = Mul(k, c) b = Mul(h, e)
        }""").copy()
    assert outputs(model, x=np.ones((1, 4), np.float32))[0].tolist() == [[6, 6, 6, 6]]


def test_functions_that_share_a_name_are_refused():
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 17, "f" : 1]>
        g (float[N,4] x) => (float[N,4] y) { y = f.d(x) }
        <domain: "f", opset_import: ["" : 17]> d (a) => (b) { b = Neg(a) }""")
    proto.functions[0].overload = proto.graph.node[0].overload = "one"
    with pytest.raises(ModelError, match="'d' calls one of several functions"):
        Model.from_proto(proto)
