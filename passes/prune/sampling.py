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
    def _places(n: int, height: int, width: int, rng: np.random.Generator, per_image: int) -> np.ndarray:
        count = min(per_image, height * width)
        return rng.permutation(height * width)[:count]

    def inputs(self, node: gs.Node, x: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        weight = node.inputs[1].shape
        kernel = [int(d) for d in weight[2:]]
        strides, dilations = node.attrs.get("strides", [1, 1]), node.attrs.get("dilations", [1, 1])
        top, left, bottom, right = node.attrs.get("pads", [0, 0, 0, 0])
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        sides = [(padded.shape[2 + k] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1 for k in range(2)]
        places = self._places(len(x), sides[0], sides[1], rng, per_image)
        row, column = places // sides[1] * strides[0], places % sides[1] * strides[1]
        taps = [
            padded[:, :, row + i * dilations[0], column + j * dilations[1]]
            for i in range(kernel[0])
            for j in range(kernel[1])
        ]
        patches = np.stack(taps, axis=2)  # [n, channels, taps, places]
        groups = int(node.attrs.get("group", 1))
        n, channels, count, at = patches.shape
        return patches.transpose(0, 3, 1, 2).reshape(n * at, groups, channels // groups * count)

    def outputs(self, y: np.ndarray, rng: np.random.Generator, per_image: int) -> np.ndarray:
        n, channels, height, width = y.shape
        places = self._places(n, height, width, rng, per_image)
        return y.reshape(n, channels, -1)[:, :, places].transpose(0, 2, 1).reshape(-1, channels)

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
