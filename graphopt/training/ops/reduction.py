"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from graphopt.training.ops.table import NodeInfo, Run, operator

Reduce = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _prod(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(find: Callable[..., torch.Tensor], none: float) -> Reduce:
    def run(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
        if all(x.shape[a] for a in axes):
            return find(x, axes, keepdim=keep)
        return x.sum(axes, keepdim=keep) + none  # of no elements

    return run


def _l2(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.linalg.vector_norm(x, 2, axes, keepdim=keep)


_REDUCTIONS: dict[str, Reduce] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMax": _extreme(torch.amax, float("-inf")),
    "ReduceMin": _extreme(torch.amin, float("inf")),
    "ReduceProd": _prod,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": _l2,
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
}


@operator(*_REDUCTIONS)
def _reduce(info: NodeInfo) -> Run:
    function = _REDUCTIONS[info.node.op]
    keep, nothing = bool(info.attr("keepdims", 1)), bool(info.attr("noop_with_empty_axes", 0))

    def run(x: torch.Tensor, given: torch.Tensor | None = None) -> torch.Tensor:
        axes = info.ints("axes", given)
        if not axes:
            if nothing:  # what is done to each element is done all the same
                return function(x.unsqueeze(0), [0], False)
            axes = list(range(x.dim()))
        return function(x, axes, keep) if axes else function(x.unsqueeze(0), [0], False)

    return run


@operator("ArgMax", "ArgMin")
def _arg(info: NodeInfo) -> Run:
    find = torch.argmax if info.node.op == "ArgMax" else torch.argmin
    axis, keep, last = info.attr("axis", 0), bool(info.attr("keepdims", 1)), info.attr("select_last_index", 0)

    def run(x: torch.Tensor) -> torch.Tensor:
        if not last:
            return find(x, axis, keepdim=keep)
        return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)

    return run


@operator("CumSum")
def _cumsum(info: NodeInfo) -> Run:
    exclusive, reverse = info.attr("exclusive", 0), info.attr("reverse", 0)

    def run(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        axis = int(at)
        y = x.flip(axis) if reverse else x
        total = y.cumsum(axis)
        total = total - y if exclusive else total
        return total.flip(axis) if reverse else total

    return run
