"""The time of one layer: a model of nothing else, timed kernel by kernel with ONNX Runtime's profiler."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.runtime.session import ModelSource, open_session, run_feeds

_WARM, _LEAST_RUNS, _MOST_RUNS, _SECONDS = 3, 15, 200, 0.02
_FASTEST = 0.3  # of the runs: the others were disturbed
# What the runtime inserts around a layer to change the layout; within a network it does that once for many.
_KERNEL = "_kernel_time"  # ends the profiler's names of what it times
_LAYOUT = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class Operand:
    """An input of a layer: its type and shape, and its values where they are not free to choose."""

    dtype: str
    shape: tuple[int, ...]
    constant: bool = False
    values: tuple[int | float, ...] | None = None


@dataclass(frozen=True)
class Step:
    """One operator; ``attributes`` as JSON gives them. An operand that is None is left out."""

    op: str
    attributes: Mapping[str, Any]
    operands: tuple[Operand | None, ...]
    outputs: int = 1


@dataclass(frozen=True)
class Layer:
    """Operators in a row, each reading the one before as its first input. The runtime may fuse them."""

    steps: tuple[Step, ...]
    opset: int
    ir_version: int = field(default=8, compare=False)

    @property
    def key(self) -> str:
        """Canonical text: all that the time depends on."""
        words = []
        for number, step in enumerate(self.steps):
            attributes = json.dumps(dict(step.attributes), sort_keys=True, separators=(",", ":"))
            operands = [_words(o) for o in (step.operands if number == 0 else step.operands[1:])]
            words.append(f"{step.op}{attributes if step.attributes else ''}({' '.join(operands)})")
        return f"layer opset{self.opset} " + " ".join(words)

    def model(self) -> tuple[bytes, dict[str, np.ndarray]]:
        """The layer as a model, with a feed for it. Values are small and random; they do not matter for time."""
        rng = np.random.default_rng(0)
        nodes, inputs, constants, feed = [], [], [], {}
        previous = ""
        for number, step in enumerate(self.steps):
            names = []
            for slot, operand in enumerate(step.operands):
                name = f"t{number}_{slot}"
                if number and slot == 0:
                    name = previous
                elif operand is None:
                    name = ""
                elif operand.constant:
                    constants.append(onnx.numpy_helper.from_array(_values(operand, rng), name))
                else:
                    feed[name] = _values(operand, rng)
                    kind = onnx.helper.np_dtype_to_tensor_dtype(feed[name].dtype)
                    inputs.append(onnx.helper.make_tensor_value_info(name, kind, operand.shape))
                names.append(name)
            outputs = [f"y{number}_{k}" for k in range(step.outputs)]
            nodes.append(onnx.helper.make_node(step.op, names, outputs, **step.attributes))
            previous = outputs[0]
        last = [onnx.ValueInfoProto(name=name) for name in nodes[-1].output]
        graph = onnx.helper.make_graph(nodes, "layer", inputs, last, constants)
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)], ir_version=self.ir_version
        )
        return model.SerializeToString(), feed


def layer_microseconds(layer: Layer, threads: int = 1) -> float:
    """Time of the layer's kernels in microseconds, without the call of the session and changes of layout.

    Raises ModelError if the runtime does not run it.
    """
    model, feed = layer.model()
    times = kernel_microseconds(model, feed, threads)
    return max(sum(value for (op, _), value in times.items() if op not in _LAYOUT), 0.1)


def kernel_microseconds(
    model: ModelSource, feed: Mapping[str, np.ndarray], threads: int = 1, seconds: float = _SECONDS
) -> dict[tuple[str, str], float]:
    """Times of a model's kernels in microseconds, by operator and name, after the runtime's optimizations.

    Each is the mean of its fastest runs: what else the machine does only ever adds. Raises ModelError.
    """
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        session = open_session(model, threads=threads, profile=Path(folder) / "profile")
        began, runs = time.perf_counter(), 0
        while runs < _WARM + _LEAST_RUNS or (runs < _MOST_RUNS and time.perf_counter() - began < seconds):
            run_feeds(session, feed)
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            key = (str(event["args"].get("op_name")), event["name"].removesuffix(_KERNEL))
            spent.setdefault(key, []).append(float(event["dur"]))
    found = {}
    for key, times in spent.items():
        fastest = np.sort(times[_WARM:])[: max(1, int(_FASTEST * len(times[_WARM:])))]
        found[key] = float(fastest.mean())
    return found


def _values(operand: Operand, rng: np.random.Generator) -> np.ndarray:
    if operand.values is not None:
        return np.array(operand.values, dtype=operand.dtype).reshape(operand.shape)
    dtype = np.dtype(operand.dtype)
    if dtype.kind == "f":
        return (0.05 + 0.1 * rng.random(operand.shape)).astype(dtype)
    return rng.integers(0, 2, operand.shape).astype(dtype)


def _words(operand: Operand | None) -> str:
    if operand is None:
        return "-"
    shape = "x".join(map(str, operand.shape))
    values = "=" + ",".join(map(repr, operand.values)) if operand.values is not None else ""
    return f"{operand.dtype}[{shape}]{'c' if operand.constant else ''}{values}"
