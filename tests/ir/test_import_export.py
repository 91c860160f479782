"""Graphs built and written without graphsurgeon's own importer and exporter: the same graphs, the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Model, load, save
from graphopt.ir import infer_shapes
from graphopt.ir.importer import Values, import_graph
from graphopt.ir.node_shapes import _LIKE_INPUT, _outputs_of, infer_node
from graphopt.ir.verify import Snapshot
from graphopt.ir.view import all_graphs

PLAIN = """
<ir_version: 8, opset_import: ["" : 17, "own" : 2], producer_name: "me", doc_string: "words">
g (float[N,3,4,4] x, float[1] unused) => (float[N,3,2,2] y, int64[4] s)
<float[3,3,1,1] w = {1,2,3,4,5,6,7,8,9}, float[3] b = {1,2,3}, float[N,3,4,4] c, int64[2] k = {1,2}>
{
    c = Conv<pads = [0,0,0,0], auto_pad = "NOTSET">(x, w, b)
    [named] r = LeakyRelu<alpha = 0.5>(c)
    d, m = Dropout(r)
    e = own.Thing<words = ["a", "b"], numbers = [1.5, 2.5]>(d, , b)
    f = Constant<value = float[2] {1, 2}>()
    h = Clip(e, , k)
    y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(h)
    s = Shape(y)
}
"""
BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,2] x, bool p) => (float[N,2] y) <float[2] w = {1,2}>
{
    z = Abs(x)
    y = If(p) <then_branch = t () => (float[N,2] a) <float[2] v = {3,4}> { u = Add(z, w) a = Mul(u, v) },
               else_branch = e () => (float[N,2] b) { b = Neg(z) }>
}
"""
FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[N,2] x) => (float[N,2] y) { y = own.twice(x) }
<opset_import: ["" : 17], domain: "own"> twice (a) => (b) { two = Constant<value = float {2}>() b = Mul(a, two) }
"""


def dump(graph: gs.Graph) -> list[object]:
    """All that a graph says, with who reads and writes each tensor."""
    found: list[object] = [graph.name, graph.doc_string, graph.opset, graph.producer_name, graph.ir_version]
    for g in all_graphs(graph):
        found.append(([t.name for t in g.inputs], [t.name for t in g.outputs]))
        for node in g.nodes:
            plain = {k: v for k, v in node.attrs.items() if not isinstance(v, gs.Graph | gs.Constant)}
            found.append((node.op, node.name, node.domain, plain, list(node.attrs)))
            for tensor in (*node.inputs, *node.outputs):
                kind = type(tensor).__name__
                links = ([n.op for n in tensor.inputs], [n.op for n in tensor.outputs])
                shape = None if tensor.shape is None else list(tensor.shape)
                more = tensor.type if isinstance(tensor, gs.Variable) else tensor.data_location
                found.append((kind, tensor.name, tensor.dtype, shape, more, links))
    return found


@pytest.mark.parametrize("text", [PLAIN, BRANCHES, FUNCTION])
@pytest.mark.parametrize("inferred", [False, True])
def test_the_graph_is_what_graphsurgeon_imports(text: str, inferred: bool) -> None:
    proto = onnx.parser.parse_model(text)
    if inferred:
        proto = onnx.shape_inference.infer_shapes(proto)
    assert dump(import_graph(proto, Values())[0]) == dump(gs.import_onnx(proto))


@pytest.mark.parametrize("text", [PLAIN, BRANCHES, FUNCTION])
def test_pieces_are_what_protobuf_writes(text: str) -> None:
    model = Model.from_text(text)
    for constant in model.constants():
        if constant.name in ("w", "v"):
            constant.values = constant.values * 2  # an array now, and no longer of the file
    whole = model.to_proto()
    assert model.to_bytes() == whole.SerializeToString(deterministic=True)
    onnx.checker.check_model(onnx.ModelProto.FromString(Model.from_text(PLAIN).to_bytes()))
    written = {n.name: n for n in whole.graph.node}
    for node in gs.export_onnx(model.graph, do_type_check=False).graph.node:
        if node.op_type == "If":
            continue  # graphsurgeon repeats initializers of the outer graph in each branch
        assert node.SerializeToString(deterministic=True) == written[node.name].SerializeToString(deterministic=True)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bool", "int64", "uint8", "complex64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (400, 3)])
def test_pieces_of_any_type_and_size(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    value = helper.make_tensor_value_info("y", kind, shape)
    node = helper.make_node("Identity", ["w"], ["y"])
    proto = helper.make_model(
        helper.make_graph([node], "g", [], [value], [numpy_helper.from_array(array, "w")]), ir_version=8
    )
    model = Model.from_proto(proto)
    assert model.to_bytes() == model.to_proto().SerializeToString(deterministic=True)
    constant = next(model.constants())
    constant.values = np.array(array, order="F")
    assert model.to_bytes() == model.to_proto().SerializeToString(deterministic=True)
    assert np.array_equal(next(Model.from_proto(model.to_proto()).constants()).values, array)


def test_a_copy_of_a_file_is_built_when_it_is_looked_at(tmp_path: Path) -> None:
    onnx.save(
        onnx.parser.parse_model(
            PLAIN.replace("own.Thing<words", "own.Thing<w").replace("int64[2] k", "float k").replace("{1,2}>", "{1}>")
        ),
        tmp_path / "m.onnx",
    )
    model = load(tmp_path / "m.onnx")
    twin = model.copy()
    assert twin._graph is None and twin.is_copy_of(model)
    before = Snapshot.of(model)
    with model.edit() as graph:
        graph.nodes[0].inputs[1].name = "renamed"
        graph.nodes[1].attrs["alpha"] = 0.25
    assert not twin.is_copy_of(model) and model.unchanged_file is None
    save(model, tmp_path / "changed.onnx")
    assert Snapshot.of(twin) == before
    assert twin.graph.nodes[0].inputs[1].name == "w" and twin.graph.nodes[1].attrs["alpha"] == 0.5
    # Both hold the same values, read once.
    mine, theirs = (m.graph.nodes[0].inputs[1] for m in (model, twin))
    assert mine is not theirs and mine._values is theirs._values
    third = twin.copy()
    assert third.is_copy_of(twin) and third.fingerprint() == twin.fingerprint()
    assert dump(load(tmp_path / "changed.onnx").graph) != dump(twin.graph) == dump(third.graph)


def test_a_stored_tensor_keeps_its_name_when_a_copy_is_renamed() -> None:
    model = Model.from_text(PLAIN)
    model.graph.nodes[0].inputs[1].name = "renamed"
    first = model.to_proto()
    model.graph.nodes[0].inputs[1].name = "again"
    assert {"renamed", "again"} == {p.graph.initializer[0].name for p in (first, model.to_proto())}
    assert model.graph.nodes[0].inputs[1]._values.tensor.name == "w"


@pytest.mark.parametrize("op", sorted(_LIKE_INPUT))
@pytest.mark.parametrize("opset", [7, 9, 11, 13, 14, 17, 20, 22])
@pytest.mark.parametrize("dims", ["N,3,4", "2,3,4", ",3,"])
def test_operators_like_their_input_are_inferred_as_by_onnx(op: str, opset: int, dims: str) -> None:
    if all(s.since_version > opset for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain):
        pytest.skip(f"opset {opset} has no {op}")
    shape = [int(d) if d.isdigit() else d or None for d in dims.split(",")]
    reads = ["r", *"abcd"] if op == "BatchNormalization" else ["r"]
    nodes = [helper.make_node("Abs", ["x"], ["r"], "abs"), helper.make_node(op, reads, ["t"], "node")]
    nodes.append(helper.make_node("Abs", ["t"], ["y"], "last"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3]) for n in reads[1:]]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph(nodes, "g", inputs, [output])
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7))
    infer_shapes(model)
    node = model.graph.nodes[1]
    known = (node.outputs[0].dtype, list(node.outputs[0].shape))
    kind = _outputs_of(model, node)["t"]
    node.outputs[0].dtype = node.outputs[0].shape = None
    infer_node(model, node)
    assert (node.outputs[0].dtype, list(node.outputs[0].shape)) == known == (np.float32, shape)
    assert kind.tensor_type.elem_type == TensorProto.FLOAT and len(kind.tensor_type.shape.dim) == 3
