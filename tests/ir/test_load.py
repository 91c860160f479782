"""Reading model files: what is refused, and that it is refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ModelError, load


def small(nodes=None, *, opset=17, ir_version=8, initializers=(), inputs=("x",), outputs=("y",)) -> onnx.ModelProto:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])

    graph = helper.make_graph(
        nodes or [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value(n) for n in inputs],
        [value(n) for n in outputs],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def write(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def refused(path: Path, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(path)
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_missing_folder_empty(tmp_path):
    refused(tmp_path / "none.onnx", "no such file", "none.onnx")
    refused(tmp_path, "folder")
    (tmp_path / "empty.onnx").write_bytes(b"")
    refused(tmp_path / "empty.onnx", "empty")


@pytest.mark.parametrize(
    "data", [b"hello, this is text\n" * 20, b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(64), b"\x08\x08", b"PK\x03\x04zip"]
)
def test_not_onnx(tmp_path, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize("cut", [1, 2, 5, 10, 100, 300, 1000, -1000, -100, -10, -2, -1])
def test_truncated(tmp_path, classifier, cut):
    """Wherever the file ends early, it is refused, or what is left happens to be a whole model."""
    data = classifier.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[:cut])
    refused(path, "cut.onnx")


def test_opsets(tmp_path):
    refused(write(tmp_path, small(opset=6)), "opset 6")
    refused(write(tmp_path, small(opset=onnx.defs.onnx_opset_version() + 1)), "opset")
    proto = small()
    del proto.opset_import[:]
    refused(write(tmp_path, proto), "opset")
    refused(write(tmp_path, small(ir_version=onnx.IR_VERSION + 1)), "IR version")
    assert load(write(tmp_path, small(opset=7, ir_version=3))).opset == 7


def test_cycle(tmp_path):
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Neg", ["a"], ["y"]),
    ]
    refused(write(tmp_path, small(nodes)), "cycle", "first", "second")


def test_wrong_order_dangling_and_double_writes(tmp_path):
    late = [helper.make_node("Relu", ["a"], ["y"], name="r"), helper.make_node("Neg", ["x"], ["a"], name="n")]
    refused(write(tmp_path, small(late)), "'r'", "'a'", "before")
    dangling = [helper.make_node("Add", ["x", "nowhere"], ["y"], name="sum")]
    refused(write(tmp_path, small(dangling)), "'sum'", "'nowhere'")
    twice = [helper.make_node("Relu", ["x"], ["y"], name="a"), helper.make_node("Neg", ["x"], ["y"], name="b")]
    refused(write(tmp_path, small(twice)), "'y'")
    over_input = [helper.make_node("Relu", ["x"], ["x"], name="a"), helper.make_node("Neg", ["x"], ["y"], name="b")]
    refused(write(tmp_path, small(over_input)), "'x'")
    no_output = [helper.make_node("Relu", ["x"], ["a"], name="a")]
    refused(write(tmp_path, small(no_output)), "'y'")


def test_duplicate_names(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="n"), helper.make_node("Neg", ["a"], ["y"], name="n")]
    refused(write(tmp_path, small(nodes)), "two nodes are named 'n'")
    weight = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    refused(write(tmp_path, small(nodes, initializers=[weight, weight])), "w")
    refused(write(tmp_path, small(inputs=("x", "x"))), "x")


def test_a_node_of_unknown_operator(tmp_path):
    refused(write(tmp_path, small([helper.make_node("NoSuchOp", ["x"], ["y"])])), "NoSuchOp")


def test_an_input_that_is_no_tensor(tmp_path):
    proto = small([helper.make_node("SequenceAt", ["s", "i"], ["y"])], inputs=("i",))
    proto.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    refused(write(tmp_path, proto), "'s'", "not a tensor")


def test_garbage_in_the_middle_never_raises_anything_else(tmp_path, classifier):
    """Flipped bytes give a ModelError or a model, never another exception."""
    data = classifier.read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped.onnx"
    for position in rng.integers(0, len(data), 60):
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            load(path)
        except ModelError as error:
            assert "flipped.onnx" in str(error) or error.message


# --- external data ----------------------------------------------------------------------------------------------


def external(folder: Path, location: str, *, size: int = 16, entries=(), write_data: int | None = 16) -> Path:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    for key, value in entries:
        weight.external_data.add(key=key, value=value)
    if write_data is not None:
        (folder / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes()[:write_data])
    return write(folder, small([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[weight]))


def test_external_data_is_read(tmp_path):
    model = load(external(tmp_path, "w.bin"))
    weight = next(model.constants())
    assert weight.values.tolist() == [0, 1, 2, 3]
    assert isinstance(weight.values, np.memmap), "mapped, not read"
    proto = model.to_proto()
    assert proto.graph.initializer[0].data_location == TensorProto.DEFAULT


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "", "..\\w.bin", "./../w.bin", "w.bin\0x"]
)
def test_external_data_outside_the_folder(tmp_path, location):
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    refused(external(folder, location), "'w'", "folder")


def test_external_data_through_links(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(bytes(16))
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside / "w.bin")
    (folder / "dir").symlink_to(outside)
    refused(external(folder, "link.bin"), "link")
    refused(external(folder, "dir/w.bin"), "link")


def test_external_data_missing_or_short(tmp_path):
    refused(external(tmp_path, "other.bin"), "missing", "other.bin")
    refused(external(tmp_path, "w.bin", write_data=15), "16", "15")
    refused(external(tmp_path, "w.bin", entries=[("offset", "4")]), "does not fit")
    refused(external(tmp_path, "w.bin", entries=[("offset", "-4")]), "does not fit")
    refused(external(tmp_path, "w.bin", entries=[("length", "8")]), "does not fit")
    refused(external(tmp_path, "w.bin", entries=[("offset", "many")]), "not a number")


def test_external_data_in_a_node_attribute_is_guarded_as_well(tmp_path):
    weight = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../w.bin")
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("Add", ["x", "w"], ["y"])]
    refused(write(tmp_path, small(nodes)), "folder")
    weight.external_data[0].value = "w.bin"
    (tmp_path / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
    nodes = [helper.make_node("Constant", [], ["w"], value=weight), helper.make_node("Add", ["x", "w"], ["y"])]
    model = load(write(tmp_path, small(nodes)))
    assert model.graph.nodes[0].attrs["value"].values.tolist() == [1, 1, 1, 1]


# --- text and types that cannot be read ---------------------------------------------------------------------------


def damaged(proto: onnx.ModelProto, word: bytes) -> bytes:
    data = proto.SerializeToString()
    assert word in data
    return data.replace(word, b"\xff" * len(word))


@pytest.mark.parametrize("what", ["node", "tensor", "graph", "opset", "metadata"])
def test_names_that_are_not_text(tmp_path, what, capsys):
    proto = small([helper.make_node("Relu", ["x"], ["marker" if what == "tensor" else "a"], name="marker")])
    proto.graph.node.add(op_type="Neg", input=[proto.graph.node[0].output[0]], output=["y"], name="n")
    if what != "node":
        proto.graph.node[0].name = "r"
    if what == "graph":
        proto.graph.name = "marker"
    if what == "opset":
        proto.opset_import.add(domain="marker", version=1)
    if what == "metadata":
        proto.metadata_props.add(key="k", value="marker")
    path = tmp_path / "m.onnx"
    path.write_bytes(damaged(proto, b"marker"))
    refused(path, "m.onnx")
    assert capsys.readouterr().out == ""


def test_an_external_location_that_is_not_text(tmp_path):
    path = external(tmp_path, "marker")
    path.write_bytes(path.read_bytes().replace(b"marker", b"\xff" * 6))
    refused(path, "'w'", "UTF-8")


@pytest.mark.parametrize("dims", [[2**32, 2**32], [2**62, 4], [-1, 4], [2**40]])
def test_external_data_of_a_size_that_overflows(tmp_path, dims):
    path = external(tmp_path, "w.bin")
    proto = onnx.load(path, load_external_data=False)
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    refused(write(tmp_path, proto), "does not fit")


@pytest.mark.parametrize("kind", [0, 77])
def test_weights_of_an_unknown_type(tmp_path, kind, capsys):
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.data_type = kind
    refused(write(tmp_path, small([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[weight])))
    assert capsys.readouterr().out == "", "stdout belongs to the result"


@pytest.mark.parametrize("part", range(20))
def test_truncated_at_twenty_places(tmp_path, classifier, part):
    data = classifier.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: len(data) * part // 20 + part])
    refused(path, "cut.onnx")


@pytest.mark.parametrize("kind", ["optional_type", "map_type", "unknown"])
def test_subgraph_outputs_of_types_that_cannot_be_written(tmp_path, kind):
    def branch(name: str) -> onnx.GraphProto:
        value = onnx.ValueInfoProto(name=name)
        if kind == "unknown":
            value.type.denotation = "IMAGE"
        else:
            getattr(value.type, kind).SetInParent()
        return helper.make_graph([helper.make_node("Relu", ["x"], [name])], name, [], [value])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e"))
    proto = small([node])
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    refused(write(tmp_path, proto), "in a subgraph is a", "does not read")
