"""A newer version of the operator set, by the conversion of the onnx package."""

from __future__ import annotations

import onnx
import onnx.version_converter

from graphopt.errors import ModelError, PassError
from graphopt.ir.model import Model
from graphopt.ir.rebuild import rebuild
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.view import subgraphs


def upgrade(model: Model, opset: int) -> None:
    """Rewrite ``model`` in place for version ``opset`` of the default operator set, newer than its own.

    Raises ModelError where the conversion does not reach, PassError where onnx cannot convert.
    """
    inside = next((n.name for n in model.graph.nodes if subgraphs(n)), None)
    if inside is not None or model.graph.functions:
        what = f"node {inside!r} has subgraphs" if inside else "the model has functions of its own"
        raise ModelError(f"{what}, which the conversion does not reach", "run inline or simplify before upgrade")

    def convert(proto: onnx.ModelProto) -> onnx.ModelProto:
        new = onnx.version_converter.convert_version(proto, opset)
        new.ir_version = max(proto.ir_version, onnx.helper.find_min_ir_version_for(new.opset_import))
        return new

    before = model.opset
    try:
        rebuild(model, convert)
    except (RuntimeError, onnx.checker.ValidationError, ValueError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise PassError(
            f"onnx cannot convert the model from opset {before} to {opset}: {words[0][:300]}",
            "ask for another version, or export the model again",
        ) from error
    infer_shapes(model)
