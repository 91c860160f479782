"""A newer version of the operator set."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.version_converter

from graphopt import Context, Kind, Model, ModelError, Pass, PassError, PassResult, option
from graphopt.ir import infer_shapes
from graphopt.ir.rebuild import rebuild
from graphopt.ir.view import subgraphs


@dataclass(frozen=True)
class Upgrade(Pass):
    """Rewrite the model for a newer opset: later ones have operators (LayerNormalization in 17, Gelu in 20) and types
    (int4 in 21) that passes can use. The conversion is that of the onnx package."""

    name = "upgrade"
    kind = Kind.EXACT
    opset: int = option(21, "Version of the default operator set", min=7, max=onnx.defs.onnx_opset_version())

    def run(self, model: Model, ctx: Context) -> PassResult:
        before = model.opset
        if before == self.opset:
            return PassResult(False)
        if before > self.opset:
            raise ModelError(
                f"the model has opset {before}, and upgrade does not go back to {self.opset}",
                f"ask for a version above {before}, or leave the pass out",
            )
        inside = next((n.name for n in model.graph.nodes if subgraphs(n)), None)
        if inside is not None or model.graph.functions:
            what = f"node {inside!r} has subgraphs" if inside else "the model has functions of its own"
            raise ModelError(f"{what}, which the conversion does not reach", "run inline or simplify before upgrade")
        try:
            rebuild(model, self._convert)
        except (RuntimeError, onnx.checker.ValidationError, ValueError) as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise PassError(
                f"onnx cannot convert the model from opset {before} to {self.opset}: {words[0][:300]}",
                "ask for another version, or export the model again",
            ) from error
        infer_shapes(model)
        return PassResult(True, {"opset_before": before, "opset_after": model.opset})

    def _convert(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        new = onnx.version_converter.convert_version(proto, self.opset)
        new.ir_version = max(proto.ir_version, onnx.helper.find_min_ir_version_for(new.opset_import))
        return new
