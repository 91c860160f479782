"""Random small networks: whatever is removed, the result equals the masked original."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt import Model
from graphopt.ir import infer_shapes

STEPS = [
    "conv",
    "depthwise",
    "grouped",
    "relu",
    "sigmoid",
    "residual",
    "bn",
    "concat",
    "pool",
    "shuffle",
    "pad",
    "gate",
]


def network(steps: list[str], seed: int) -> Model:
    """[N,4,6,6] -> [N,3], built step by step; channel counts are multiples of 4."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []
    current, channels = "x", 4
    history: list[tuple[str, int]] = []

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights.append(numpy_helper.from_array((rng.standard_normal(shape) * 0.5).astype(np.float32), name))
        return name

    def add(op: str, inputs: list[str], **attrs: object) -> str:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(nodes)}", **attrs))
        return name

    for step in ["conv", *steps]:
        history.append((current, channels))
        if step == "conv":
            out = int(rng.choice([4, 8, 12]))
            current = add("Conv", [current, weight(out, channels, 3, 3), weight(out)], pads=[1, 1, 1, 1])
            channels = out
        elif step == "depthwise":
            current = add("Conv", [current, weight(channels, 1, 3, 3)], group=channels, pads=[1, 1, 1, 1])
        elif step == "grouped":
            current = add("Conv", [current, weight(8, channels // 2, 1, 1)], group=2)
            channels = 8
        elif step in ("relu", "sigmoid"):
            current = add(step.capitalize(), [current])
        elif step == "residual":
            same = [name for name, c in history if c == channels and name != "x"]
            if same:
                current = add("Add", [current, same[int(rng.integers(len(same)))]])
        elif step == "bn":
            var = weight(channels)
            weights[-1].CopyFrom(numpy_helper.from_array(np.linspace(0.5, 1.5, channels, dtype=np.float32), var))
            current = add("BatchNormalization", [current, weight(channels), weight(channels), weight(channels), var])
        elif step == "concat":
            other, more = history[int(rng.integers(len(history)))]
            if channels + more <= 24:
                current = add("Concat", [current, other], axis=1)
                channels += more
        elif step == "pool":
            current = add("MaxPool", [current], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        elif step == "shuffle":
            five = numpy_helper.from_array(np.array([0, 2, channels // 2, 6, 6]), f"s{len(weights)}")
            four = numpy_helper.from_array(np.array([0, channels, 6, 6]), f"r{len(weights)}")
            weights.extend([five, four])
            split = add("Reshape", [current, five.name])
            current = add("Reshape", [add("Transpose", [split], perm=[0, 2, 1, 3, 4]), four.name])
        elif step == "pad" and channels <= 16:
            pads = numpy_helper.from_array(np.array([0, 1, 0, 0, 0, 3, 0, 0]), f"p{len(weights)}")
            weights.append(pads)
            current = add("Pad", [current, pads.name])
            channels += 4
        elif step == "gate":
            pooled = add("GlobalAveragePool", [current])
            current = add("Mul", [current, add("Conv", [pooled, weight(channels, channels, 1, 1)])])
    flat = add("Flatten", [add("GlobalAveragePool", [current])])
    nodes.append(helper.make_node("Gemm", [flat, weight(channels, 3), weight(3)], ["y"], name="last"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    model = Model.from_proto(proto)
    infer_shapes(model)
    return model


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    steps=st.lists(st.sampled_from(STEPS), min_size=2, max_size=9),
    seed=st.integers(0, 1000),
    part=st.sampled_from([0.25, 0.5, 0.75]),
)
def test_pruned_equals_masked(assert_exact, steps, seed, part):
    assert_exact(network(steps, seed), part, at_least=0)
