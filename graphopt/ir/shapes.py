"""Shape and type inference, without moving the weights."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import get_onnx_tensor_dtype, get_onnx_tensor_shape

from graphopt.ir.convert import pairs
from graphopt.ir.model import Model

# Larger initializers are replaced by their type and shape: inference reads values only of shape-like constants.
_VALUES_BELOW = 2048


def infer_shapes(model: Model, *, fresh: bool = False) -> None:
    """Fill in dtypes and shapes of the model's tensors by ONNX shape inference with data propagation.

    With ``fresh``, shapes recorded before are dropped first (graph inputs and outputs keep theirs): for passes that
    change channel counts. Tensors that inference cannot reach keep what was known of them, unless ``fresh``.
    """
    interface = {t.name for t in (*model.graph.inputs, *model.graph.outputs)}
    if fresh:
        for graph in model.graphs():
            for name, tensor in graph.tensors().items():
                if isinstance(tensor, gs.Variable) and name not in interface:
                    tensor.shape = None
    proto = onnx.shape_inference.infer_shapes(model.to_proto(_VALUES_BELOW), data_prop=True)
    for graph, inferred in pairs(model.graph, proto.graph):
        # A tensor that a subgraph reads from outside is described outside; two branches may use a name for two tensors.
        known = {v.name: v for v in inferred.value_info}
        for name, tensor in graph.tensors().items():
            value = known.get(name)
            if value is None or not isinstance(tensor, gs.Variable) or name in interface:
                continue
            if not value.type.HasField("tensor_type"):
                continue
            if tensor.dtype is None and value.type.tensor_type.elem_type:
                tensor.dtype = get_onnx_tensor_dtype(value)
            shape = get_onnx_tensor_shape(value)
            if shape is not None:
                tensor.shape = [_tidy(d) for d in shape]
    model.touch()


def _tidy(dim: int | str | None) -> int | str | None:
    # Inference invents names for unknown dimensions; two runs would invent different ones.
    return None if isinstance(dim, str) and dim.startswith("unk__") else dim
