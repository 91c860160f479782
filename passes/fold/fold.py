"""The pass: rules to a fixpoint, constant evaluation and shape inference in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from graphopt import Context, Kind, Model, option
from graphopt.ir.values import nbytes
from graphopt.passes.fold.budget import Allowance
from graphopt.passes.fold.evaluate import Evaluator
from graphopt.passes.fold.literals import constant_to_initializer
from graphopt.passes.fold.reshape import constant_target
from graphopt.passes.fold.shape_values import ShapeValues
from graphopt.rewrite import RewritePass, Rule, Workbench
from graphopt.rewrite.operands import scalar_bounds

_SMALL = 65536  # bytes


@dataclass(frozen=True)
class Fold(RewritePass):
    """Compute before deployment what does not depend on the input.

    Constant and static-shape subgraphs become initializers. Random, custom and quantization operators are left alone.
    """

    name = "fold"
    kind = Kind.EXACT
    resumes = True
    budget: int | None = option(
        None,
        "Bytes that folding one constant subgraph may add to the file, beyond the initializers that it frees "
        "(none: 64 KiB, or 1 % of the model's weights where that is more)",
        min=0,
    )

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        shapes = ShapeValues()
        return (
            Rule("literals", ("Constant",), constant_to_initializer, forward=True),
            Rule("reshape_targets", ("Reshape",), partial(constant_target, shapes), forward=True),
            Rule("range_bounds", ("Range",), scalar_bounds),
            Rule("shapes", ShapeValues.OPERATORS, shapes.visit, forward=True),
        )

    def settle(self, bench: Workbench) -> None:
        Evaluator(self._allowance(bench.model)).fold(bench)
        if bench.idle:
            bench.infer_shapes()

    def _allowance(self, model: Model) -> Allowance:
        given = self.budget
        if given is not None:
            return Allowance(given, lambda: given)
        return Allowance(_SMALL, lambda: max(_SMALL, sum(map(nbytes, model.constants(model.bare_graphs()))) // 100))
