"""The pass: rules to a fixpoint, constant evaluation and shape inference in between."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from graphopt import Context, Kind, Model, Pass, PassResult, option
from graphopt.ir.values import nbytes
from graphopt.passes.fold.batchnorm import fold_affine, fold_batchnorm
from graphopt.passes.fold.cleanup import (
    bypass,
    constant_to_initializer,
    remove_cast,
    remove_dead,
    remove_dropout,
)
from graphopt.passes.fold.evaluate import Evaluator
from graphopt.passes.fold.noops import (
    fold_pad,
    remove_neutral,
    remove_pad,
    remove_single,
    remove_transpose,
)
from graphopt.passes.fold.reshape import constant_target
from graphopt.passes.fold.shape_values import ShapeValues
from graphopt.passes.fold.workbench import Rule, Workbench

_COUNTS = (
    "constants_folded",
    "shapes_folded",
    "batchnorms_folded",
    "affines_folded",
    "pads_folded",
    "no_ops_removed",
    "dead_nodes_removed",
)


@dataclass(frozen=True)
class Fold(Pass):
    """Compute before deployment what does not depend on the input.

    Constant and static-shape subgraphs become initializers, batch normalizations move into the weights before
    them, nodes that do nothing and nodes that nobody reads disappear. Graph inputs and outputs keep their names, and
    random, custom and quantization operators are left alone.
    """

    name = "fold"
    kind = Kind.EXACT
    budget: int = option(
        65536,
        "Bytes that folding one constant subgraph may add to the file, beyond the initializers that it frees",
        min=0,
    )

    def run(self, model: Model, ctx: Context) -> PassResult:
        nodes, size = len(model.graph.nodes), _weight_bytes(model)
        bench = Workbench(model)
        rules, always = _rules()
        evaluator = Evaluator(self.budget)
        try:
            while True:
                bench.drain(rules, always)
                evaluator.fold(bench)
                if bench.idle and not bench.infer_shapes():
                    break
        finally:
            bench.finish()
        metrics = {
            "nodes_before": nodes,
            "nodes_after": len(model.graph.nodes),
            **{name: bench.counts[name] for name in _COUNTS},
            "bytes_delta": _weight_bytes(model) - size,
        }
        return PassResult(bench.changed, metrics, bench.skipped())


def _rules() -> tuple[dict[str, tuple[Rule, ...]], tuple[Rule, ...]]:
    """Rules by operator, and those for every node. Shape values are those of one run."""
    shapes = ShapeValues()
    rules: dict[str, tuple[Rule, ...]] = dict.fromkeys(ShapeValues.OPERATORS, (shapes.visit,))
    rules["Add"] = rules["Sub"] = rules["Mul"] = rules["Div"] = (shapes.visit, remove_neutral, fold_affine)
    rules["BatchNormalization"] = (fold_batchnorm,)
    rules["Cast"] = (remove_cast, shapes.visit)
    rules["CastLike"] = (remove_cast,)
    rules["Concat"] = (remove_single, shapes.visit)
    rules["Constant"] = (constant_to_initializer,)
    rules["Conv"] = (fold_pad,)
    rules["Dropout"] = (remove_dropout,)
    rules["Identity"] = (bypass,)
    rules["Pad"] = (remove_pad,)
    rules["Reshape"] = (partial(constant_target, shapes), shapes.visit)
    rules["Sum"] = rules["Max"] = rules["Min"] = rules["Mean"] = (remove_single,)
    rules["Transpose"] = (remove_transpose,)
    return rules, (remove_dead,)


def _weight_bytes(model: Model) -> int:
    """Bytes of all constant tensors, those inside Constant nodes included."""
    total = sum(nbytes(c) for c in model.constants())
    for graph in model.graphs():
        for node in graph.nodes:
            value = node.attrs.get("value") if node.op == "Constant" else None
            if value is not None:
                total += nbytes(value)
    return total
