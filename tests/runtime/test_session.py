import numpy as np
import pytest
from onnx import TensorProto, helper

from graphopt.errors import ModelError
from graphopt.runtime.session import (
    open_session,
    run_feeds,
    run_session,
    session_input,
    session_io,
    shorten,
)


def graph_of(*inputs, kind=TensorProto.FLOAT):
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _ in inputs]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, shape in inputs]
    graph = helper.make_graph(nodes, "g", infos, outputs)
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def test_bytes_and_paths_open(make_model, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(make_model())
    for source in (make_model(), path, str(path)):
        io = session_io(open_session(source, threads=2, optimize=False))
        assert io.inputs[0].name == "image" and io.inputs[0].shape == ("n", 3, 8, 8)
        assert io.inputs[0].dtype == np.float32 and io.outputs[0].name == "scores"


def test_image_input_of_a_model(make_model):
    found = session_input(open_session(make_model(np.ones((3, 7)))))
    assert (found.layout, found.batch, found.classes) == ("nchw", None, 7)
    assert session_input(open_session(make_model(shape=(4, 8, 8, 3)))).layout == "nhwc"


def test_refused_models_are_errors(make_model, tmp_path):
    with pytest.raises(ModelError, match="no model at"):
        open_session(tmp_path / "none.onnx")
    for broken in (b"", b"no model", make_model()[:100]):
        with pytest.raises(ModelError, match=r"does not load the model .* in memory"):
            open_session(broken)
    bad = helper.make_graph(
        [helper.make_node("NoSuchOp", ["a"], ["b"])],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "bad.onnx"
    path.write_bytes(helper.make_model(bad, ir_version=9).SerializeToString())
    with pytest.raises(ModelError, match=r"bad\.onnx: .*NoSuchOp"):
        open_session(path)


def test_only_one_image_input_makes_a_classifier():
    with pytest.raises(ModelError, match=r"2 inputs \('a', 'b'\)"):
        session_input(open_session(graph_of(("a", ["n", 3, 8, 8]), ("b", ["n", 1]))))
    with pytest.raises(ModelError, match="not a batch of images"):
        session_input(open_session(graph_of(("a", ["n", 30]))))
    with pytest.raises(ModelError, match=r"tensor\(string\)"):
        session_io(open_session(graph_of(("a", ["n", 30]), kind=TensorProto.STRING)))


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
def test_fixed_batches_are_padded(make_model, n):
    x = np.random.default_rng(0).random((n, 3, 8, 8), dtype=np.float32)
    free = run_session(open_session(make_model()), x)[0]
    fixed = run_session(open_session(make_model(shape=(4, 3, 8, 8))), x, batch=4)[0]
    np.testing.assert_array_equal(fixed, free)


def test_a_run_that_fails_says_what_was_fed(make_model):
    session = open_session(make_model())
    with pytest.raises(ModelError, match=r"image \[1, 3, 9, 9\] float32"):
        run_session(session, np.zeros((1, 3, 9, 9), np.float32))
    with pytest.raises(ModelError, match="fails to run"):
        run_feeds(session, {"picture": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_fixed_batch_without_a_batch_in_the_output_is_an_error():
    node = helper.make_node("ReduceMean", ["a"], ["b"], keepdims=0)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [4, 2])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [])],
    )
    opsets = [helper.make_opsetid("", 18)]
    session = open_session(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    with pytest.raises(ModelError, match="takes batches of 4"):
        run_session(session, np.zeros((3, 2), np.float32), batch=4)


def test_shorten():
    assert shorten(ValueError("a\n  b")) == "a b"
    assert len(shorten(ValueError("x" * 1000))) == 400
