"""Activation functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from graphopt.training.ops.table import NodeInfo, Run, operator, simple

for _name, _function in {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softsign": F.softsign,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
}.items():
    simple(_name, _function)


@operator("Softplus")
def _softplus(info: NodeInfo) -> Run:
    return lambda x: F.softplus(x, threshold=80)


@operator("LeakyRelu")
def _leaky(info: NodeInfo) -> Run:
    slope = info.attr("alpha", 0.01)
    return lambda x: F.leaky_relu(x, slope)


@operator("PRelu")
def _prelu(info: NodeInfo) -> Run:
    return lambda x, slope: torch.where(x < 0, x * slope, x)


@operator("Elu")
def _elu(info: NodeInfo) -> Run:
    alpha = info.attr("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@operator("Selu")
def _selu(info: NodeInfo) -> Run:
    alpha, gamma = info.attr("alpha", 1.67326319217681884765625), info.attr("gamma", 1.05070102214813232421875)
    return lambda x: gamma * F.elu(x, alpha)


@operator("Celu")
def _celu(info: NodeInfo) -> Run:
    alpha = info.attr("alpha", 1.0)
    return lambda x: F.celu(x, alpha)


@operator("ThresholdedRelu")
def _thresholded(info: NodeInfo) -> Run:
    alpha = info.attr("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


@operator("Shrink")
def _shrink(info: NodeInfo) -> Run:
    bias, bound = info.attr("bias", 0.0), info.attr("lambd", 0.5)

    def run(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))

    return run


@operator("HardSigmoid")
def _hard_sigmoid(info: NodeInfo) -> Run:
    alpha, beta = info.attr("alpha", 0.2), info.attr("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


@operator("Gelu")
def _gelu(info: NodeInfo) -> Run:
    kind = "tanh" if info.attr("approximate", "none") == "tanh" else "none"
    return lambda x: F.gelu(x, approximate=kind)


@operator("Swish")
def _swish(info: NodeInfo) -> Run:
    alpha = info.attr("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


@operator("Softmax", "LogSoftmax")
def _softmax(info: NodeInfo) -> Run:
    function = torch.softmax if info.node.op == "Softmax" else torch.log_softmax
    if info.opset >= 13:
        axis = info.attr("axis", -1)
        return lambda x: function(x, axis)
    first = info.attr("axis", 1)

    def run(x: torch.Tensor) -> torch.Tensor:
        # Before opset 13 all axes from ``axis`` on are one.
        start = first % x.dim() if x.dim() else 0
        return function(x.flatten(start), start).reshape(x.shape)

    return run
