"""What is computed without a session has the bits that ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, mutually_broadcastable_shapes

from graphopt.errors import ModelError
from graphopt.ir.exporter import node_proto
from graphopt.passes.fold.exact import compute_exactly
from graphopt.runtime.session import open_session, run_feeds

TYPES = {"Add": "f4 f8 i4 i8", "Sub": "f4 f8 i4 i8", "Mul": "f4 f8 i4 i8", "Div": "f4 f8"}
CASES = [(op, kind) for op, kinds in TYPES.items() for kind in kinds.split()]
OFTEN = settings(max_examples=15, deadline=None, database=None, derandomize=True)
SIZES = st.integers(-5, 5) | st.sampled_from((-(2**63), 2**63 - 1))


def node(op: str, *given: np.ndarray, **attrs: object) -> gs.Node:
    inputs = [gs.Constant(f"x{k}", a) for k, a in enumerate(given)]
    return gs.Node(op, "n", attrs, inputs, [gs.Variable("y")])


def by_runtime(one: gs.Node) -> np.ndarray | None:
    """None where ONNX Runtime says that it is no node at all."""
    helper = onnx.helper
    feeds = {t.name: t.values for t in one.inputs}
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for k, a in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name="y")]
    graph = helper.make_graph([node_proto(one)], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        return run_feeds(open_session(model.SerializeToString(), optimize=False), feeds)[0]
    except ModelError:
        return None


def check(one: gs.Node) -> bool:
    """Whether a node is computed here, which must be as ONNX Runtime does."""
    values, left = compute_exactly([one])
    if left:
        return False
    expected = by_runtime(one)
    assert expected is not None
    assert values["y"].dtype == expected.dtype and values["y"].shape == expected.shape
    assert values["y"].tobytes() == expected.tobytes()
    return True


@pytest.mark.parametrize(("op", "kind"), CASES)
@OFTEN
@given(data=st.data())
def test_arithmetic(op, kind, data):
    shapes = data.draw(mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4)).input_shapes
    elements = st.floats(width=8 * np.dtype(kind).itemsize) if kind[0] == "f" else None
    one = node(op, *(data.draw(arrays(kind, shape, elements=elements)) for shape in shapes))
    if not check(one):
        expected = by_runtime(one)
        assert expected is not None and kind[0] == "f" and np.isnan(expected).any()


def counted(shape: tuple[int, ...], kind: str = "f4") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


@OFTEN
@given(shape=array_shapes(max_dims=4, max_side=4), data=st.data())
def test_what_only_moves_values(shape, data):
    x = counted(shape, data.draw(st.sampled_from(("f4", "f8", "i4", "i8", "?"))))
    order = data.draw(st.permutations(range(x.ndim)))
    assert check(node("Transpose", x, perm=[*order])) and check(node("Transpose", x))
    assert check(node("Concat", x, x, axis=data.draw(st.integers(-x.ndim, x.ndim - 1))))
    sizes = [*shape]
    sizes[data.draw(st.integers(0, x.ndim - 1))] = data.draw(st.sampled_from((0, -1)))
    assert check(node("Reshape", x, np.array(sizes))) and check(node("Reshape", x, np.array([1, -1])))
    check(node("Reshape", x, np.array(data.draw(st.lists(st.integers(-1, 4), max_size=4)), np.int64)))
    fill = gs.Constant("fill", x.reshape(-1)[:1])
    assert check(node("ConstantOfShape", np.array(shape), value=fill)) and check(
        node("ConstantOfShape", np.array(shape))
    )
    assert check(node("Cast", x, to=onnx.TensorProto.INT64)) is (x.dtype.kind != "f")


@settings(OFTEN, max_examples=120)
@given(shape=array_shapes(max_dims=3, max_side=4), data=st.data())
def test_slices(shape, data):
    axes = data.draw(st.lists(st.integers(-len(shape), len(shape) - 1), min_size=1, max_size=2))
    bounds = [data.draw(st.lists(SIZES, min_size=len(axes), max_size=len(axes))) for _ in range(2)]
    steps = data.draw(st.lists(st.sampled_from((1, 2, -1, -2)), min_size=len(axes), max_size=len(axes)))
    check(node("Slice", counted(shape), *(np.array(a, np.int64) for a in (*bounds, axes, steps))))


def test_the_slice_that_turns_around():
    bounds = [np.array([a], np.int64) for a in (-1, -(2**63), 0, -1)]
    assert check(node("Slice", counted((4, 2), "i8"), *bounds))


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
        node("Concat", np.ones(2), np.ones(2, np.float32), axis=0),
        node("Reshape", np.ones(4), np.array([3, -1])),
        node("Reshape", np.ones(4), np.array([4, 0])),
        node("Reshape", np.ones((0, 4)), np.array([0, 0]), allowzero=1),
        node("Slice", np.ones(4), *(np.array(a) for a in ([0, 1], [3, 2], [0, 0]))),  # the same axis twice
        node("Slice", np.ones(4), *(np.array(a) for a in ([-9], [-20], [0], [-1]))),
        node("Cast", np.full(2, 1 << 40), to=onnx.TensorProto.INT32),
        node("ConstantOfShape", np.array([1 << 62])),
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
