"""Arithmetic, comparison and logic, element by element, with numpy's broadcasting."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import torch

from graphopt.training.ops.table import NodeInfo, Run, Unsupported, operator, simple

_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
_INTEGERS: dict[int, torch.dtype] = {
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}

_FUNCTIONS: dict[str, Run] = {
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Reciprocal": torch.reciprocal,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Not": torch.logical_not,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Where": torch.where,
    "IsNaN": torch.isnan,
}
for _name, _function in _FUNCTIONS.items():
    simple(_name, _function)


@operator("Identity")
def _identity(info: NodeInfo) -> Run:
    return lambda x: x


@operator("Div")
def _div(info: NodeInfo) -> Run:
    def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")

    return run


@operator("Pow")
def _pow(info: NodeInfo) -> Run:
    def run(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        # A constant exponent as a number: its gradient would be NaN at negative bases.
        exponent: Any = b.item() if b.numel() == 1 and not b.requires_grad and b.dim() <= a.dim() else b
        return torch.pow(a, exponent).to(a.dtype)

    return run


@operator("Mod")
def _mod(info: NodeInfo) -> Run:
    return torch.fmod if info.attr("fmod", 0) else torch.remainder


def _fold(function: Run) -> Run:
    return lambda *xs: functools.reduce(function, xs)


@operator("Sum")
def _sum(info: NodeInfo) -> Run:
    return _fold(torch.add)


@operator("Mean")
def _mean(info: NodeInfo) -> Run:
    return lambda *xs: functools.reduce(torch.add, xs) / len(xs)


@operator("Max")
def _max(info: NodeInfo) -> Run:
    return _fold(torch.maximum)


@operator("Min")
def _min(info: NodeInfo) -> Run:
    return _fold(torch.minimum)


@operator("Clip")
def _clip(info: NodeInfo) -> Run:
    bounds = info.attr("min"), info.attr("max")

    def run(x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None) -> torch.Tensor:
        least = low.item() if low is not None else bounds[0]
        most = high.item() if high is not None else bounds[1]
        if least is not None and most is not None and least > most:
            return torch.full_like(x, most)  # what the standard says of bounds that cross
        return x if least is None and most is None else torch.clamp(x, least, most)

    return run


@operator("Cast")
def _cast(info: NodeInfo) -> Run:
    kind = info.attr("to")
    # graphsurgeon reads the attribute as a numpy type where it knows one
    code = kind if isinstance(kind, int) else int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    if code in _FLOATS:  # the executor computes in one float type
        return lambda x: x.to(info.dtype)
    if code not in _INTEGERS:
        raise Unsupported(f"casts to type {onnx.TensorProto.DataType.Name(code)}")
    wanted = _INTEGERS[code]
    return lambda x: x.to(wanted)


@operator("CastLike")
def _cast_like(info: NodeInfo) -> Run:
    return lambda x, like: x.to(like.dtype)


@operator("Dropout")
def _dropout(info: NodeInfo) -> Run:
    # As in inference: the exported network is what is trained, and a classifier's file rarely keeps its Dropout.
    def run(x: torch.Tensor, ratio: Any = None, training: torch.Tensor | None = None) -> Any:
        if training is not None and bool(training):
            raise Unsupported("Dropout in training mode")
        return (x, torch.ones_like(x, dtype=torch.bool)) if info.outputs > 1 else x

    return run
