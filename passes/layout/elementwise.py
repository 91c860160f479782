"""Operators that treat every element alike, and matrix products, which take a reordered axis into their weights."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from graphopt.passes.layout.forms import Axes, Block, Form, rank_of
from graphopt.passes.layout.plan import Anchor, Plan, attribute, axis_of, plain
from graphopt.passes.layout.structure import FIXED
from graphopt.rewrite import Workbench
from graphopt.rewrite.shapes import known, static

# What follows their first input says how, for all elements alike.
_FIRST = frozenset("Clip Cast CastLike Dropout DynamicQuantizeLinear".split())
_UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh Dropout
    DynamicQuantizeLinear Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh ThresholdedRelu"""
_BROADCAST = """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max
    Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor"""
ELEMENTWISE = tuple((_UNARY + " " + _BROADCAST).split())


def elementwise(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Operators on single elements, with operands that broadcast."""
    form = anchor.form
    plan = plain(node, form, form)
    if node.op == "DynamicQuantizeLinear":
        plan.outs[1:] = [None, None]
    for index, tensor in enumerate(node.inputs):
        if index and node.op in _FIRST:
            continue
        operand = _operand(tensor, form)
        if isinstance(operand, str):
            return operand
        plan.ins[index] = operand
    return plan


def _operand(tensor: gs.Tensor, form: Form) -> Form | str | None:
    """The form of a broadcasting operand beside tensors of ``form``: None where it is the same in any."""
    if not tensor.name:
        return None
    rank, sizes = rank_of(tensor), static(tensor)
    if rank is None:
        return f"the rank of {tensor.name!r} is unknown"
    if rank == 0 or (sizes is not None and math.prod(sizes) == 1 and (rank < form.rank or _is_constant(tensor))):
        return None
    if isinstance(form, Block):
        axis = form.axis - (form.rank - rank)
        dim = tensor.shape[axis] if axis >= 0 else 1
        if known(dim) and dim == 1:
            return None
        if not known(dim) or dim != form.size:
            return f"the size of {tensor.name!r} is unknown"
    if not _is_constant(tensor) and rank != form.rank:
        return f"{tensor.name!r} broadcasts from a lower rank"
    return form


def _is_constant(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant)


def quantize(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """QuantizeLinear and DequantizeLinear, by tensor or by channel."""
    form = anchor.form
    if node.attrs.get("block_size", 0) or (anchor.is_input and anchor.index):
        return FIXED
    scale_rank = rank_of(node.inputs[1])
    if scale_rank is None or scale_rank > 1:
        return f"the rank of {node.inputs[1].name!r} is unknown" if scale_rank is None else FIXED
    plan = plain(node, form, form)
    if scale_rank == 0 or static(node.inputs[1]) == (1,) or bench.model.opset < 13:
        return plan
    axis = axis_of(node, 1, form.rank)
    if isinstance(form, Axes):
        plan.change = attribute("axis", form.place(axis))
    elif axis == form.axis:
        plan.ins[1:] = [form.at(1, 0) if t.name else None for t in node.inputs[1:]]
    return plan


def matmul(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """MatMul, of which batch axes may move, and whose weights take in a reordered last axis."""
    ranks = [rank_of(t) for t in node.inputs]
    if None in ranks:
        return f"the rank of {node.inputs[ranks.index(None)].name!r} is unknown"
    a, b = (r or 0 for r in ranks)
    form = anchor.form
    if isinstance(form, Block):
        return _product(node, anchor, form, a, b, rows=0)
    if a == form.rank and b == 2 and a > 2 and not (anchor.is_input and anchor.index):
        return plain(node, form, form) if form.perm[-1] == a - 1 else "it multiplies the last axis"
    if a == b == form.rank:
        if form.perm[-2:] != (a - 2, a - 1):
            return "it multiplies the last two axes"
        return Plan([form, form], [form])
    return FIXED


def gemm(bench: Workbench, node: gs.Node, anchor: Anchor) -> Plan | str:
    """Gemm, whose weights take in a reordered axis."""
    if not isinstance(anchor.form, Block) or node.attrs.get("transA", 0):
        return FIXED
    return _product(node, anchor, anchor.form, 2, 2, rows=1 if node.attrs.get("transB", 0) else 0)


def _product(node: gs.Node, anchor: Anchor, form: Block, a: int, b: int, rows: int) -> Plan | str:
    """A product of rank ``a`` with weights of two axes, one reordered: that of rows, or that of columns."""
    if b != 2 or a < 2:
        return FIXED
    if anchor.is_input and anchor.index == 0:
        inner = form.axis == a - 1
    elif anchor.is_input and anchor.index == 1:
        inner = form.axis == rows
    else:
        inner = False
        if form.axis != form.rank - 1:
            return FIXED
    if inner:
        return Plan([form.at(a, a - 1), form.at(2, rows), *[None] * (len(node.inputs) - 2)], [None])
    if anchor.is_input and anchor.index == 0:
        return FIXED
    out = form.at(a, a - 1)
    ins: list[Form | None] = [None, form.at(2, 1 - rows)]
    for tensor in node.inputs[2:]:
        bias = _operand(tensor, out)
        if isinstance(bias, str):
            return bias
        ins.append(bias)
    return Plan(ins, [out])
