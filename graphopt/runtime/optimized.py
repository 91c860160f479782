"""What ONNX Runtime makes of a model before it runs it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from graphopt.ir import Model, save
from graphopt.runtime.session import PROVIDER

_INT8 = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul")
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def on_integers(op: str) -> bool:
    """Whether an operator of this name computes on integers (QLinearConv, MatMulInteger and the like)."""
    return op.startswith(_INT8)


@dataclass(frozen=True)
class Kernel:
    """A node of the optimized graph; ``int8`` if it computes on integers."""

    name: str
    op: str

    @property
    def int8(self) -> bool:
        return on_integers(self.op)


def optimized(model: Model) -> list[Kernel]:
    """Nodes after ONNX Runtime's fusions, before it changes layouts. Raises its exception if it does not load it."""
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
    return [Kernel(n.name, n.op_type) for n in nodes]
