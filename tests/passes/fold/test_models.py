"""Real classifiers: fewer nodes, equal outputs, in any batch size. And a very large graph, in linear time."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Model, load

# Nodes after folding are at most these. Of efficientnet-lite0 and resnet56, onnxsim makes 100 and 149, onnxslim 94
# and 144.
NODES = {
    "efficientnet-lite0": 94,
    "mbv3-cifar10": 87,
    "resnet20-cifar10": 56,
    "resnet56-cifar10": 146,
    "seed-cnn-cifar10": 15,
    "vit-cifar10": 149,
}


@pytest.mark.parametrize("name", NODES)
def test_shared_models(fold, shared, name):
    found = fold(load(shared / "models" / f"{name}.onnx"), rtol=1e-5)
    assert len(found.ops) <= NODES[name]
    assert "BatchNormalization" not in found.ops
    assert not {"Constant", "Shape", "Identity", "Dropout"} & set(found.ops)
    assert len(found.after) <= len(found.before)


def test_the_embedded_classifier(fold, root):
    path = root / "models" / "fashion-resnet.onnx"
    found = fold(load(path), rtol=1e-5)
    assert "BatchNormalization" not in found.ops


@pytest.mark.parametrize("kind", ["chain", "star", "constants"])
def test_twenty_thousand_nodes(simplify, kind):
    """No time is asserted; a quadratic step would make this take minutes."""
    n = 20_000
    weights = [numpy_helper.from_array(np.float32(1.0), "one"), numpy_helper.from_array(np.float32(0.5), "half")]
    nodes = []
    for i in range(n):
        source = f"t{i - 1}" if i else "x"
        if kind == "chain":  # every other node does nothing
            nodes.append(helper.make_node(("Identity", "Sigmoid")[i % 2], [source], [f"t{i}"]))
        elif kind == "star":  # all read the same two constants
            nodes.append(helper.make_node("Mul", [source, ("one", "half")[i % 2]], [f"t{i}"]))
        else:  # one long constant chain
            nodes.append(helper.make_node("Mul", ["half" if i == 0 else source, "one"], [f"t{i}"]))
    nodes.append(helper.make_node("Add", ["x", f"t{n - 1}"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        weights,
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    result = simplify(model)
    assert len(model.graph.nodes) == (1 if kind == "constants" else n // 2 + 1)
    assert result.changed and not simplify(model).changed
