"""The executor on real models: the same outputs as ONNX Runtime, with and without gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from graphopt.ir import load
from graphopt.runtime.session import open_session
from graphopt.training.executor import Executor

MODELS = (
    "resnet20-cifar10",
    "resnet56-cifar10",
    "mbv3-cifar10",
    "vit-cifar10",
    "seed-cnn-cifar10",
    "efficientnet-lite0",
)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_those_of_onnx_runtime(shared: Path, name: str) -> None:
    path = shared / "models" / f"{name}.onnx"
    model = load(path)
    (entry,) = model.inputs
    shape = [d if isinstance(d, int) and d > 0 else 3 for d in entry.shape]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    wanted = open_session(path, optimize=False).run(None, {entry.name: x})[0]
    for train in (False, True):
        program = Executor(model, train=train)
        found = program.run(torch.from_numpy(x))[program.outputs[0]].detach().numpy()
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max(), train
