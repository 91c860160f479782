"""Patterns of smooth activations: Gelu, Mish, Swish."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from graphopt.rewrite import Any, Const, Match, Op, Rule, Workbench, pattern_rule
from graphopt.rewrite.kernels import why_not_written
from graphopt.rewrite.pattern import Either, Pattern, product, scaled

_X = Any("x")


def _times_half(x: Pattern, factor: Pattern) -> Either:
    """``x * factor / 2`` in every order."""
    return Either(
        scaled(Op("Mul", x, factor), 0.5), Op("Mul", scaled(x, 0.5), factor), Op("Mul", x, scaled(factor, 0.5))
    )


def _gelu(inner: Pattern) -> Either:
    """``x / 2 * (1 + inner)``, also with the half inside of the sum."""
    within = Op("Add", scaled(inner, 0.5), Const(value=0.5))
    return Either(_times_half(_X, Op("Add", inner, Const(value=1.0))), Op("Mul", _X, within))


def _tanh_inner() -> Either:
    """``sqrt(2 / pi) * (x + 0.044715 * x ** 3)`` in the ways in which it is written."""
    root, small = math.sqrt(2 / math.pi), 0.044715
    square = Either(Op("Pow", _X, Const(value=2.0)), Op("Mul", _X, _X))
    cube = Either(Op("Pow", _X, Const(value=3.0)), Op("Mul", square, _X))
    cubic = Either(
        scaled(cube, small), Op("Mul", Op("Mul", scaled(_X, small), _X), _X), Op("Mul", scaled(_X, small), square)
    )
    one_more = Op("Add", Either(scaled(square, small), Op("Mul", scaled(_X, small), _X)), Const(value=1.0))
    return Either(scaled(Op("Add", _X, cubic), root), product(_X, Const(value=root), one_more))


_GELU = Either(_gelu(Op("Erf", scaled(_X, math.sqrt(0.5)))), _gelu(Op("Tanh", _tanh_inner(), name="tanh")))
_LOG_FORM = Op("Log", Op("Add", Op("Exp", _X), Const(value=1.0)))
_MISH = Op("Mul", _X, Op("Tanh", Either(Op("Softplus", _X), _LOG_FORM)))
_SWISH = Op("Mul", _X, Op("Sigmoid", Either(_X, Op("Mul", _X, Const("alpha", scalar=True)))))


def write_gelu(bench: Workbench, node: gs.Node, found: Match) -> str | None:
    """Gelu, in its exact form or in the one approximated by Tanh."""
    if "tanh" in found.nodes:
        return _become(bench, node, "Gelu", found["x"], {"approximate": "tanh"})
    return _become(bench, node, "Gelu", found["x"], {})


def write_mish(bench: Workbench, node: gs.Node, found: Match) -> str | None:
    """Mish. Where Exp overflows, Log gives infinity and Tanh 1, as Mish does; Softplus alone would differ there."""
    return _become(bench, node, "Mish", found["x"], {})


def write_swish(bench: Workbench, node: gs.Node, found: Match) -> str | None:
    """Swish, also with a factor of x inside of the Sigmoid, as in ``x * Sigmoid(1.702 * x)``."""
    alpha = bench.scalar(found["alpha"]) if "alpha" in found.tensors else None
    return _become(bench, node, "Swish", found["x"], {} if alpha is None else {"alpha": float(alpha)})


def _become(bench: Workbench, node: gs.Node, op: str, x: gs.Tensor, attrs: dict[str, str | float]) -> str | None:
    # Numbers make no difference to whether there is a kernel, and each would be tried anew.
    words = {k: v for k, v in attrs.items() if isinstance(v, str)}
    reason = why_not_written(bench, op, x, **words)
    if reason:
        return f"it computes {op}, but {reason}"
    bench.become(node, op, [x], **attrs)
    return None


ACTIVATIONS: tuple[Rule, ...] = (
    pattern_rule("gelus", _GELU, write_gelu, "Gelu"),
    pattern_rule("mishes", _MISH, write_mish, "Mish"),
    pattern_rule("swishes", _SWISH, write_swish, "Swish"),
)
