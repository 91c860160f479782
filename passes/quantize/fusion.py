"""Whether ONNX Runtime runs in int8 what was meant to: read off the model as it optimizes it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from graphopt.ir import Model, save
from graphopt.runtime.session import PROVIDER
from graphopt.runtime.target import Target


@dataclass(frozen=True)
class Fusion:
    """How many operators of each planned kind run in int8, and the names of the planned nodes that stayed float."""

    counts: dict[str, int]
    in_float: tuple[str, ...] = ()


def check_fusion(model: Model, target: Target, planned: Mapping[str, Sequence[str]]) -> Fusion | None:
    """Compare ``planned`` (node names by operator) with what ONNX Runtime does; None if the target is not its CPU.

    Raises ONNX Runtime's exception if it does not load the model.
    """
    if target.provider != PROVIDER:
        return None
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        save(model, source)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(result)
        ort.InferenceSession(str(source), options, providers=[PROVIDER])
        nodes = onnx.load(str(result), load_external_data=False).graph.node
    found = Counter(n.op_type for n in nodes)
    counts = {op: sum(found[name] for name in target.fused(op)) for op in sorted(planned)}
    kinds = {n.name: n.op_type for n in nodes}
    in_float = (n for op in sorted(planned) for n in planned[op] if kinds.get(n) in (op, f"Fused{op}"))
    return Fusion(counts, tuple(in_float))
