"""Patterns of activations that are straight lines between two bounds: Clip, HardSigmoid, HardSwish."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.rewrite import Any, Const, Match, Op, Rule, Workbench, pattern_rule
from graphopt.rewrite.index import plain_dtype
from graphopt.rewrite.kernels import why_not_written
from graphopt.rewrite.pattern import Either, scaled

_X = Any("x")


def bounds(bench: Workbench, node: gs.Node) -> tuple[float, float] | None:
    """The lowest and highest value of a Clip, infinite where it has no bound; None if they are not constant."""
    found = []
    for index, (name, default) in enumerate((("min", -math.inf), ("max", math.inf)), start=1):
        value: float | None = default
        if bench.model.opset < 11:
            value = float(node.attrs.get(name, default))
        elif len(node.inputs) > index and node.inputs[index].name:
            value = bench.scalar(node.inputs[index])
        if value is None:
            return None
        found.append(float(value))
    return found[0], found[1]


def _close(a: float, b: float, x: gs.Tensor) -> bool:
    """Whether two numbers are equal but for rounding in the type of ``x``."""
    dtype = plain_dtype(x)
    coarse = float(np.finfo(dtype).eps) if dtype is not None and dtype.kind == "f" else 0.0
    return math.isclose(a, b, rel_tol=max(1e-5, coarse))


def _zero_to_six(bench: Workbench, node: gs.Node) -> str | None:
    found = bounds(bench, node)
    if found is not None and found[0] == 0 and _close(found[1], 6, node.inputs[0]):
        return None
    return f"{node.name!r} clips to {_interval(found)}, not to 0 .. 6"


def _interval(found: tuple[float, float] | None) -> str:
    return "bounds that are not constant" if found is None else f"{found[0]:g} .. {found[1]:g}"


# --- HardSwish ------------------------------------------------------------------------------------------------

_UP_TO_SIX = Op("Clip", Op("Add", _X, Const(value=3.0)), where=_zero_to_six)


def _sixth(bench: Workbench, node: gs.Node) -> str | None:
    alpha, beta = (float(node.attrs.get(k, d)) for k, d in (("alpha", 0.2), ("beta", 0.5)))
    if _close(alpha, 1 / 6, node.inputs[0]) and _close(beta, 0.5, node.inputs[0]):
        return None
    return f"{node.name!r} has alpha {alpha:g} and beta {beta:g}, not 1/6 and 0.5"


_HARD_SWISH = Either(
    scaled(Op("Mul", _X, _UP_TO_SIX), 1 / 6),
    Op("Mul", scaled(_X, 1 / 6), _UP_TO_SIX),
    Op("Mul", _X, scaled(_UP_TO_SIX, 1 / 6)),
    Op("Mul", _X, Op("HardSigmoid", _X, name="gate", where=_sixth)),
)


def write_hard_swish(bench: Workbench, node: gs.Node, found: Match) -> str | None:
    """HardSwish, or before opset 14 a HardSigmoid times x."""
    x = found["x"]
    reason = why_not_written(bench, "HardSwish", x)
    if not reason:
        bench.become(node, "HardSwish", [x])
        return None
    if "gate" in found.nodes:  # that is the second best already
        return f"it computes HardSwish, but {reason}"
    second = why_not_written(bench, "HardSigmoid", x)
    if second:
        return f"it computes HardSwish, but {reason}; and {second}"
    gate = bench.emit("HardSigmoid", [x], node, alpha=1 / 6, beta=0.5)
    bench.become(node, "Mul", [x, gate])
    return None


# --- HardSigmoid ----------------------------------------------------------------------------------------------

_SUM = Op("Add", _X, Const("beta", scalar=True))
_LINE = Op(
    "Clip",
    Either(
        Op("Add", Op("Mul", _X, Const("alpha", scalar=True)), Const("beta", scalar=True)),
        Op("Add", Op("Div", _X, Const("divisor", scalar=True)), Const("beta", scalar=True)),
        _SUM,
    ),
)
_CLIPPED_SUM = Op("Clip", _SUM, name="clip")
_RESCALED = Either(
    Op("Mul", _CLIPPED_SUM, Const("alpha", scalar=True)), Op("Div", _CLIPPED_SUM, Const("divisor", scalar=True))
)


_HARD_SIGMOID = Either(_LINE, _RESCALED)


def _slope(bench: Workbench, found: Match) -> float | None:
    """The factor of x, or of the Clip; None for a division by zero."""
    if "alpha" in found.tensors:
        return bench.scalar(found["alpha"])
    if "divisor" not in found.tensors:
        return 1.0
    divisor = bench.scalar(found["divisor"])
    return 1 / divisor if divisor else None


def write_hard_sigmoid(bench: Workbench, node: gs.Node, found: Match) -> str | None:
    """A line clipped to 0 .. 1, or a sum clipped to 0 .. m and divided by m, is a HardSigmoid."""
    slope, shift = _slope(bench, found), bench.scalar(found["beta"])
    if slope is None or shift is None:
        return None
    if "clip" not in found.nodes:
        return _hard_sigmoid(bench, node, found["x"], slope, shift)
    limits = bounds(bench, found.nodes["clip"])
    if limits is None or limits[0] != 0 or limits[1] <= 0 or not _close(limits[1] * slope, 1, found["x"]):
        return f"nearly HardSigmoid: a sum is clipped to {_interval(limits)} and then multiplied by {slope:g}"
    return _hard_sigmoid(bench, node, found["x"], 1 / limits[1], shift / limits[1])


def _hard_sigmoid(bench: Workbench, node: gs.Node, x: gs.Tensor, alpha: float, beta: float) -> str | None:
    reason = why_not_written(bench, "HardSigmoid", x)
    if reason:
        return f"it computes HardSigmoid, but {reason}"
    bench.become(node, "HardSigmoid", [x], alpha=alpha, beta=beta)
    return None


# --- Clip -----------------------------------------------------------------------------------------------------

_RELU = Op("Relu", _X)
_BELOW = Const("high", scalar=True)
_ABOVE = Const("low", scalar=True)
_BOUNDED = Either(
    Op("Min", _RELU, _BELOW, name="relu"),
    Op("Relu", Op("Min", _X, _BELOW), name="relu"),
    Op("Min", Op("Max", _X, _ABOVE), _BELOW),
    Op("Max", Op("Min", _X, _BELOW), _ABOVE),
    Op("Clip", _RELU, name="clip"),
    Op("Relu", Op("Clip", _X, name="clip"), name="relu"),
)


def write_clip(bench: Workbench, node: gs.Node, found: Match) -> str | None:
    """Clip, for Relu together with an upper bound, and for Min and Max with constants."""
    if any(len(n.inputs) != 2 for n in (node, *found.inside) if n.op in ("Min", "Max")):
        return None
    low: float | None = 0.0
    high: float | None = math.inf
    if "clip" in found.nodes:
        limits = bounds(bench, found.nodes["clip"])
        if limits is None:
            return "nearly Clip: its bounds are not constant"
        low, high = max(limits[0], 0.0), limits[1]
    low, high = (
        bench.scalar(found[k]) if k in found.tensors else default for k, default in (("low", low), ("high", high))
    )
    x = found["x"]
    dtype = plain_dtype(x)
    if low is None or high is None or (dtype is not None and dtype.kind != "f"):
        return None
    if not low <= high:
        return f"nearly Clip: its lower bound {low:g} is above its upper one {high:g}"
    by_attribute = bench.model.opset < 11
    reason = why_not_written(bench, "Clip", x, ((2, 4),) if by_attribute else ((2, 4), (), ()))
    if reason or dtype is None:
        return f"it computes Clip, but {reason}"
    given = {"min": low} if math.isinf(high) else {"min": low, "max": high}
    if by_attribute:
        bench.become(node, "Clip", [x], **given)
        return None
    limits_ = [bench.model.constant(f"{node.name}_{k}", np.array(v, dtype)) for k, v in given.items()]
    bench.become(node, "Clip", [x, *limits_])
    return None


_MATCHED = pattern_rule("hardsigmoids", _HARD_SIGMOID, write_hard_sigmoid, "HardSigmoid")


def find_hard_sigmoid(bench: Workbench, node: gs.Node) -> str | None:
    """A Clip of a sum to other bounds than 0 .. 1 is nothing special, and not even nearly a HardSigmoid."""
    return None if node.op == "Clip" and bounds(bench, node) != (0, 1) else _MATCHED.apply(bench, node)


CLIPS: tuple[Rule, ...] = (
    pattern_rule("hardswishes", _HARD_SWISH, write_hard_swish, "HardSwish"),
    replace(_MATCHED, apply=find_hard_sigmoid),
    pattern_rule("clips", _BOUNDED, write_clip, "Clip"),
)
