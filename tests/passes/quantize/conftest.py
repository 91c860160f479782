"""Quantize a small graph in ONNX text format, and run both."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphopt import Context, Model, PassResult
from graphopt.ir import Snapshot, verify
from graphopt.passes.quantize import Quantize
from graphopt.runtime.target import OpCost, Target, get_target


class Images:
    """Calibration images out of an array, in the form of a ``Batches``."""

    synthetic = False

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def part(self, numbers: np.ndarray) -> Images:
        return Images(self.x[numbers])

    def subset(self, n: int, seed: int = 0) -> Images:
        return (
            self if n >= len(self) else Images(self.x[np.sort(np.random.default_rng(seed).permutation(len(self))[:n])])
        )

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[np.ndarray]:
        total = len(self) if limit is None else min(limit, len(self))
        for start in range(0, total, batch_size):
            yield self.x[start : min(start + batch_size, total)]


def eager() -> Target:
    """The CPU as it is, but where int8 pays even for the smallest operator, so that small graphs are quantized."""
    target = get_target("ort-cpu")
    free = OpCost(1e9, 0.0)
    costs = dataclasses.replace(target.costs, ops=(), default=free)
    return dataclasses.replace(target, costs=costs, measurable=False)


@dataclasses.dataclass
class Outcome:
    """A quantized model, what was reported, and both models' outputs on the calibration images."""

    model: Model
    result: PassResult
    reference: np.ndarray
    output: np.ndarray
    warnings: list[str]

    @property
    def ops(self) -> Counter[str]:
        return Counter(n.op for n in self.model.graph.nodes)

    @property
    def optimized(self) -> Counter[str]:
        """What ONNX Runtime makes of the quantized model."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.optimized_model_filepath = str(path)
            ort.InferenceSession(self.model.to_bytes(), options, providers=["CPUExecutionProvider"])
            return Counter(n.op_type for n in onnx.load(str(path)).graph.node)

    @property
    def reasons(self) -> dict[str, str]:
        return {s.node: s.reason for s in self.result.skipped}

    @property
    def error(self) -> float:
        """Root mean square error, relative to that of the reference around its mean."""
        spread = float(np.std(self.reference)) or 1.0
        return float(np.sqrt(np.mean((self.output - self.reference) ** 2))) / spread


class _Ear:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def track(self, items: Any, description: str, total: int | None = None) -> Any:
        yield from items

    def log(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def run_model(model: Model, x: np.ndarray, optimize: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


@pytest.fixture
def quantized() -> Callable[..., Outcome]:
    def run(
        source: str | Model,
        *shape: int,
        x: np.ndarray | None = None,
        target: Target | None = None,
        table: Any = None,
        **options: Any,
    ) -> Outcome:
        model = Model.from_text(source) if isinstance(source, str) else source.copy()
        if x is None:
            x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        reference, before, ear = run_model(model, x), Snapshot.of(model), _Ear()
        chosen = target or eager()
        if table is not None:
            chosen = dataclasses.replace(chosen, measurable=True)
        ctx = Context(chosen, Images(x), model.copy(), progress=ear, latency_table=table)  # type: ignore[arg-type]
        result = Quantize(**options).run(model, ctx)
        verify(model, before)
        onnx.checker.check_model(model.to_proto(), full_check=True)
        return Outcome(model, result, reference, run_model(model, x), ear.warnings)

    return run


def weights(seed: int, *shape: int) -> str:
    """Random weights as the text format writes them."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32).reshape(-1)
    kind = ",".join(map(str, shape))
    return f"float[{kind}] " + "{name} = {{" + ", ".join(f"{v:.4f}" for v in values) + "}}"


@pytest.fixture
def graph() -> Callable[..., str]:
    """Text of a model: body, input and output types, and initializers by name as (seed, shape) or text."""

    def build(body: str, x: str, y: str, opset: int = 17, **initializers: Any) -> str:
        parts = []
        for name, value in initializers.items():
            text = value if isinstance(value, str) else weights(value[0], *value[1:]).format(name=name)
            parts.append(text)
        given = f"<{', '.join(parts)}>" if parts else ""
        return f'<ir_version: 8, opset_import: ["" : {opset}]>\nnet (float{x} x) => (float{y} y)\n{given}\n{{ {body} }}'

    return build


@pytest.fixture
def run() -> Callable[..., np.ndarray]:
    """The first output of a model for an input."""
    return run_model


@pytest.fixture
def eager_target() -> Target:
    return eager()
