"""A very large graph, on which a step that is quadratic in the number of nodes shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Nodes of one block, of which an Add, a Conv and a Relu need to stay.
BLOCK = 12


def large_model(nodes: int) -> onnx.ModelProto:
    """A chain of blocks with a constant subgraph, Conv and batch norm, an Identity, and a Reshape to the shape it had.

    ``nodes`` is rounded down to whole blocks. The batch is symbolic.
    """
    rng = np.random.default_rng(0)
    initializers = [
        numpy_helper.from_array(np.array(0, np.int64), "zero"),
        numpy_helper.from_array(np.array([0], np.int64), "axis"),
        numpy_helper.from_array(np.array([4, 2, 2], np.int64), "rest"),
    ]
    made: list[onnx.NodeProto] = []
    last = "x"

    def weight(name: str, *shape: int, low: float = -0.4, high: float = 0.4) -> str:
        array = rng.uniform(low, high, shape).astype(np.float32)
        initializers.append(numpy_helper.from_array(array, name))
        return name

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(made)}"
        made.append(helper.make_node(op, list(inputs), [output], f"n{len(made)}", **attributes))
        return output

    for k in range(nodes // BLOCK):
        two = add("Constant", value=numpy_helper.from_array(np.array([2], np.float32)))
        a = add("Add", last, add("Mul", weight(f"a{k}", 4, 1, 1), two))
        c = add("Conv", a, weight(f"w{k}", 4, 4, 1, 1))
        mean = (weight(f"s{k}", 4, low=0.9, high=1.1), weight(f"b{k}", 4), weight(f"m{k}", 4))
        n = add("BatchNormalization", c, *mean, weight(f"v{k}", 4, low=0.9, high=1.1))
        r = add("Identity", add("Relu", n))
        batch = add("Unsqueeze", add("Gather", add("Shape", r), "zero"), "axis")
        last = add("Reshape", r, add("Concat", batch, "rest", axis=0))
    made[-1].output[0] = "y"
    image: list[str | int | None] = ["N", 4, 2, 2]
    graph = helper.make_graph(
        made,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, image)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
