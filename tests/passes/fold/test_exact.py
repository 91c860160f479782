"""What is computed without a session has the bits that ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, mutually_broadcastable_shapes

from graphopt.passes.fold.exact import compute_exactly
from graphopt.runtime.session import open_session, run_feeds

TYPES = {"Add": "f4 f8 i4 i8", "Sub": "f4 f8 i4 i8", "Mul": "f4 f8 i4 i8", "Div": "f4 f8"}
CASES = [(op, kind) for op, kinds in TYPES.items() for kind in kinds.split()]


def node(op: str, *arrays: np.ndarray, **attrs: object) -> gs.Node:
    inputs = [gs.Constant(f"x{k}", a) for k, a in enumerate(arrays)]
    return gs.Node(op, "n", attrs, inputs, [gs.Variable("y")])


def by_runtime(op: str, *arrays: np.ndarray) -> np.ndarray:
    helper = onnx.helper
    kind = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    inputs = [helper.make_tensor_value_info(f"x{k}", kind, a.shape) for k, a in enumerate(arrays)]
    graph = helper.make_graph(
        [helper.make_node(op, [i.name for i in inputs], ["y"])],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", kind, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feeds = {f"x{k}": a for k, a in enumerate(arrays)}
    return run_feeds(open_session(model.SerializeToString(), optimize=False), feeds)[0]


@pytest.mark.parametrize(("op", "kind"), CASES)
@settings(max_examples=15, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_the_same_bits(op, kind, data):
    shapes = data.draw(mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4)).input_shapes
    elements = st.floats(width=8 * np.dtype(kind).itemsize) if kind[0] == "f" else None
    a, b = (data.draw(arrays(kind, shape, elements=elements)) for shape in shapes)
    values, left = compute_exactly([node(op, a, b)])
    expected = by_runtime(op, a, b)
    if left:
        assert kind[0] == "f" and np.isnan(expected).any()
    else:
        assert values["y"].dtype == expected.dtype and values["y"].shape == expected.shape
        assert values["y"].tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "left",
    [
        node("Add", np.ones(2, np.float16), np.ones(2, np.float16)),  # rounded in a way of the kernel's own
        node("Div", np.ones(2, np.int64), np.full(2, -2)),  # rounds toward zero, and divides by zero
        node("Mul", np.ones(2, np.float32), np.ones(2)),
        node("Add", np.ones(2), np.ones(3)),
        node("Sub", np.full(1, np.inf), np.full(1, np.inf)),
        node("Pow", np.ones(2), np.ones(2)),
        node("Add", np.ones(2), np.ones(2), axis=1),
    ],
)
def test_what_is_left_to_the_runtime(left):
    assert compute_exactly([left]) == ({}, [left])


def test_a_chain_is_computed_up_to_what_is_left():
    first = node("Mul", np.full(3, 2.0), np.full(3, 4.0))
    second = gs.Node("Exp", "e", {}, [first.outputs[0]], [gs.Variable("z")])
    third = gs.Node("Add", "a", {}, [second.outputs[0], first.outputs[0]], [gs.Variable("w")])
    values, left = compute_exactly([first, second, third])
    assert left == [second, third] and values["y"].tolist() == [8.0] * 3
