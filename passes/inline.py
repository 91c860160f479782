"""Local functions, replaced by their bodies."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.inliner

from graphopt import Context, Kind, Model, ModelError, Pass, PassResult, option
from graphopt.ir import infer_shapes
from graphopt.ir.functions import MAIN, read_calls
from graphopt.ir.rebuild import rebuild


@dataclass(frozen=True)
class Inline(Pass):
    """Replace calls of the model's own functions by what the functions do, so that other passes can see into them."""

    name = "inline"
    kind = Kind.EXACT
    limit: int = option(
        1_000_000, "Nodes that the model may have afterwards: functions that call others can grow without bound", min=1
    )

    def run(self, model: Model, ctx: Context) -> PassResult:
        if not model.graph.functions:
            return PassResult(False)
        before = sum(len(g.nodes) for g in model.graphs())
        after = expanded_size(model.to_proto(0))
        if after > self.limit:
            raise ModelError(
                f"inlining the model's functions would make {after:,} nodes of {before:,}",
                f"raise the limit: inline{{limit={after}}}; it is {self.limit}",
            )
        functions = len(model.graph.functions)
        rebuild(model, onnx.inliner.inline_local_functions)
        infer_shapes(model)
        return PassResult(True, {"functions": functions, "nodes_before": before, "nodes_after": after})


def expanded_size(proto: onnx.ModelProto) -> int:
    """Nodes of a model once its functions are inlined. Raises ModelError for a ring of functions."""
    found = read_calls(proto)
    return found.total(lambda key: found.written[key] - len(found.calls[key]))[MAIN]
