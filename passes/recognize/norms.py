"""Patterns of normalisations: LayerNormalization, RMSNormalization, and the scale and bias after them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.rewrite import Any, Const, Match, Op, Rule, Workbench, pattern_rule
from graphopt.rewrite.index import plain_dtype
from graphopt.rewrite.kernels import why_not_written
from graphopt.rewrite.operands import reduced_axes
from graphopt.rewrite.pattern import Either, Pattern
from graphopt.rewrite.shapes import known

_X = Any("x")
_NORMS = ("LayerNormalization", "RMSNormalization")


def _square(x: Pattern) -> Either:
    return Either(Op("Pow", x, Const(value=2.0)), Op("Mul", x, x))


def _divided(x: Pattern) -> Either:
    """``x / sqrt(mean(x ** 2) + epsilon)`` in the ways in which it is written."""
    power = Op("Add", Op("ReduceMean", _square(x)), Const("epsilon", scalar=True))
    root = Either(Op("Sqrt", power), Op("Pow", power, Const(value=0.5)))
    inverse = Either(Op("Reciprocal", root), Op("Div", Const(value=1.0), root), Op("Pow", power, Const(value=-0.5)))
    return Either(Op("Div", x, root), Op("Mul", x, inverse))


def write_layer_norm(bench: Workbench, node: gs.Node, found: Match) -> str | None:
    """LayerNormalization, with a scale of ones, which the multiplication after it replaces."""
    return _write(bench, node, found, "LayerNormalization")


def write_rms_norm(bench: Workbench, node: gs.Node, found: Match) -> str | None:
    """RMSNormalization, with a scale of ones, which the multiplication after it replaces."""
    return _write(bench, node, found, "RMSNormalization")


def _write(bench: Workbench, node: gs.Node, found: Match, op: str) -> str | None:
    x, epsilon = found["x"], bench.scalar(found["epsilon"])
    size = _normalised(bench, found, x)
    if isinstance(size, str):
        return f"nearly {op}: {size}"
    if epsilon is None or epsilon < 0:
        return f"nearly {op}: its epsilon {epsilon} is negative"
    reason = why_not_written(bench, op, x, ((2, 4), (4,)))
    dtype = plain_dtype(x)
    if reason or dtype is None:
        return f"it computes {op}, but {reason}"
    if dtype.itemsize > 4:
        return f"it computes {op}, but in {dtype}, and {op} computes in float32"
    ones = bench.model.constant(f"{node.name}_scale", np.ones(size, dtype))
    bench.become(node, op, [x, ones], axis=-len(size), epsilon=float(epsilon))
    return None


def _normalised(bench: Workbench, found: Match, x: gs.Tensor) -> tuple[int, ...] | str:
    """Sizes of the last axes, over which all means of a match go; or why they are none such."""
    if x.shape is None:
        return f"the rank of {x.name!r} is unknown"
    rank, over = len(x.shape), []
    for mean in (n for n in found.inside if n.op == "ReduceMean"):
        axes = reduced_axes(bench, mean, rank)
        if isinstance(axes, str):
            return axes
        if not mean.attrs.get("keepdims", 1):
            return f"{mean.name!r} drops the axes that it reduces"
        over.append(axes)
    if any(axes != over[0] for axes in over):
        return f"its means go over different axes: {over}"
    count = len(over[0])
    if not count or over[0] != list(range(rank - count, rank)):
        return f"its means go over axes {over[0]} of {rank}, and the operator normalises the last ones"
    size = list(x.shape)[rank - count :]
    if not all(known(d) for d in size):
        return f"the size {size} of the normalised axes is unknown"
    return tuple(int(d) for d in size)


def absorb_affine(bench: Workbench, node: gs.Node) -> str | None:
    """Let a normalisation do the Mul or Add by a constant after it: as its scale, or as its bias."""
    if node.op not in ("Mul", "Add") or len(node.inputs) != 2:
        return None
    for index in (0, 1):
        norm = bench.standard_producer(node.inputs[1 - index], *_NORMS)
        constant = bench.array(node.inputs[index])
        if norm is None or constant is None or norm.outputs[0].name != node.inputs[1 - index].name:
            continue
        if norm.op == "RMSNormalization" and node.op == "Add":
            return None  # it has no bias
        reason = _absorb(bench, node, norm, constant)
        return reason and f"{norm.name!r} cannot take it in: {reason}"
    return None


def _absorb(bench: Workbench, node: gs.Node, norm: gs.Node, constant: np.ndarray) -> str | None:
    reason = bench.why_shared(norm.outputs[0])
    if reason:
        return reason
    shape = norm.inputs[0].shape
    if shape is None:
        return f"the rank of {norm.inputs[0].name!r} is unknown"
    axis = int(norm.attrs.get("axis", -1)) % len(shape)
    size = list(shape)[axis:]
    if not all(known(d) for d in size):
        return f"the size {size} of the normalised axes is unknown"
    fitted = _fit(constant, tuple(int(d) for d in size), len(shape))
    if fitted is None:
        return f"its constant {list(constant.shape)} does not fit the normalised axes {size}"
    has_bias = len(norm.inputs) > 2 and bool(norm.inputs[2].name)
    old = [bench.array(t) for t in norm.inputs[1 : 3 if has_bias else 2]]
    # An Add has no use for the scale, so that need not be constant.
    if any(a is None for a in (old if node.op == "Mul" else old[1:])):
        return "its scale or bias is not constant"
    wide: list[np.ndarray | None] = [None if a is None else a.astype(np.float64) for a in old]
    if node.op == "Mul":
        new = {k: a * fitted for k, a in enumerate(wide, start=1) if a is not None}
    else:
        bias = wide[1] if has_bias else None
        new = {2: fitted if bias is None else bias + fitted}
    with np.errstate(over="ignore"):
        rounded = {k: array.astype(constant.dtype) for k, array in new.items()}
    if not all(np.isfinite(array).all() for array in rounded.values()):
        return f"its scale or bias would not be finite in {constant.dtype}"
    for k, array in rounded.items():
        bench.put_values(norm, k, array, f"{norm.name}_{'scale' if k == 1 else 'bias'}")
    bench.take_over(norm, node)
    return None


def _fit(constant: np.ndarray, size: tuple[int, ...], rank: int) -> np.ndarray | None:
    """A constant as one value for each element of the normalised axes, in float64; None if it varies over others."""
    extra = max(constant.ndim - len(size), 0)
    if constant.ndim > rank or any(d != 1 for d in constant.shape[:extra]):
        return None
    inner = constant.reshape(constant.shape[extra:])
    own = (1,) * (len(size) - inner.ndim) + inner.shape
    if any(a not in (1, b) for a, b in zip(own, size, strict=True)):
        return None
    return np.broadcast_to(inner, size).astype(np.float64)


NORMS: tuple[Rule, ...] = (
    pattern_rule("layernorms", _divided(Op("Sub", _X, Op("ReduceMean", _X))), write_layer_norm, "LayerNormalization"),
    pattern_rule("rmsnorms", _divided(_X), write_rms_norm, "RMSNormalization"),
    Rule("norm_affines", ("Mul", "Add"), absorb_affine),
)
