"""What a file claims is held against what it holds before anything is allocated for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import GraphoptError, ModelError, UsageError, load, save
from graphopt.errors import printable
from graphopt.ir.limits import MOST_EXPANDED, bounded_memory, check_claims

ADD = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}>
    { y = Add(x, w) }"""


def proto_of(text: str = ADD) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def write(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (TensorProto(data_type=77, dims=[4]), "data type 77"),
        (TensorProto(data_type=1, dims=[-1]), "negative"),
        (TensorProto(data_type=1, dims=[0, 2**62]), "larger than any memory"),
        (TensorProto(data_type=1, dims=[2**32, 2**32]), "larger than any memory"),
        (TensorProto(data_type=1, dims=[1] * 33, raw_data=bytes(4)), "33 dimensions"),
        (TensorProto(data_type=1, dims=[4], raw_data=bytes(17)), "17 bytes"),
        (TensorProto(data_type=1, dims=[4], float_data=[1.0] * 5), "5 values"),
        (TensorProto(data_type=TensorProto.INT4, dims=[3], raw_data=bytes(3)), "needs 2"),
        (TensorProto(data_type=1, dims=[4], segment=TensorProto.Segment(begin=0, end=1)), "segments"),
    ],
)
@pytest.mark.parametrize("where", ["initializer", "attribute", "function", "branch"])
def test_tensors_that_do_not_hold_what_they_claim(tensor, words, where):
    tensor.name = "bad"
    proto = proto_of()
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    if where == "initializer":
        proto.graph.initializer.append(tensor)
    elif where == "attribute":
        proto.graph.node.append(constant)
    elif where == "function":
        proto.functions.append(helper.make_function("d", "f", [], ["k"], [constant], []))
    else:
        branch = helper.make_graph([], "b", [], [], [tensor])
        proto.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch))
    with pytest.raises(ModelError, match=words) as caught:
        check_claims(proto)
    assert "'bad'" in caught.value.message


@pytest.mark.parametrize(
    "tensor",
    [
        numpy_helper.from_array(np.zeros((0, 3), np.float32)),
        numpy_helper.from_array(np.float64(1)),
        numpy_helper.from_array(np.array(["a", "b"], dtype=object)),
        helper.make_tensor("t", TensorProto.COMPLEX64, [2], [1 + 2j, 3]),
        helper.make_tensor("t", TensorProto.INT4, [3], [1, 2, 3]),
        helper.make_tensor("t", TensorProto.UINT2, [5], [1, 2, 3, 0, 1]),
        helper.make_tensor("t", TensorProto.BFLOAT16, [3], [1, 2, 3]),
        helper.make_tensor("t", TensorProto.BOOL, [3], [True, False, True]),
        helper.make_tensor("t", TensorProto.UINT32, [2], [1, 2]),
        TensorProto(name="t", data_type=1, dims=[0]),
    ],
)
def test_tensors_that_do(tensor):
    proto = proto_of()
    proto.graph.initializer.append(tensor)
    check_claims(proto)


def functions(bodies: dict[str, list[str]]) -> onnx.ModelProto:
    """Functions that call those listed, one after the other; f0 is called once."""
    proto = proto_of()
    for name, called in bodies.items():
        nodes = [helper.make_node(c, ["a"], [f"t{k}"], domain="d") for k, c in enumerate(called)]
        proto.functions.append(helper.make_function("d", name, ["a"], ["t0"], nodes, []))
    proto.graph.node.append(helper.make_node("f0", ["x"], ["z"], domain="d"))
    return proto


def test_functions_are_counted_without_expanding_them():
    grow = {f"f{k}": [f"f{k + 1}"] * 2 for k in range(60)} | {"f60": ["Neg"]}
    with pytest.raises(ModelError, match="stand for"):
        check_claims(functions(grow))
    check_claims(functions({f"f{k}": [f"f{k + 1}"] * 2 for k in range(10)} | {"f10": ["Neg"]}))
    check_claims(functions({"f0": ["Neg"] * MOST_EXPANDED}))
    with pytest.raises(ModelError, match="stand for"):
        check_claims(functions({"f0": ["Neg"] * (MOST_EXPANDED + 1)}))


def test_functions_in_a_ring_are_named():
    with pytest.raises(ModelError, match=r"f1 -> f2 -> f1|f2 -> f1 -> f2"):
        check_claims(functions({"f0": ["f1"], "f1": ["f2"], "f2": ["f1"]}))


@pytest.mark.parametrize("opsets", [[17, 13], [17, 9999]])
def test_two_versions_of_one_operator_set(tmp_path, opsets):
    """Readers differ in which of the two they take."""
    proto = proto_of()
    del proto.opset_import[:]
    for domain, version in zip(("", "ai.onnx"), opsets, strict=True):
        proto.opset_import.add(domain=domain, version=version)
    with pytest.raises(ModelError, match="two versions"):
        load(write(tmp_path, proto))


