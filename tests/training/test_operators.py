"""Each operator of the table against ONNX Runtime, on the nodes of the ONNX backend suite."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import torch
from backend import Case, cases, execute

from graphopt import GraphoptError, Model
from graphopt.ir import infer_shapes
from graphopt.training.executor import Executor
from graphopt.training.ops import OPERATORS


def _covered() -> list[Case]:
    found = []
    for case in cases("node"):
        graph = case.test.model.graph
        if all(n.op_type in OPERATORS and n.domain in ("", "ai.onnx") for n in graph.node) and _is_float(graph):
            found.append(case)
    return found


def _is_float(graph: onnx.GraphProto) -> bool:
    """Whether no float type but float32 takes part: the executor computes in one."""
    good = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
    good |= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16, onnx.TensorProto.UINT16}
    good |= {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    kinds = [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)]
    return all(k in good for k in kinds) and onnx.TensorProto.FLOAT in kinds


COVERED = _covered()


def _load(case: Case) -> tuple[Model, list[np.ndarray]]:
    proto, sets = case.load()
    model = Model.from_proto(proto)
    infer_shapes(model)
    return model, sets[0][0]


def _tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array)).to(dtype)
    small = str(array.dtype) in ("int8", "uint8", "int32", "int64", "bool")
    return torch.from_numpy(np.array(array if small else array.astype(np.int32)))


# Forms that the executor refuses, with a reason; everything else of the operators above must run.
REFUSED: tuple[str, ...] = (
    "MaxPool that gives indices",
    "BatchNormalization in training mode",
    "LayerNormalization that also gives its statistics",
    "Resize with antialiasing",
    "Resize that keeps the aspect ratio",
    "Resize with coordinates 'tf_crop_and_resize'",
    "Dropout in training mode",
    "casts to type INT4",
    "casts to type UINT4",
)


def test_forward_equals_onnx_runtime() -> None:
    ran, refused, wrong = Counter[str](), Counter[str](), []
    for case in COVERED:
        try:
            model, inputs = _load(case)
            wanted = execute(model.to_bytes(), [dict(zip([t.name for t in model.inputs], inputs, strict=True))])[0]
        except (GraphoptError, ValueError):
            continue  # ONNX Runtime does not run it either
        op = model.graph.nodes[0].op
        try:
            program = Executor(model)
            found = program.run(*[_tensor(x, torch.float32) for x in inputs])
        except GraphoptError as error:
            if not any(reason in error.message for reason in REFUSED):
                refused[f"{case.name}: {error.message}"] += 1
            continue
        for name, expected in zip(program.outputs, wanted, strict=True):
            y = found[name].numpy()
            kind = expected.dtype.kind
            e = expected.astype(np.float64) if kind in "fiub" or expected.dtype.isbuiltin != 1 else expected
            if y.shape != expected.shape or not np.allclose(y, e, rtol=1e-4, atol=1e-5, equal_nan=True):
                wrong.append(f"{case.name}: {y.shape} {expected.shape}")
        ran[op] += 1
    assert not wrong, "\n".join(wrong)
    assert not refused, "\n".join(refused)
    assert len(ran) >= 100 and sum(ran.values()) >= 500
