"""A newer version of the operator set."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from graphopt import Context, Kind, Model, ModelError, Pass, PassResult, option
from graphopt.ir.upgrade import upgrade


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
        upgrade(model, self.opset)
        return PassResult(True, {"opset_before": before, "opset_after": model.opset})
