"""Parameters of layers, read and written as real numbers: constants, or integers behind a DequantizeLinear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.ir.view import is_standard


def dequantizer(tensor: gs.Tensor) -> gs.Node | None:
    """The DequantizeLinear that makes a parameter of constants; None for anything else, blocks of scales included."""
    if isinstance(tensor, gs.Constant) or len(tensor.inputs) != 1:
        return None
    node = tensor.inputs[0]
    if node.op != "DequantizeLinear" or not is_standard(node) or node.attrs.get("block_size", 0):
        return None
    if not all(isinstance(t, gs.Constant) for t in node.inputs if t.name):
        return None
    return node if np.issubdtype(np.dtype(node.inputs[0].dtype), np.integer) else None  # not of 4 bits, nor float8


def shape_of(tensor: gs.Tensor) -> list[int]:
    """Sizes of a parameter."""
    node = dequantizer(tensor)
    return [int(d) for d in (tensor if node is None else node.inputs[0]).shape]


def values_of(tensor: gs.Tensor) -> np.ndarray:
    """Values of a parameter, in double precision."""
    node = dequantizer(tensor)
    return np.asarray(tensor.values, dtype=np.float64) if node is None else dequantized(node)


def dequantized(node: gs.Node) -> np.ndarray:
    """What a DequantizeLinear of constants gives, in double precision."""
    values = np.asarray(node.inputs[0].values, dtype=np.float64)
    scale, zero = _scales(node)
    return np.asarray((values - zero) * scale)


def _scales(node: gs.Node) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear, shaped to go with the input."""
    rank = len(node.inputs[0].shape or [])
    scale = np.asarray(node.inputs[1].values, dtype=np.float64)
    given = len(node.inputs) > 2 and node.inputs[2].name
    zero = np.asarray(node.inputs[2].values, dtype=np.float64) if given else np.zeros_like(scale)
    if scale.size == 1:
        return scale.reshape(()), zero.reshape(())
    view = [1] * rank
    view[int(node.attrs.get("axis", 1)) % rank if rank > 1 else 0] = -1
    return scale.reshape(view), zero.reshape(view)


def replace(model: Model, node: gs.Node, slot: int, values: np.ndarray) -> None:
    """Give a layer new values for a parameter: under the old name where no one else reads that, and where it is
    quantized rounded to its old scale, so that operators on integers stay what they are. What is out of the range of
    that scale is cut off."""
    if slot < len(node.inputs):
        source = dequantizer(node.inputs[slot])
        if source is not None:
            node, slot, values = source, 0, _rounded(source, values)
    _put(model, node, slot, values)


def representable(tensor: gs.Tensor, values: np.ndarray) -> np.ndarray:
    """What ``replace`` makes of values, as real numbers."""
    source = dequantizer(tensor)
    if source is None:
        return values
    scale, zero = _scales(source)
    return np.asarray((_rounded(source, values).astype(np.float64) - zero) * scale)


def _rounded(source: gs.Node, values: np.ndarray) -> np.ndarray:
    scale, zero = _scales(source)
    kind = np.asarray(source.inputs[0].values).dtype
    limits = np.iinfo(kind)
    return np.clip(np.rint(values / scale + zero), limits.min, limits.max).astype(kind)


def _put(model: Model, node: gs.Node, slot: int, values: np.ndarray) -> None:
    if not np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.float32)
    values = np.ascontiguousarray(values)
    if slot >= len(node.inputs):
        node.inputs.append(model.constant(f"{node.name}_bias", values))
        return
    old = node.inputs[slot]
    alone = len(old.outputs) == 1 and old.name not in model.captured()
    node.inputs[slot] = gs.Constant(old.name, values) if alone else model.constant(f"{old.name}_refitted", values)


def is_quantized(node: gs.Node) -> bool:
    """Whether a layer's weight is quantized."""
    return len(node.inputs) > 1 and dequantizer(node.inputs[1]) is not None


def beyond_quantizers(tensor: gs.Tensor) -> gs.Tensor:
    """A tensor, or what is left of it after the pair of QuantizeLinear and DequantizeLinear that alone read it."""
    left = tensor
    for op in ("QuantizeLinear", "DequantizeLinear"):
        readers: Sequence[gs.Node] = left.outputs
        if len(readers) != 1 or readers[0].op != op or readers[0].inputs[0] is not left:
            return tensor
        left = readers[0].outputs[0]
    return left


def cuts_negative(node: gs.Node) -> bool:
    """Whether a node gives the same for all that is negative: a ReLU, or a QuantizeLinear whose zero is its least."""
    if node.op != "QuantizeLinear":
        return bool(node.op == "Relu")
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return not node.attrs.get("output_dtype", 0)  # uint8 with a zero point of 0
    zero = node.inputs[2]
    if not isinstance(zero, gs.Constant) or not np.issubdtype(np.asarray(zero.values).dtype, np.integer):
        return False
    return bool((np.asarray(zero.values) == np.iinfo(np.asarray(zero.values).dtype).min).all())


def unrounded(model: Model) -> Model:
    """The model with activations that are cut off where their quantization cuts them off, but not rounded.

    Sums in another order differ by as little as floats do; rounding turns that into whole steps, now and then.
    """
    numbers = [i for i, node in enumerate(model.graph.nodes) if _is_pair(model, node)]
    if not numbers:
        return model
    twin = model.copy()
    with twin.edit() as graph:
        for node in [graph.nodes[i] for i in numbers]:
            scale, zero = _scales(node)
            limits = np.iinfo(_integers(node))
            low, high = (((limit - zero) * scale).astype(np.float32) for limit in (limits.min, limits.max))
            between = node.outputs[0]
            between.dtype = np.float32
            for reader in list(between.outputs):
                reader.op, reader.attrs = "Min", {}
                reader.inputs = [between, twin.constant(f"{reader.name}_high", high)]
            node.op, node.attrs = "Max", {}
            node.inputs = [node.inputs[0], twin.constant(f"{node.name}_low", low)]
    return twin


def _is_pair(model: Model, node: gs.Node) -> bool:
    """Whether a node is a QuantizeLinear of floats by constants that nothing but DequantizeLinears alike reads."""
    if node.op != "QuantizeLinear" or not is_standard(node) or node.attrs.get("block_size", 0):
        return False
    given, made = node.inputs[1:], node.outputs[0]
    if isinstance(node.inputs[0], gs.Constant) or not all(isinstance(t, gs.Constant) for t in given if t.name):
        return False
    if node.inputs[0].dtype not in (None, np.float32) or model.is_output(made) or made.name in model.captured():
        return False
    if not np.issubdtype(_integers(node), np.integer) or (node.inputs[0].shape is None and given[0].values.size > 1):
        return False
    readers = made.outputs
    return bool(readers) and all(
        n.op == "DequantizeLinear" and [_bytes(t) for t in n.inputs[1:]] == [_bytes(t) for t in given] for n in readers
    )


def _integers(node: gs.Node) -> np.dtype:
    """What a QuantizeLinear makes."""
    given = len(node.inputs) > 2 and node.inputs[2].name
    return np.dtype(node.inputs[2].dtype if given else np.uint8)


def _bytes(tensor: gs.Tensor) -> bytes | None:
    return np.asarray(tensor.values).tobytes() if isinstance(tensor, gs.Constant) else None
