"""Layers as linear problems: rows of inputs and outputs at sampled positions, and the weight as a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.ir.view import is_standard

_WIDEST = 3072  # inputs of one output: the moments take their square


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
        return True


def sampler_of(node: gs.Node) -> Sampler | None:
    """How to refit a node; None for a node that cannot be: not linear, or its weight is shared or not a constant."""
    if not is_standard(node) or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    if not isinstance(weight, gs.Constant) or len(weight.outputs) != 1 or weight.dtype != np.float32:
        return None
    if len(node.inputs) > 2 and not isinstance(node.inputs[2], gs.Constant):
        return None
    if node.op == "Conv" and len(weight.shape) == 4 and node.attrs.get("auto_pad", "NOTSET") == "NOTSET":
        return ConvSampler() if int(np.prod(weight.shape[1:])) <= _WIDEST else None
    if node.op == "Gemm" and node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0:
        plain = not node.attrs.get("transA", 0) and (len(node.inputs) < 3 or len(node.inputs[2].shape) == 1)
        return DenseSampler(bool(node.attrs.get("transB", 0))) if plain and max(weight.shape) <= _WIDEST else None
    if node.op == "MatMul" and len(weight.shape) == 2 and max(weight.shape) <= _WIDEST:
        return DenseSampler(False)
    return None


def _replace(model: Model, node: gs.Node, slot: int, values: np.ndarray) -> None:
    """A new constant under the old name where no one else reads that."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if slot >= len(node.inputs):
        node.inputs.append(model.constant(f"{node.name}_bias", values))
        return
    old = node.inputs[slot]
    alone = len(old.outputs) == 1 and old.name not in model.captured()
    node.inputs[slot] = gs.Constant(old.name, values) if alone else model.constant(f"{old.name}_refitted", values)


class ConvSampler(Sampler):
    """Two-dimensional convolutions of any grouping: rows are patches."""

    channel_axis = 1

    @staticmethod
    def places(size: tuple[int, int], rng: np.random.Generator, per_image: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of some places of an output of such a size, alike for all images of a batch."""
        height, width = size
        chosen = rng.permutation(height * width)[:per_image]
        return chosen // width, chosen % width

    def inputs(self, node: gs.Node, x: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        patches = self.patches(node, x, *self.places(self.sides(node, (x.shape[2], x.shape[3])), rng, per_image))
        groups = int(node.attrs.get("group", 1))
        n, at, inputs = patches.shape
        return patches.reshape(n * at, groups, inputs // groups)

    @staticmethod
    def sides(node: gs.Node, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output for an input of such a size."""
        kernel = [int(d) for d in node.inputs[1].shape[2:]]
        strides, dilations = node.attrs.get("strides", [1, 1]), node.attrs.get("dilations", [1, 1])
        pads = node.attrs.get("pads", [0, 0, 0, 0])
        height, width = (
            (size[k] + pads[k] + pads[k + 2] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1 for k in range(2)
        )
        return height, width

    @staticmethod
    def taps(node: gs.Node, row: np.ndarray, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns [places, taps] of the input, padding included, that outputs at some places read."""
        kernel = [int(d) for d in node.inputs[1].shape[2:]]
        strides, dilations = node.attrs.get("strides", [1, 1]), node.attrs.get("dilations", [1, 1])
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
        weight = np.asarray(node.inputs[1].values, dtype=np.float64)
        groups = int(node.attrs.get("group", 1))
        per = len(weight) // groups
        bias = np.asarray(node.inputs[2].values, np.float64) if len(node.inputs) > 2 else np.zeros(len(weight))
        return weight.reshape(groups, per, -1).transpose(0, 2, 1), bias.reshape(groups, per)

    def write(self, model: Model, node: gs.Node, weight: np.ndarray, bias: np.ndarray) -> None:
        shape = [int(d) for d in node.inputs[1].shape]
        _replace(model, node, 1, weight.transpose(0, 2, 1).reshape(shape))
        _replace(model, node, 2, bias.reshape(-1))


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
        weight = np.asarray(node.inputs[1].values, dtype=np.float64)
        weight = weight.T if self.transposed else weight
        bias = np.asarray(node.inputs[2].values, np.float64) if len(node.inputs) > 2 else np.zeros(weight.shape[1])
        return weight[None], np.broadcast_to(bias, weight.shape[1:]).reshape(1, -1)

    def write(self, model: Model, node: gs.Node, weight: np.ndarray, bias: np.ndarray) -> None:
        _replace(model, node, 1, weight[0].T if self.transposed else weight[0])
        if self.can_bias(node):
            _replace(model, node, 2, bias.reshape(-1))

    def can_bias(self, node: gs.Node) -> bool:
        return bool(node.op == "Gemm")
