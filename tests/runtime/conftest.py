"""Small classifiers and image sets whose right answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.data.loader import Batches
from graphopt.data.model_io import image_input
from graphopt.data.preprocess import Preprocess
from graphopt.data.sources import open_dataset

MakeModel = Callable[..., bytes]


@pytest.fixture
def make_model() -> MakeModel:
    """A model that scores class k by the mean of channel k, times ``weights`` [3, classes]."""

    def make(
        weights: np.ndarray | None = None,
        *,
        bias: np.ndarray | None = None,
        shape: tuple[int | str, ...] = ("n", 3, 8, 8),
        tail: tuple[str, ...] = (),
        output: str = "scores",
        dtype: int = TensorProto.FLOAT,
    ) -> bytes:
        numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
        matrix = (np.eye(3) if weights is None else weights).astype(numpy_type)
        offset = (np.zeros(matrix.shape[1]) if bias is None else bias).astype(numpy_type)
        axes = np.array([2, 3] if shape[1] == 3 else [1, 2], dtype=np.int64)
        nodes = [
            helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
            helper.make_node("MatMul", ["means", "weights"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["t0"]),
        ]
        for i, op in enumerate(tail):
            nodes.append(helper.make_node(op, [f"t{i}"], [f"t{i + 1}"]))
        nodes.append(helper.make_node("Identity", [f"t{len(tail)}"], [output]))
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("image", dtype, shape)],
            [helper.make_tensor_value_info(output, dtype, [shape[0], matrix.shape[1]])],
            [numpy_helper.from_array(v, name) for name, v in (("axes", axes), ("weights", matrix), ("bias", offset))],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    return make


@pytest.fixture
def make_batches(tmp_path: Path) -> Callable[..., Batches]:
    """``n`` images in which channel i % 3 is the brightest; labels say so, but for the first ``wrong``."""

    def make(n: int = 10, *, wrong: int = 0, labels: bool = True, shape=("n", 3, 8, 8)) -> Batches:
        x = np.random.default_rng(0).integers(0, 100, (n, 8, 8, 3), dtype=np.uint8)
        truth = np.arange(n) % 3
        x[np.arange(n), :, :, truth] += 100
        y = truth.copy()
        y[:wrong] = (y[:wrong] + 1) % 3
        path = tmp_path / f"set-{n}-{wrong}-{labels}.npz"
        np.savez(path, x=x, **({"y": y} if labels else {}))
        target = image_input("image", shape, np.float32)
        return Batches(open_dataset(path), None, Preprocess.parse("unit"), target)

    return make


SHARED = Path(__file__).resolve().parents[2].parent / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder of real models and images beside the project; the test is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no real models at {SHARED}")
    return SHARED
