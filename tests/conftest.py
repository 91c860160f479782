"""Small classifiers and data that tests of whole commands share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and images beside the project. Tests that need them skip where they are missing."""
    if not (SHARED / "models").is_dir():
        pytest.skip("the shared models and images are not beside the project")
    return SHARED


def small_classifier(seed: int = 0, classes: int = 4, size: int = 12) -> onnx.ModelProto:
    """Conv-BN-Relu, a residual block, pooling, a classifier: [N,3,12,12] -> [N,4]."""
    rng = np.random.default_rng(seed)

    def weights(name: str, *shape: int) -> TensorProto:
        fan_in = int(np.prod(shape[1:])) or 1
        return numpy_helper.from_array((rng.normal(size=shape) * np.sqrt(2 / fan_in)).astype(np.float32), name)

    def vector(name: str, n: int, low: float, high: float) -> TensorProto:
        return numpy_helper.from_array(rng.uniform(low, high, n).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "s1", "b1", "m1", "v1"], ["n1"], name="bn1"),
        helper.make_node("Relu", ["n1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "k2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("Conv", ["r2", "w3", "k3"], ["c3"], name="conv3", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c3", "r1"], ["a3"], name="add3"),
        helper.make_node("Relu", ["a3"], ["r3"], name="relu3"),
        helper.make_node("GlobalAveragePool", ["r3"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w4", "k4"], ["logits"], name="fc", transB=1),
    ]
    initializers = [
        weights("w1", 16, 3, 3, 3),
        vector("s1", 16, 0.5, 1.5),
        vector("b1", 16, -0.2, 0.2),
        vector("m1", 16, -0.2, 0.2),
        vector("v1", 16, 0.5, 1.5),
        weights("w2", 32, 16, 3, 3),
        vector("k2", 32, -0.2, 0.2),
        weights("w3", 16, 32, 3, 3),
        vector("k3", 16, -0.2, 0.2),
        weights("w4", classes, 16),
        vector("k4", classes, -0.1, 0.1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def label(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """What the model itself says of uint8 images [N,12,12,3], divided by 255."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    return session.run(None, {"input": x})[0].argmax(axis=1)


@pytest.fixture(scope="session")
def classifier_proto() -> onnx.ModelProto:
    return small_classifier()


@pytest.fixture
def classifier(tmp_path: Path, classifier_proto: onnx.ModelProto) -> Path:
    """The small classifier as a file in a folder of its own test."""
    path = tmp_path / "model.onnx"
    onnx.save(classifier_proto, path)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, classifier_proto: onnx.ModelProto) -> Path:
    """96 random images as .npz, labelled by the small classifier itself: its accuracy on them is 100 %."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (96, 4, 4, 3))
    x = np.clip(np.kron(coarse, np.ones((1, 3, 3, 1))) + rng.normal(0, 12, (96, 12, 12, 3)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, x=x, y=label(classifier_proto, x))
    return path
