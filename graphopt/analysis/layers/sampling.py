"""Layers as linear problems: rows of inputs and outputs at sampled positions, and the weight as a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.layers.quantized import dequantizer, is_quantized, replace, representable, shape_of, values_of
from graphopt.ir import Model
from graphopt.ir.view import is_standard

_WIDEST = 3072  # inputs of one output: the moments take their square
_TILE = 2
_TOO_WIDE = f"more than {_WIDEST} inputs enter one of its outputs"


class Sampler(ABC):
    """One kind of layer. Rows are the same positions of inputs and outputs when the generators are alike."""

    channel_axis: int

    @abstractmethod
    def inputs(self, node: gs.Node, x: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        """Rows [rows, groups, inputs] that the layer's outputs are linear in."""

    @abstractmethod
    def outputs(self, y: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        """Rows [rows, channels] of its output."""

    @abstractmethod
    def read(self, node: gs.Node) -> tuple[np.ndarray, np.ndarray]:
        """Weight [groups, inputs, outputs] and bias [groups, outputs], in double precision."""

    @abstractmethod
    def write(self, model: Model, node: gs.Node, weight: np.ndarray, bias: np.ndarray) -> None:
        """Put a refitted weight and bias back."""

    def can_bias(self, node: gs.Node) -> bool:
        """Whether there is a bias to fit, or one can be added: that of a layer on integers has a scale to be found."""
        return len(node.inputs) > 2 or not is_quantized(node)

    @abstractmethod
    def stored(self, node: gs.Node, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What ``write`` keeps of a weight and bias: quantized parameters are rounded."""


def sampler_of(node: gs.Node) -> Sampler | None:
    """How to refit a node; None for a node that cannot be."""
    found = _sampler(node)
    return None if isinstance(found, str) else found


def obstacle(node: gs.Node) -> str:
    """Why a node cannot be refitted, in words; empty if it can."""
    found = _sampler(node)
    return found if isinstance(found, str) else ""


def _sampler(node: gs.Node) -> Sampler | str:
    if not is_standard(node) or len(node.inputs) < 2:
        return "it is no layer with a weight"
    weight = node.inputs[1]
    real = isinstance(weight, gs.Constant) and weight.dtype == np.float32
    if not real and dequantizer(weight) is None:
        return "its weight is no constant of float32, and none of integers that one DequantizeLinear makes real"
    if len(weight.outputs) != 1:
        return "its weight is read elsewhere as well"
    if len(node.inputs) > 2 and not isinstance(node.inputs[2], gs.Constant) and dequantizer(node.inputs[2]) is None:
        return "its bias is not constant"
    shape = shape_of(weight)
    if node.op == "Conv":
        if len(shape) != 4 or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
            return "it does not work on height and width with explicit pads"
        shared = int(np.prod(shape[2:])) > 1 and int(node.attrs.get("group", 1)) == 1
        return ConvSampler(_TILE if shared else 1) if int(np.prod(shape[1:])) <= _WIDEST else _TOO_WIDE
    if node.op == "Gemm":
        if node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0 or node.attrs.get("transA", 0):
            return "it scales or transposes what it multiplies"
        if len(node.inputs) > 2 and len(shape_of(node.inputs[2])) != 1:
            return "its bias is not one number a channel"
        return DenseSampler(bool(node.attrs.get("transB", 0))) if max(shape) <= _WIDEST else _TOO_WIDE
    if node.op == "MatMul" and len(shape) == 2:
        return DenseSampler(False) if max(shape) <= _WIDEST else _TOO_WIDE
    return f"least squares are not set up for this {node.op}"


class ConvSampler(Sampler):
    """Two-dimensional convolutions of any grouping: rows are patches.

    ``tile``: places are drawn as squares of this side, where there are enough: neighbours read much of the same.
    """

    channel_axis = 1

    def __init__(self, tile: int = 1) -> None:
        self.tile = tile

    def places(self, size: tuple[int, int], rng: np.random.Generator, per_image: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of some places of an output of such a size, alike for all images of a batch."""
        tile = self.tile if per_image >= self.tile**2 else 1
        top, left = rng.integers(tile, size=2)
        row, column = (a.ravel() for a in np.indices(size))
        across = (size[1] + 2 * tile - 2) // tile
        number = (row + top) // tile * across + (column + left) // tile
        order = rng.permutation(number.max() + 1)
        chosen = np.argsort(order[number], kind="stable")[:per_image]
        return row[chosen], column[chosen]

    def read_by_row(self, node: gs.Node) -> float:
        """How many places of the input a row reads, those that the rows of a tile share counted once."""
        kernel, strides, dilations = _window(node)
        sides = [(self.tile - 1) * s + (k - 1) * d + 1 for k, s, d in zip(kernel, strides, dilations, strict=True)]
        return float(np.prod(sides)) / self.tile**2

    def inputs(self, node: gs.Node, x: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        patches = self.patches(node, x, *self.places(self.sides(node, (x.shape[2], x.shape[3])), rng, per_image))
        groups = int(node.attrs.get("group", 1))
        n, at, inputs = patches.shape
        return patches.reshape(n * at, groups, inputs // groups)

    @staticmethod
    def sides(node: gs.Node, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for an input of such a size."""
        kernel, strides, dilations = _window(node)
        pads = node.attrs.get("pads", [0, 0, 0, 0])
        height, width = (
            (size[k] + pads[k] + pads[k + 2] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1 for k in range(2)
        )
        return height, width

    @staticmethod
    def taps(node: gs.Node, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns [places, taps] of the input, padding included, that outputs at some places read."""
        kernel, strides, dilations = _window(node)
        down, right = (np.arange(kernel[k]) * dilations[k] for k in range(2))
        return (
            (row[:, None, None] * strides[0] + down[:, None] + 0 * right).reshape(len(row), -1),
            (column[:, None, None] * strides[1] + 0 * down[:, None] + right).reshape(len(row), -1),
        )

    @classmethod
    def patches(cls, node: gs.Node, x: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """What outputs at some places read, [images, places, channels * taps]."""
        top, left, bottom, right = node.attrs.get("pads", [0, 0, 0, 0])
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        down, across = cls.taps(node, row, column)
        found = padded.transpose(0, 2, 3, 1)[:, down, across]  # [images, places, taps, channels]
        return found.transpose(0, 1, 3, 2).reshape(len(x), len(row), -1)

    def outputs(self, y: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        _, channels, height, width = y.shape
        row, column = self.places((height, width), rng, per_image)
        return y[:, :, row, column].transpose(0, 2, 1).reshape(-1, channels)

    def read(self, node: gs.Node) -> tuple[np.ndarray, np.ndarray]:
        weight = values_of(node.inputs[1])
        groups = int(node.attrs.get("group", 1))
        per = len(weight) // groups
        bias = values_of(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(len(weight))
        return weight.reshape(groups, per, -1).transpose(0, 2, 1), bias.reshape(groups, per)

    def write(self, model: Model, node: gs.Node, weight: np.ndarray, bias: np.ndarray) -> None:
        replace(model, node, 1, self._kernel(node, weight))
        if self.can_bias(node):
            replace(model, node, 2, bias.reshape(-1))

    def stored(self, node: gs.Node, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kernel = representable(node.inputs[1], self._kernel(node, weight))
        kept = kernel.reshape(len(weight), bias.shape[1], -1).transpose(0, 2, 1)
        return kept, _stored_bias(node, bias)

    @staticmethod
    def _kernel(node: gs.Node, weight: np.ndarray) -> np.ndarray:
        return weight.transpose(0, 2, 1).reshape(shape_of(node.inputs[1]))


class DenseSampler(Sampler):
    """Products with a matrix: rows are the leading axes."""

    channel_axis = -1

    def __init__(self, transposed: bool) -> None:
        self.transposed = transposed

    @staticmethod
    def _rows(values: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        n, channels = len(values), values.shape[-1]
        table = values.reshape(n, -1, channels)
        places = rng.permutation(table.shape[1])[:per_image]
        return table[:, places].reshape(-1, channels)

    def inputs(self, node: gs.Node, x: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        return self._rows(x, rng, per_image)[:, None, :]

    def outputs(self, y: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        return self._rows(y, rng, per_image)

    def read(self, node: gs.Node) -> tuple[np.ndarray, np.ndarray]:
        weight = values_of(node.inputs[1])
        weight = weight.T if self.transposed else weight
        bias = values_of(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(weight.shape[1])
        return weight[None], np.broadcast_to(bias, weight.shape[1:]).reshape(1, -1)

    def write(self, model: Model, node: gs.Node, weight: np.ndarray, bias: np.ndarray) -> None:
        replace(model, node, 1, weight[0].T if self.transposed else weight[0])
        if self.can_bias(node):
            replace(model, node, 2, bias.reshape(-1))

    def stored(self, node: gs.Node, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = representable(node.inputs[1], weight[0].T if self.transposed else weight[0])
        return (kept.T if self.transposed else kept)[None], _stored_bias(node, bias)

    def can_bias(self, node: gs.Node) -> bool:
        return bool(node.op == "Gemm") and super().can_bias(node)


def _stored_bias(node: gs.Node, bias: np.ndarray) -> np.ndarray:
    if len(node.inputs) < 3:
        return bias
    return representable(node.inputs[2], bias.reshape(-1)).reshape(bias.shape)


def _window(conv: gs.Node) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and dilations over height and width."""
    return shape_of(conv.inputs[1])[2:], conv.attrs.get("strides", [1, 1]), conv.attrs.get("dilations", [1, 1])
