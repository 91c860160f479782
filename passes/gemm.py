"""Matrix products with an addition or a Transpose, as Gemm, which does all three."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.rewrite import RewritePass, Rule, Workbench
from graphopt.rewrite.kernels import why_not_written
from graphopt.rewrite.shapes import known, same

_TRANSPOSED = {0: "transA", 1: "transB"}


@dataclass(frozen=True)
class MakeGemm(RewritePass):
    """Make a Gemm of a MatMul of two matrices and the addition of a constant, and let a Gemm do the addition after it
    and the Transposes before it.

    A MatMul whose inputs are not for sure matrices (rank 2) stays as it is: Gemm takes nothing else.
    """

    name = "gemm"
    kind = Kind.EXACT
    resumes = True
    requires = ("fold",)  # a bias must be an initializer

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (
            Rule("biases", ("Add", "Sub"), add_bias),
            Rule("transposes", ("Gemm",), absorb_transposes),
        )


def add_bias(bench: Workbench, node: gs.Node) -> str | None:
    """Make the Add or Sub of a constant after a MatMul or Gemm its bias."""
    for index in (1, 0) if node.op == "Add" else (1,):
        source = node.inputs[1 - index]
        constant = bench.array(node.inputs[index])
        product = bench.standard_producer(source, "MatMul", "Gemm")
        if product is None or constant is None or constant.dtype.kind != "f":
            continue
        reason = bench.why_shared(source)
        if not reason and product.op == "MatMul":
            reason = _why_no_gemm(bench, product)
        if reason:
            return f"{product.name!r} cannot take it in: {reason}"
        return _add(bench, node, product, node.inputs[index], constant)
    return None


def _why_no_gemm(bench: Workbench, product: gs.Node) -> str:
    """Why a MatMul cannot be a Gemm, in words; empty if it can."""
    for tensor in product.inputs:
        if tensor.shape is None or len(tensor.shape) != 2:
            rank = "unknown" if tensor.shape is None else len(tensor.shape)
            return f"Gemm takes matrices, and the rank of {tensor.name!r} is {rank}"
    return why_not_written(bench, "Gemm", product.inputs[0], ((2, 4), (4, 3), (3,))) or ""


def _size(product: gs.Node) -> list[object]:
    """Rows and columns of a product of matrices, None where unknown."""
    size: list[object] = []
    for k, tensor in enumerate(product.inputs[:2]):
        transposed = product.op == "Gemm" and bool(product.attrs.get(_TRANSPOSED[k], 0))
        shape = tensor.shape
        size.append(None if shape is None or len(shape) != 2 else shape[k ^ transposed])
    return size


def _add(bench: Workbench, node: gs.Node, product: gs.Node, tensor: gs.Tensor, constant: np.ndarray) -> str | None:
    rows, columns = _size(product)
    wide = (1,) * (2 - constant.ndim) + constant.shape
    if len(wide) != 2 or any(a != 1 and not same(a, b) for a, b in zip(wide, (rows, columns), strict=True)):
        return (
            f"{product.name!r} cannot take it in: the constant {list(constant.shape)} may broadcast the product "
            f"[{rows}, {columns}] to another shape"
        )
    signed = -constant if node.op == "Sub" else constant
    old = product.inputs[2] if len(product.inputs) > 2 and product.inputs[2].name else None
    if old is not None:
        bias = bench.array(old)
        if bias is None:
            return f"the bias of {product.name!r} is not constant"
        beta = float(np.float32(product.attrs.get("beta", 1.0)))
        with np.errstate(over="ignore"):
            signed = (bias.astype(np.float64) * beta + signed).astype(constant.dtype)
        if not np.isfinite(signed).all():
            return f"the bias of {product.name!r} would not be finite in {constant.dtype}"
    vector = _vector(signed, columns)
    kept = vector.shape == constant.shape and (vector == constant).all()
    new = tensor if kept else bench.model.constant(f"{node.name}_bias", vector)
    if product.op == "MatMul":
        # The Add stands after both inputs and the MatMul, and its output keeps its name.
        bench.become(node, "Gemm", [*product.inputs, new])
        return None
    bench.put_input(product, 2, new)
    product.attrs.pop("beta", None)
    bench.take_over(product, node)
    return None


def _vector(bias: np.ndarray, columns: object) -> np.ndarray:
    """A bias that is the same in each row as a vector [columns], as layers are usually written."""
    if (bias.ndim > 1 and bias.shape[0] != 1) or not known(columns):
        return bias
    return np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (int(columns),)))  # type: ignore[call-overload]


def absorb_transposes(bench: Workbench, node: gs.Node) -> str | None:
    """Let a Gemm read a matrix as it was before a Transpose."""
    for index, attribute in _TRANSPOSED.items():
        before = bench.standard_producer(node.inputs[index], "Transpose")
        if before is None or list(before.attrs.get("perm", (1, 0))) != [1, 0]:
            continue  # what Gemm reads has rank 2, so there are but two orders
        node.attrs[attribute] = 1 - int(node.attrs.get(attribute, 0))
        bench.set_input(node, index, before.inputs[0])
    return None
