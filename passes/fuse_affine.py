"""One multiplication and one addition a channel, as in BatchNormalization, can be done by the layer before.

With ``f = scale / sqrt(var + epsilon)``: weights times f on the output channel axis, bias ``(bias - mean) * f + B``.
Computed in float64 and rounded once, so that the result differs from the original by float noise only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from graphopt import Context, Kind, Model
from graphopt.rewrite import RewritePass, Rule, Workbench
from graphopt.rewrite.operands import is_row

_LINEAR = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class FuseAffine(RewritePass):
    """Fold a BatchNormalization, or an Add, Sub, Mul or Div by one constant a channel, into the layer before it.

    The layer is a Conv, ConvTranspose or Gemm with constant weights whose output nothing else reads.
    """

    name = "fuse-affine"
    kind = Kind.EXACT
    resumes = True

    def rules(self, model: Model, ctx: Context) -> Sequence[Rule]:
        return (
            Rule("batchnorms", ("BatchNormalization",), fold_batchnorm),
            Rule("affines", ("Add", "Sub", "Mul", "Div"), fold_affine),
        )


class _Norm(NamedTuple):
    factor: np.ndarray  # [channels], float64
    mean: np.ndarray
    shift: np.ndarray


def fold_affine(bench: Workbench, node: gs.Node) -> str | None:
    """Fold an Add, Sub, Mul or Div by one constant a channel into the layer before it."""
    if len(node.inputs) != 2:
        return None
    index = 0 if isinstance(node.inputs[1], gs.Variable) and node.op in ("Add", "Mul") else 1
    constant, source = bench.array(node.inputs[index]), node.inputs[1 - index]
    layer = bench.producer(source)
    if constant is None or constant.dtype.kind != "f" or layer is None or layer.op not in _LINEAR:
        return None  # not a candidate: most additions are of two activations
    norm = _affine(node.op, constant, source, layer)
    return norm if isinstance(norm, str) else _fold_into_layer(bench, node, source, norm)


def _affine(op: str, constant: np.ndarray, source: gs.Tensor, layer: gs.Node) -> _Norm | str:
    shape = source.shape
    if shape is None or len(shape) < 2 or not isinstance(shape[1], int | np.integer):
        return f"the number of channels of {source.name!r} is unknown"
    channels = int(shape[1])
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    if len(full) != len(shape) or full != (1, full[1], *(1,) * (len(shape) - 2)) or full[1] not in (1, channels):
        return f"its constant is not one value a channel of {layer.name!r}"
    one, zero = np.ones(channels), np.zeros(channels)
    values = np.broadcast_to(constant.reshape(-1).astype(np.float64), (channels,))
    if op in ("Mul", "Div"):
        if op == "Div" and not values.all():
            return "it divides by zero"
        return _Norm(values if op == "Mul" else one / values, zero, zero)
    return _Norm(one, zero, values if op == "Add" else -values)


def fold_batchnorm(bench: Workbench, node: gs.Node) -> str | None:
    """Fold a BatchNormalization into the Conv, ConvTranspose or Gemm before it, or say why not."""
    if node.attrs.get("training_mode", 0):
        return "it is in training mode"
    if not node.attrs.get("spatial", 1):
        return "it normalizes each position separately (spatial=0)"
    if len(node.outputs) > 1 and any(t.name and (bench.readers(t) or bench.why_bound(t)) for t in node.outputs[1:]):
        return "its running mean or variance outputs are used"
    norm = _read(bench, node)
    if isinstance(norm, str):
        return norm
    return _fold_into_layer(bench, node, node.inputs[0], norm)


def _fold_into_layer(bench: Workbench, node: gs.Node, source: gs.Tensor, norm: _Norm) -> str | None:
    layer = bench.producer(source)
    if layer is None or layer.op not in _LINEAR or not bench.is_standard(layer):
        return f"its input is not written by {', '.join(_LINEAR[:-1])} or {_LINEAR[-1]}"
    reason = bench.why_bound(source)
    if reason:
        return f"{layer.name!r} cannot take it in: {reason}"
    if len(bench.readers(source)) > 1:
        return f"{layer.name!r} cannot take it in: other nodes read its output {source.name!r} as well"
    weight = bench.array(layer.inputs[1])
    has_bias = len(layer.inputs) > 2 and bool(layer.inputs[2].name)
    bias = bench.array(layer.inputs[2]) if has_bias else None
    if weight is None or weight.dtype.kind != "f" or (has_bias and bias is None):
        return f"the weights or the bias of {layer.name!r} are not float constants"
    scale_of = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm}[layer.op]
    with np.errstate(over="ignore"):
        scaled = scale_of(layer, weight, bias, norm)
        if isinstance(scaled, str):
            return scaled
        new_weight, new_bias = scaled[0], scaled[1].astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return f"the folded weights of {layer.name!r} are not finite in {weight.dtype}"
    _write(bench, node, layer, new_weight, new_bias)
    return None


def _read(bench: Workbench, node: gs.Node) -> _Norm | str:
    arrays = [bench.array(t) for t in node.inputs[1:5]]
    wide = [a.astype(np.float64) for a in arrays if a is not None and a.ndim == 1]
    if len(wide) < 4:
        return "its scale, bias, mean or variance is not constant"
    scale, shift, mean, var = wide
    # The attribute is a float32: 1e-5 in the file is not 1e-5 in float64.
    power = var + float(np.float32(node.attrs.get("epsilon", 1e-5)))
    if not (power > 0).all():
        return "its variance plus epsilon is not positive"
    return _Norm(scale / np.sqrt(power), mean, shift)


def _bias(bias: np.ndarray | None, norm: _Norm) -> np.ndarray:
    old = np.zeros(len(norm.mean)) if bias is None else bias.astype(np.float64)
    return (old - norm.mean) * norm.factor + norm.shift


def _times(weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """A product of the shape of the weights in float64, rounded to their type block by block."""
    return np.multiply(weight, factor, out=np.empty(weight.shape, weight.dtype), casting="same_kind")


def _mismatch(layer: gs.Node) -> str:
    return f"the weights of {layer.name!r} do not have its number of channels"


def _conv(
    layer: gs.Node, weight: np.ndarray, bias: np.ndarray | None, norm: _Norm
) -> tuple[np.ndarray, np.ndarray] | str:
    if weight.ndim < 3 or weight.shape[0] != len(norm.factor):
        return _mismatch(layer)
    factor = norm.factor.reshape(-1, *[1] * (weight.ndim - 1))
    return _times(weight, factor), _bias(bias, norm)


def _conv_transpose(
    layer: gs.Node, weight: np.ndarray, bias: np.ndarray | None, norm: _Norm
) -> tuple[np.ndarray, np.ndarray] | str:
    # [in, out/group, ...]: rows of one group of inputs make the outputs of that group.
    group = int(layer.attrs.get("group", 1))
    if weight.ndim < 3 or weight.shape[1] * group != len(norm.factor) or weight.shape[0] % group:
        return _mismatch(layer)
    grouped = weight.reshape(group, -1, *weight.shape[1:])
    factor = norm.factor.reshape(group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    return _times(grouped, factor).reshape(weight.shape), _bias(bias, norm)


def _gemm(
    layer: gs.Node, weight: np.ndarray, bias: np.ndarray | None, norm: _Norm
) -> tuple[np.ndarray, np.ndarray] | str:
    transposed = bool(layer.attrs.get("transB", 0))
    if weight.ndim != 2 or weight.shape[0 if transposed else 1] != len(norm.factor):
        return _mismatch(layer)
    if bias is not None:
        if not is_row(bias, len(norm.factor)):
            return f"the bias of {layer.name!r} differs between rows"
        bias = np.broadcast_to(bias.reshape(-1), norm.factor.shape).astype(np.float64)
        bias = bias * float(np.float32(layer.attrs.get("beta", 1.0)))
    factor = norm.factor[:, None] if transposed else norm.factor
    return _times(weight, factor), _bias(bias, norm)


def _write(bench: Workbench, node: gs.Node, layer: gs.Node, weight: np.ndarray, bias: np.ndarray) -> None:
    bench.put_values(layer, 1, weight, f"{layer.name}_weight")
    bench.put_values(layer, 2, bias, f"{layer.name}_bias")
    layer.attrs.pop("beta", None)
    bench.take_over(layer, node)
