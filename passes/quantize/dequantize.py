"""A quantized model back in float: what it computes, but for the rounding of activations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import ModelError
from graphopt.ir import Model, infer_shapes
from graphopt.ir.view import is_standard, sort

# Operators that move integers as they would move the real numbers that these stand for.
_MOVES = frozenset(
    "Reshape Transpose Flatten Squeeze Unsqueeze Slice Split Gather Expand Tile MaxPool Pad Identity".split()
)
# What writes a tensor whose range stands for no activation: there is none between, or one that is still there.
_BOUNDED = frozenset("Relu Clip Sigmoid HardSigmoid Softmax ReduceMax ReduceMin".split()) | _MOVES
_HINT = "run the quantize pass on the float model it came from"

Params = tuple[np.ndarray, np.ndarray]  # scale, zero point


def dequantize(model: Model) -> dict[str, int]:
    """Make ``model`` a float model in place; how many nodes of each kind went.

    Weights become what their integers stand for. Activations are no longer rounded, but stay within the range of their
    integers where that may stand for a ReLU or Clip. Raises ModelError for operators on integers that are more than
    QuantizeLinear and DequantizeLinear.
    """
    gone: Counter[str] = Counter()
    needed = model.captured() | {t.name for t in model.outputs}
    with model.edit() as graph:
        for node in list(graph.nodes):
            if node.op == "DequantizeLinear" and (data := _constant(node.inputs[0])) is not None:
                _become(node, _real(node, data))
                gone["weights"] += 1
        scales: dict[str, Params] = {}
        for node in list(graph.nodes):
            if node.op == "QuantizeLinear":
                scales[node.outputs[0].name] = _params(node)
                _saturate(model, node)
                gone["QuantizeLinear"] += 1
            elif node.inputs and node.inputs[0].name in scales:
                if node.op == "DequantizeLinear":
                    _rescale(model, node, scales[node.inputs[0].name])
                    gone["DequantizeLinear"] += 1
                else:
                    _move(model, node, scales)
        for node in list(graph.nodes):
            if node.op in ("Identity", "Sum") and len(node.inputs) == 1 and node.outputs[0].name not in needed:
                _bypass(node)
        graph.cleanup(remove_unused_graph_inputs=False)
        sort(graph)
    left = Counter(n.op for n in model.graph.nodes if n.op == "DequantizeLinear" or "Integer" in n.op)
    if left:
        raise ModelError(f"some of the model's integers cannot be made real: it has {dict(left)}", _HINT)
    infer_shapes(model)
    return dict(gone)


def _constant(tensor: gs.Tensor) -> np.ndarray | None:
    """Integers of a constant, perhaps behind a Cast (which widens 4 bits)."""
    if not isinstance(tensor, gs.Constant) and len(tensor.inputs) == 1 and tensor.inputs[0].op == "Cast":
        tensor = tensor.inputs[0].inputs[0]
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def _params(node: gs.Node) -> Params:
    scale = _constant(node.inputs[1])
    given = len(node.inputs) > 2 and node.inputs[2].name
    zero = _constant(node.inputs[2]) if given else np.zeros(np.shape(scale), np.uint8)
    if scale is None or zero is None or not is_standard(node) or scale.dtype.kind != "f":
        raise ModelError(f"{node.op} {node.name!r} has a scale or zero point that is no constant", _HINT)
    return scale, zero


def _real(node: gs.Node, data: np.ndarray) -> np.ndarray:
    """What a DequantizeLinear makes of integers, with one scale, one a channel, or one a block of a channel."""
    scale, zero = (np.asarray(p, np.float64) for p in _params(node))
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
    if block:
        scale, zero = (np.repeat(p, block, axis=axis).take(range(data.shape[axis]), axis) for p in (scale, zero))
    elif scale.size > 1 or (scale.ndim and data.ndim > 1):
        view = [1] * data.ndim
        view[axis % data.ndim] = -1
        scale, zero = scale.reshape(view), zero.reshape(view)
    return np.asarray(((data.astype(np.float64) - zero) * scale).astype(np.float32)).reshape(data.shape)


def _become(node: gs.Node, values: np.ndarray) -> None:
    """Let the readers of a node read a constant."""
    old = node.outputs[0]
    new = gs.Constant(old.name, values)
    for reader in list(old.outputs):
        reader.inputs = [new if t is old else t for t in reader.inputs]
    node.inputs.clear()
    node.outputs.clear()


def _saturate(model: Model, node: gs.Node) -> None:
    """QuantizeLinear: a Clip to the range of the integers, where that may stand for an activation."""
    scale, zero = _params(node)
    source, made = node.inputs[0], node.outputs[0]
    made.dtype = np.float32
    producer = source.inputs[0].op if source.inputs else ""
    if not producer or producer in _BOUNDED or producer == "DequantizeLinear" or scale.size > 1:
        node.op, node.attrs, node.inputs = "Identity", {}, [source]
        return
    limits = np.iinfo(zero.dtype)
    step, middle = float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0])
    low, high = (np.array((limit - middle) * step, np.float32) for limit in (limits.min, limits.max))
    bounds = [model.constant(f"{made.name}_low", low), model.constant(f"{made.name}_high", high)]
    node.op, node.attrs, node.inputs = "Clip", {}, [source, *bounds]


def _rescale(model: Model, node: gs.Node, written: Params) -> None:
    """DequantizeLinear: nothing, if it reads with what was written with; else a factor and an offset."""
    old, new = ([np.asarray(p, np.float64) for p in params] for params in (written, _params(node)))
    if all(np.array_equal(a.reshape(-1), b.reshape(-1)) for a, b in zip(old, new, strict=True)):
        node.op, node.attrs, node.inputs = "Identity", {}, node.inputs[:1]
        return
    if any(p.size > 1 for p in (*old, *new)):
        raise ModelError(f"DequantizeLinear {node.name!r} reads with other scales than were written with", _HINT)
    (s, z), (t, y) = ([float(p.reshape(-1)[0]) for p in pair] for pair in (old, new))
    factor = model.constant(f"{node.name}_factor", np.array(t / s, np.float32))
    if z == y:
        node.op, node.attrs, node.inputs = "Mul", {}, [node.inputs[0], factor]
        return
    offset = model.constant(f"{node.name}_offset", np.array((z - y) * t, np.float32))
    scaled = gs.Variable(model.fresh_name(f"{node.name}_scaled"), np.float32, node.inputs[0].shape)
    at = next(i for i, n in enumerate(model.graph.nodes) if n is node)
    mul = gs.Node("Mul", model.fresh_name(f"{node.name}_Mul"), {}, [node.inputs[0], factor], [scaled])
    model.graph.nodes.insert(at, mul)
    node.op, node.attrs, node.inputs = "Add", {}, [scaled, offset]


def _move(model: Model, node: gs.Node, scales: dict[str, Params]) -> None:
    """An operator on integers that works on real numbers alike; a padding value becomes real."""
    params = scales[node.inputs[0].name]
    if node.op not in _MOVES or not is_standard(node) or params[0].size > 1:
        raise ModelError(
            f"{node.op} {node.name!r} computes with integers: only QuantizeLinear and DequantizeLinear "
            "can be taken out",
            _HINT,
        )
    if node.op == "Pad" and node.attrs.get("mode", "constant") in ("constant", b"constant"):
        given = _constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2].name else np.zeros((), np.int8)
        if given is None:
            raise ModelError(f"Pad {node.name!r} has a padding value that is no constant", _HINT)
        scale, zero = (float(np.asarray(p).reshape(-1)[0]) for p in params)
        value = model.constant(f"{node.name}_value", np.array((float(given.reshape(-1)[0]) - zero) * scale, np.float32))
        node.inputs = [*node.inputs[:2], value, *node.inputs[3:]]
    for tensor in node.outputs[:1] if node.op == "MaxPool" else node.outputs:
        tensor.dtype = np.float32
        scales[tensor.name] = params


def _bypass(node: gs.Node) -> None:
    source, made = node.inputs[0], node.outputs[0]
    for reader in list(made.outputs):
        reader.inputs = [source if t is made else t for t in reader.inputs]
    node.inputs.clear()
    node.outputs.clear()
