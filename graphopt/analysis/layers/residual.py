"""Where what a layer computes ends up: in a residual sum, as a rule."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.analysis.layers.quantized import beyond_quantizers
from graphopt.ir import Model


def residual(model: Model, out: gs.Tensor, index: int, made_by: dict[str, int]) -> tuple[str, str | None]:
    """The tensor to preserve for the output ``out`` of node number ``index``, and what to subtract from it.

    These are the sum of a residual block and its finished branch; or ``out`` itself, and None. ``made_by``: the number
    of the node that writes each tensor.
    """
    branch = beyond_quantizers(out)
    users = branch.outputs
    if len(users) == 1 and users[0].op == "Add" and not model.is_output(branch):
        other = next((t for t in users[0].inputs if t is not branch), None)
        ready = other is not None and made_by.get(other.name, index) < index
        if ready and other is not None and other.shape is not None and other.shape == out.shape:
            return users[0].outputs[0].name, other.name
    return out.name, None
