"""Which operators can work on tensors that are kept in another form, and how."""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

from graphopt.ir.view import subgraphs
from graphopt.passes.layout import structure
from graphopt.passes.layout.elementwise import ELEMENTWISE, elementwise, gemm, matmul, quantize
from graphopt.passes.layout.plan import Anchor, Plan, why_unfit
from graphopt.passes.layout.reshape import reshape
from graphopt.rewrite import Workbench

_RULES: dict[tuple[str, ...], Callable[[Workbench, gs.Node, Anchor], Plan | str]] = {
    ELEMENTWISE: elementwise,
    ("QuantizeLinear", "DequantizeLinear"): quantize,
    ("Concat", "Split", "TopK", "LpNormalization"): structure.along_axis,
    ("Softmax", "LogSoftmax", "Hardmax"): structure.softmax,
    tuple(f"Reduce{r}" for r in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()): structure.reduction,
    ("ArgMax", "ArgMin"): structure.arg_reduction,
    ("Squeeze",): structure.squeeze,
    ("Unsqueeze",): structure.unsqueeze,
    ("Gather",): structure.gather,
    ("Pad",): structure.pad,
    ("Slice",): structure.slice_,
    ("Tile", "Expand"): structure.tile,
    ("Resize", "Upsample"): structure.resize,
    ("LayerNormalization",): structure.normalization,
    ("BatchNormalization", "InstanceNormalization"): structure.channels,
    ("GlobalAveragePool", "GlobalMaxPool"): structure.global_pool,
    ("Shape",): structure.shape,
    ("Reshape", "Flatten"): reshape,
    ("MatMul",): matmul,
    ("Gemm",): gemm,
}
_RULE_OF = {op: rule for ops, rule in _RULES.items() for op in ops}


def plan_of(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """How a node would work with the tensor at ``anchor`` in another form, or in words why it cannot."""
    if not bench.is_standard(node):
        return "it is a custom operator"
    if node.attrs and subgraphs(node):
        return "it holds a subgraph"
    rule = _RULE_OF.get(node.op)
    if rule is None:
        return structure.FIXED
    plan = rule(bench, node, anchor)
    if isinstance(plan, str):
        return plan
    given = plan.ins[anchor.index] if anchor.is_input else plan.outs[anchor.index]
    if given != anchor.form:
        return structure.FIXED
    return why_unfit(bench, node, plan) or plan
