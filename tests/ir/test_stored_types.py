"""Initializers that are more than an array of one number a few bytes wide: packed, sparse, text; inside and apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Model, ModelError, load, save
from graphopt.ir.values import nbytes, onnx_dtype
from graphopt.runtime.session import open_session, run_feeds

COUNT = 5000  # enough to be stored apart
PACKED = ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1")
OTHERS = ("BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT16", "DOUBLE", "INT64", "UINT16", "BOOL", "COMPLEX64")


def weight(kind: str, count: int = COUNT) -> TensorProto:
    """An initializer of zeros and ones with its data in ``raw_data``."""
    typed = helper.make_tensor("w", TensorProto.DataType.Value(kind), [count], np.arange(count) % 2)
    return numpy_helper.from_array(numpy_helper.to_array(typed), "w")


def apart(tensor: TensorProto, folder: Path) -> TensorProto:
    """The same initializer with its data in ``w.bin``."""
    (folder / "w.bin").write_bytes(tensor.raw_data)
    outside = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="w.bin")
    return outside


def write(folder: Path, *initializers: TensorProto, sparse=(), nodes=None, functions=()) -> Path:
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", ["w"], ["unread"]), helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", COUNT])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", COUNT])],
        list(initializers),
        sparse_initializer=list(sparse),
    )
    imports = [helper.make_opsetid("", 25), *(helper.make_opsetid(f.domain, 1) for f in functions)]
    path = folder / "m.onnx"
    model = helper.make_model(
        graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports[:1]), functions=functions
    )
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("above", [0, 10**9], ids=["apart", "inside"])
@pytest.mark.parametrize("source", ["apart", "inside"])
@pytest.mark.parametrize("kind", PACKED + OTHERS)
def test_every_type_keeps_its_bytes(tmp_path, kind, source, above):
    given = weight(kind)
    model = load(write(tmp_path, apart(given, tmp_path) if source == "apart" else given))
    assert nbytes(next(model.constants())) == len(given.raw_data)
    target = tmp_path / "out.onnx"
    save(model.copy(), target, external_above=above)
    onnx.checker.check_model(str(target))
    written = onnx.load(target).graph.initializer[0]
    assert written.data_type == given.data_type
    assert written.raw_data == given.raw_data
    first = target.read_bytes()
    save(load(target), target, external_above=above)
    assert target.read_bytes() == first


def test_text_stays_in_the_file(tmp_path):
    text = helper.make_tensor("w", TensorProto.STRING, [200], [b"word"] * 200)
    path = write(tmp_path, text)
    save(load(path), tmp_path / "out.onnx", external_above=0)
    assert onnx.load(tmp_path / "out.onnx").graph.initializer[0] == text


@pytest.mark.parametrize("kind", [TensorProto.STRING, TensorProto.UNDEFINED, 99])
def test_what_cannot_be_stored_apart_is_refused(tmp_path, kind):
    proto = apart(weight("FLOAT"), tmp_path)
    proto.data_type = kind
    with pytest.raises(ModelError, match="'w' is text or of an unknown type"):
        load(write(tmp_path, proto))


@pytest.mark.parametrize("above", [0, 10**9])
@pytest.mark.parametrize("outside", [False, True])
def test_sparse_initializers_stay_sparse(tmp_path, above, outside):
    values = numpy_helper.from_array(np.float32([1, 2]), "w")
    positions = numpy_helper.from_array(np.int64([0, 3]), "w_positions")
    sparse = helper.make_sparse_tensor(apart(values, tmp_path) if outside else values, positions, [COUNT])
    model = load(write(tmp_path, sparse=[sparse], nodes=[helper.make_node("Add", ["x", "w"], ["y"])]))
    target = tmp_path / "out.onnx"
    save(model.copy(), target, external_above=above)
    written = onnx.load(target).graph
    assert not written.initializer
    assert numpy_helper.to_array(written.sparse_initializer[0].values).tolist() == [1, 2]
    (y,) = run_feeds(open_session(target.read_bytes(), optimize=False), {"x": np.zeros((1, COUNT), np.float32)})
    assert np.flatnonzero(y).tolist() == [0, 3]


def branch(name: str, tensor: TensorProto) -> onnx.GraphProto:
    node = helper.make_node("Constant", [], [name], value=tensor)
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [COUNT])])


def test_data_of_a_function_is_guarded_and_read(tmp_path):
    """Functions hold tensors too, in branches within them as well."""
    given = weight("FLOAT")
    body = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node(
            "If", ["c"], ["t"], then_branch=branch("p", apart(given, tmp_path)), else_branch=branch("q", given)
        ),
        helper.make_node("Add", ["a", "t"], ["b"]),
    ]
    function = helper.make_function("f", "inner", ["a"], ["b"], body, [helper.make_opsetid("", 25)])
    nodes = [helper.make_node("inner", ["x"], ["y"], domain="f")]
    model = load(write(tmp_path, nodes=nodes, functions=[function]))
    (y,) = run_feeds(open_session(model.to_bytes(), optimize=False), {"x": np.zeros((1, COUNT), np.float32)})
    assert y[0].tolist() == numpy_helper.to_array(given).tolist()
    then = next(a.g for a in function.node[1].attribute if a.name == "then_branch")
    then.node[0].attribute[0].t.external_data[0].value = "../w.bin"
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(write(tmp_path, nodes=nodes, functions=[function]))


READ = (*PACKED, *OTHERS, "FLOAT8E4M3FNUZ", "FLOAT8E5M2FNUZ")


@pytest.mark.parametrize("source", ["apart", "inside"])
@pytest.mark.parametrize("kind", READ)
def test_reading_values_does_not_change_what_is_written(tmp_path, kind, source):
    given = weight(kind)
    model = load(write(tmp_path, apart(given, tmp_path) if source == "apart" else given))
    constant = next(model.constants())
    assert constant.values.shape == (COUNT,)
    assert onnx_dtype(constant) == given.data_type
    assert nbytes(constant) == len(given.raw_data)
    save(model, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx").graph.initializer[0]
    assert written.data_type == given.data_type
    assert written.raw_data == given.raw_data


def test_reading_text_and_sparse_values(tmp_path):
    text = helper.make_tensor("w", TensorProto.STRING, [3], [b"a", b"bc", "é".encode()])
    model = load(write(tmp_path, text))
    assert next(model.constants()).values.tolist() == ["a", "bc", "é"]
    assert list(model.to_proto().graph.initializer[0].string_data) == list(text.string_data)
    for places in (np.int64([0, 3]), np.int64([[0], [3]])):
        values = numpy_helper.from_array(np.float32([1, 2]), "w")
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places, "w_positions"), [COUNT])
        model = load(write(tmp_path, sparse=[sparse], nodes=[helper.make_node("Add", ["x", "w"], ["y"])]))
        read = next(model.constants()).values
        assert read.dtype == np.float32
        assert read.nonzero()[0].tolist() == [0, 3]
        assert read[[0, 3]].tolist() == [1, 2]
        (y,) = run_feeds(open_session(model.to_bytes(), optimize=False), {"x": np.zeros((1, COUNT), np.float32)})
        assert np.array_equal(y[0], read)


def test_a_sparse_initializer_that_subgraphs_read_is_written_once():
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[4] x) => (float[4] z) {
            z = If (c) < then_branch = a () => (float[4] t) { t = Add(x, w) },
                         else_branch = b () => (float[4] e) { e = Sub(x, w) } >
        }""")
    values = numpy_helper.from_array(np.float32([1, 2]), "w")
    positions = numpy_helper.from_array(np.int64([0, 3]), "w_positions")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, positions, [4]))
    written = Model.from_proto(proto).copy().to_proto().graph
    assert len(written.sparse_initializer) == 1
    assert not any(a.g.sparse_initializer for a in written.node[0].attribute)


def test_default_values_of_inputs_that_are_stored_apart_move_into_the_file(tmp_path):
    outside = apart(weight("FLOAT"), tmp_path)
    path = write(tmp_path, outside, nodes=[helper.make_node("Add", ["x", "w"], ["y"])])
    proto = onnx.load(path, load_external_data=False)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [COUNT]))
    path.write_bytes(proto.SerializeToString())
    model = load(path)
    assert [t.name for t in model.inputs] == ["x"]
    other = tmp_path / "other"
    other.mkdir()
    for above in (0, 10**9):
        save(model.copy(), other / "out.onnx", external_above=above)
        (y,) = run_feeds(
            open_session((other / "out.onnx").read_bytes(), optimize=False), {"x": np.zeros((1, COUNT), np.float32)}
        )
        assert y.sum() == COUNT // 2
