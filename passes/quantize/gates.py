"""What the readers of a tensor make of its values, where none of them reads the values themselves."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from scipy.special import expit

from graphopt.analysis.thresholds import Function
from graphopt.ir import Model
from graphopt.ir.view import is_standard
from graphopt.passes.quantize.operators import sole_consumer


def seen_through(model: Model, tensor: gs.Tensor) -> Function | None:
    """The function of single values that all readers of ``tensor`` apply; None if a reader takes them as they are.

    x * Sigmoid(x) (SiLU) and x * HardSigmoid(x) (HardSwish) count as one function.
    """
    gate = gate_of(model, tensor)
    if gate is not None:
        function = _function(gate)
        return None if function is None else lambda x: x * function(x)
    reader = sole_consumer(model, tensor)
    return None if reader is None else _function(reader)


def gate_of(model: Model, tensor: gs.Tensor) -> gs.Node | None:
    """The operator whose result ``tensor`` is multiplied with, where nothing else reads the tensor: x * gate(x)."""
    if model.is_output(tensor) or tensor.name in model.captured() or len(tensor.outputs) != 2:
        return None
    for gate, product in (tensor.outputs, tensor.outputs[::-1]):
        factors = [t for t in product.inputs if t is not tensor]
        if product.op == "Mul" and len(factors) == 1 and factors[0].inputs and factors[0].inputs[0] is gate:
            return gate if sole_consumer(model, factors[0]) is product else None
    return None


def slope_of(gate: gs.Node) -> tuple[float, float]:
    """``alpha`` and ``beta`` of a HardSigmoid, max(0, min(1, alpha x + beta))."""
    return gate.attrs.get("alpha", 0.2), gate.attrs.get("beta", 0.5)


def _function(node: gs.Node) -> Function | None:
    if not is_standard(node) or len(node.inputs) != 1:
        return None
    if node.op == "HardSigmoid":
        alpha, beta = slope_of(node)
        return lambda x: np.clip(alpha * x + beta, 0.0, 1.0)
    return {"Sigmoid": expit, "Tanh": np.tanh}.get(node.op)