def test_a_dimension_whose_name_is_not_text(tmp_path):
    path = write(tmp_path, proto_of(ADD.replace("N", "MARK")))
    path.write_bytes(path.read_bytes().replace(b"MARK", b"\xff" * 4))
    with pytest.raises(ModelError, match="not UTF-8"):
        load(path)


# --- files ------------------------------------------------------------------------------------------------------


def test_only_ordinary_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ModelError, match="not an ordinary file"):
            load(path)
    huge = tmp_path / "huge.onnx"
    huge.touch()
    os.truncate(huge, 1 << 40)
    with pytest.raises(ModelError, match="at most"):
        load(huge)


def test_a_path_that_no_file_can_have():
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(ModelError, match=r"cannot read|no such file"):
            load(path)


def external(folder: Path, *entries: tuple[str, str], file: str = "w.bin") -> Path:
    proto = proto_of()
    weight = proto.graph.initializer[0]
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in entries:
        weight.external_data.add(key=key, value=value)
    (folder / file).write_bytes(np.arange(4, dtype=np.float32).tobytes())
    return write(folder, proto)


def test_a_location_longer_than_a_name_can_be(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        load(external(tmp_path, ("location", "x" * 5000)))


@pytest.mark.parametrize("text", [" 0 ", "0_0", "\u0660", "1e1", "9" * 5000, "+0"])
def test_an_offset_that_other_readers_understand_otherwise(tmp_path, text):
    with pytest.raises(ModelError, match="not a number"):
        load(external(tmp_path, ("location", "w.bin"), ("offset", text)))


def test_a_place_that_is_given_twice(tmp_path):
    with pytest.raises(ModelError, match="twice"):
        load(external(tmp_path, ("location", "../secret"), ("location", "w.bin")))


def test_saving_never_touches_the_data_of_the_model_that_was_read(tmp_path):
    model = load(external(tmp_path, ("location", "w.bin")))
    with pytest.raises(UsageError, match="external data"):
        save(model, tmp_path / "w.bin")
    # Named as graphopt names its own: what is left of an older result would be removed.
    old = "out.onnx.0123456789abcdef.data"
    model = load(external(tmp_path, ("location", old), file=old))
    stale = tmp_path / "out.onnx.fedcba9876543210.data"
    stale.write_bytes(b"")
    save(model, tmp_path / "out.onnx")
    assert (tmp_path / old).read_bytes() == np.arange(4, dtype=np.float32).tobytes() and not stale.exists()
    assert load(tmp_path / "m.onnx").graph.nodes[0].inputs[1].values.tolist() == [0, 1, 2, 3]


# --- memory -----------------------------------------------------------------------------------------------------

VECTOR = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y)
    <int64[1] a = {32768}> {
        b = Mul(a, a)
        long = ConstantOfShape(b)
        double = Add(long, long)
        most = ReduceMax<keepdims: int = 0>(double)
        y = Add(x, most)
    }"""


def test_inference_does_not_write_out_a_long_vector():
    """Following the values of 2**30 elements takes 80 GB; the shapes are known without."""
    pytest.importorskip("resource")
    code = (
        "import resource, sys; from graphopt import Model; from graphopt.ir import infer_shapes;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak();"
        "model = Model.from_text(sys.argv[1]); infer_shapes(model);"
        "print(peak() - before, next(n for n in model.graph.nodes if n.op == 'ReduceMax').outputs[0].shape)"
    )
    # In a process of its own: what other tests have freed could be filled again without counting against the limit.
    done = subprocess.run([sys.executable, "-c", code, VECTOR], capture_output=True, text=True, check=True)
    kib, shape = done.stdout.split(" ", 1)
    assert int(kib) < 1 << 20 and shape.strip() == "[]"


def test_bounded_memory_gives_back_what_there_was():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), bounded_memory(64 << 20):
        np.empty(1 << 33, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


# --- messages ---------------------------------------------------------------------------------------------------


def test_messages_are_fit_for_a_terminal():
    assert printable("a \x1b[31mb\x07\0\u202e\ud800") == "a \\x1b[31mb\\x07\\x00\\u202e\\ud800"
    assert printable("one\n  two\r\nthree\u2028four") == "one two three four"
    assert printable("Größe 模型 é") == "Größe 模型 é"
    long = printable("a" * 10**6 + "\n" * 10 + "b" * 10**6)
    assert len(long) < 2100 and long.startswith("aaa") and long.endswith("bbb") and "left out" in long
    error = GraphoptError("no \x1b", "try\nthis")
    assert str(error) == "no \\x1b\n  hint: try this" and error.args == ("no \\x1b",)
