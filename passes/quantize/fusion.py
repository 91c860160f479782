"""Whether ONNX Runtime runs in int8 what was meant to: read off the model as it optimizes it."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from graphopt.ir import Model, save
from graphopt.runtime.target import Target

_CPU = "CPUExecutionProvider"


def count_fused(model: Model, target: Target, planned: dict[str, int]) -> dict[str, int] | None:
    """How many operators of each planned kind ONNX Runtime fused; None if the target is not its CPU.

    Raises ONNX Runtime's exception if it does not load the model.
    """
    if target.provider != _CPU:
        return None
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        save(model, source)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(result)
        ort.InferenceSession(str(source), options, providers=[_CPU])
        found = Counter(n.op_type for n in onnx.load(str(result), load_external_data=False).graph.node)
    return {op: sum(found[name] for name in target.fused(op)) for op in planned}
