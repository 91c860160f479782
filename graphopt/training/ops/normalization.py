"""Normalizations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from graphopt.training.ops.table import NodeInfo, Run, Unsupported, operator


@operator("BatchNormalization")
def _batch(info: NodeInfo) -> Run:
    """With the statistics that it is given; the executor runs live ones itself."""
    if info.attr("training_mode", 0) or info.outputs > 1:
        raise Unsupported("BatchNormalization in training mode, which has outputs of its own")
    epsilon = info.attr("epsilon", 1e-5)

    def run(x: torch.Tensor, scale: Any, bias: Any, mean: Any, var: Any) -> torch.Tensor:
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)

    return run


@operator("LayerNormalization")
def _layer(info: NodeInfo) -> Run:
    if info.outputs > 1:
        raise Unsupported("LayerNormalization that also gives its statistics")
    epsilon, axis = info.attr("epsilon", 1e-5), info.attr("axis", -1)

    def run(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        shape = x.shape[axis % x.dim() :]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return F.layer_norm(x, shape, scale, bias, epsilon)
        y = F.layer_norm(x, shape, None, None, epsilon) * scale
        return y if bias is None else y + bias

    return run


@operator("RMSNormalization")
def _rms(info: NodeInfo) -> Run:
    epsilon, axis = info.attr("epsilon", 1e-5), info.attr("axis", -1)

    def run(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        axes = list(range(axis % x.dim(), x.dim()))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale

    return run


@operator("InstanceNormalization")
def _instance(info: NodeInfo) -> Run:
    epsilon = info.attr("epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


@operator("GroupNormalization")
def _group(info: NodeInfo) -> Run:
    epsilon, groups = info.attr("epsilon", 1e-5), info.attr("num_groups")

    def run(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if scale.numel() != x.shape[1]:  # before opset 21 there is one a group
            scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
        return F.group_norm(x, groups, scale, bias, epsilon)

    return run


@operator("LRN")
def _lrn(info: NodeInfo) -> Run:
    size, alpha = info.attr("size"), info.attr("alpha", 1e-4)
    beta, bias = info.attr("beta", 0.75), info.attr("bias", 1.0)

    def run(x: torch.Tensor) -> torch.Tensor:
        before = (size - 1) // 2
        squares = F.pad(x.square(), [0, 0] * (x.dim() - 2) + [before, size - 1 - before])
        return x / (bias + alpha / size * squares.unfold(1, size, 1).sum(-1)).pow(beta)

    return run


@operator("LpNormalization")
def _lp(info: NodeInfo) -> Run:
    axis, p = info.attr("axis", -1), info.attr("p", 2)

    def run(x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
        return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))

    return run


@operator("MeanVarianceNormalization")
def _mean_variance(info: NodeInfo) -> Run:
    axes = info.attr("axes", [0, 2, 3])

    def run(x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return run
