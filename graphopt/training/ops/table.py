"""The table itself, and what a builder of an operator is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs
import torch

Run = Callable[..., Any]
Builder = Callable[["NodeInfo"], Run]
OPERATORS: dict[str, Builder] = {}


class Unsupported(Exception):
    """An operator, or a form of one, that the executor cannot run; the text says which."""


@dataclass(frozen=True)
class NodeInfo:
    """A node as a builder sees it: attributes, opset, and how many inputs and outputs are there.

    A builder reads these once and returns a function of the input tensors (None for an omitted one), which returns the
    output tensor, or a tuple of them. Integer tensors that steer an operator (shapes, axes) live in main memory on
    every device.
    """

    node: gs.Node
    opset: int
    dtype: torch.dtype = torch.float32  # of all floats

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.node.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    @property
    def outputs(self) -> int:
        return len(self.node.outputs)

    def ints(self, name: str, given: torch.Tensor | None) -> list[int] | None:
        """Integers that are an attribute in old opsets and an input in later ones."""
        if given is not None:
            return [int(v) for v in given.reshape(-1).tolist()]
        value = self.attr(name)
        return None if value is None else [int(v) for v in value]


def operator(*names: str) -> Callable[[Builder], Builder]:
    """Register a builder."""

    def register(builder: Builder) -> Builder:
        for name in names:
            OPERATORS[name] = builder
        return builder

    return register


def simple(name: str, function: Run) -> None:
    """Register an operator without attributes."""
    OPERATORS[name] = lambda info: function


def spatial_pads(
    info: NodeInfo, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """(before, after) of each spatial axis, with ``auto_pad`` resolved for an input of ``size``."""
    mode = info.attr("auto_pad", "NOTSET")
    rank = len(kernel)
    if mode in ("NOTSET", "VALID"):
        pads = list(info.attr("pads") or [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
        return [(pads[i], pads[i + rank]) for i in range(rank)]
    found = []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        small = total // 2
        found.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return found


def flat_pads(pads: Sequence[tuple[int, int]]) -> list[int]:
    """As torch.nn.functional.pad takes them: last axis first."""
    return [v for before, after in reversed(pads) for v in (before, after)]
