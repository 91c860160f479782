"""Exact rewrites into operators that the target has in int8, done before anything is placed or calibrated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx.version_converter
import onnx_graphsurgeon as gs

from graphopt.errors import PassError
from graphopt.ir import Model, infer_shapes
from graphopt.ir.view import is_standard, sort
from graphopt.passes.quantize.operators import constant_input, sole_consumer
from graphopt.pipeline.patterns import matching

_PICKS = frozenset("MaxPool Reshape Flatten Transpose Squeeze Unsqueeze Slice".split())
_MIN_OPSET = 13  # the first with per-channel QuantizeLinear and DequantizeLinear


def lower(model: Model, keep_float: tuple[str, ...] = ()) -> dict[str, int]:
    """Rewrite ``model`` in place; outputs stay the same up to float noise. Returns how often each rule applied.

    Nodes whose name matches ``keep_float`` stay as they are.

    Raises PassError if the model's opset is too old and cannot be upgraded.
    """
    counts: dict[str, int] = {}
    if model.opset < _MIN_OPSET:
        _upgrade(model)
        counts["opset upgrade"] = 1
    rules: tuple[tuple[str, Callable[[Model, gs.Node], bool]], ...] = (
        ("ReduceMean -> GlobalAveragePool", _mean_to_pool),
        ("MatMul + Add -> Gemm", _matmul_to_gemm),
        ("plain Gemm", _plain_gemm),
        ("activation before what only moves", _activation_first),
        ("HardSwish -> HardSigmoid, Mul", _split_hardswish),
    )
    if any(t.dtype is None or t.shape is None for n in model.graph.nodes for t in n.outputs if t.name):
        infer_shapes(model)
    with model.edit() as graph:
        for name, rule in rules:
            for node in list(graph.nodes):
                if is_standard(node) and matching(node.name, keep_float) is None and rule(model, node):
                    counts[name] = counts.get(name, 0) + 1
        graph.cleanup(remove_unused_graph_inputs=False)
        sort(graph)
    if counts:
        infer_shapes(model)
    return counts


def _upgrade(model: Model) -> None:
    old = model.opset
    try:
        proto = onnx.version_converter.convert_version(model.to_proto(), _MIN_OPSET)
    except Exception as error:
        raise PassError(
            f"int8 weights per channel need opset {_MIN_OPSET}; the model has {old} and cannot be upgraded: {error}",
            f"export the model again with opset {_MIN_OPSET} or newer",
        ) from error
    twin = Model.from_proto(proto)
    twin.header.metadata.update(model.header.metadata)
    model.replace_with(twin)


def _mean_to_pool(model: Model, node: gs.Node) -> bool:
    if node.op != "ReduceMean" or not node.inputs:
        return False
    x, y = node.inputs[0], node.outputs[0]
    given = constant_input(node, 1)
    axes = node.attrs.get("axes") if given is None else given.tolist()
    if x.shape is None or len(x.shape) != 4 or axes is None or x.dtype != np.float32:
        return False
    if sorted(a % 4 for a in axes) != [2, 3]:
        return False
    keep = node.attrs.get("keepdims", 1)
    node.op, node.attrs, node.inputs = "GlobalAveragePool", {}, [x]
    if not keep:
        pooled = gs.Variable(model.fresh_name(f"{y.name}_pooled"), y.dtype, [*x.shape[:2], 1, 1])
        node.outputs = [pooled]
        name = model.fresh_name(f"{node.name}_flatten")
        model.graph.nodes.append(gs.Node("Flatten", name, {"axis": 1}, [pooled], [y]))
    return True


def _matmul_to_gemm(model: Model, node: gs.Node) -> bool:
    """MatMul by a constant matrix, then Add of a constant row: Gemm takes the row as an int32 bias.

    With more than two axes, Reshapes around the Gemm join all but the last (ONNX Runtime does the same in float).
    """
    if node.op != "MatMul":
        return False
    weight = constant_input(node, 1)
    add = sole_consumer(model, node.outputs[0])
    x = node.inputs[0]
    if weight is None or weight.ndim != 2 or add is None or x.dtype != np.float32:
        return False
    if add.op != "Add" or not is_standard(add):
        return False
    row = next((t for t in add.inputs if isinstance(t, gs.Constant)), None)
    if row is None or row.values.size != weight.shape[1] or row.values.shape[-1:] != weight.shape[1:]:
        return False
    y = add.outputs[0]
    rank = None if x.shape is None else len(x.shape)
    if rank is None or rank < 2 or row.values.ndim > rank or y.shape is None:
        return False
    lead = [d if isinstance(d, int) else -1 for d in x.shape[:-1]]
    if rank > 2 and lead.count(-1) > 1:
        return False
    bias = model.constant(f"{row.name}_bias", row.values.reshape(-1))
    source, result = x, y
    if rank > 2:
        inner, outer = weight.shape
        shape_in = model.constant(f"{node.name}_rows", np.array([-1, inner], np.int64))
        shape_out = model.constant(f"{node.name}_shape", np.array([*lead, outer], np.int64))
        source = gs.Variable(model.fresh_name(f"{x.name}_rows"), x.dtype, [None, inner])
        result = gs.Variable(model.fresh_name(f"{y.name}_rows"), y.dtype, [None, outer])
        before = gs.Node("Reshape", model.fresh_name(f"{node.name}_rows"), inputs=[x, shape_in], outputs=[source])
        add.outputs.clear()
        after = gs.Node("Reshape", model.fresh_name(f"{node.name}_back"), inputs=[result, shape_out], outputs=[y])
        model.graph.nodes.extend([before, after])
    add.inputs.clear()
    add.outputs.clear()
    node.op, node.attrs = "Gemm", {}
    node.inputs, node.outputs = [source, node.inputs[1], bias], [result]
    return True


def _plain_gemm(model: Model, node: gs.Node) -> bool:
    """Fold ``alpha`` and ``beta`` into constant operands: the int8 kernel's bias knows no factor."""
    if node.op != "Gemm":
        return False
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    weight = constant_input(node, 1)
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    bias = constant_input(node, 2)
    if (alpha == 1 and beta == 1) or weight is None or (has_bias and bias is None):
        return False
    if alpha != 1:
        node.inputs[1] = model.constant(f"{node.inputs[1].name}_scaled", (weight * alpha).astype(weight.dtype))
    if beta != 1 and bias is not None:
        node.inputs[2] = model.constant(f"{node.inputs[2].name}_scaled", (bias * beta).astype(bias.dtype))
    node.attrs.pop("alpha", None)
    node.attrs.pop("beta", None)
    return True


def _split_hardswish(model: Model, node: gs.Node) -> bool:
    """x * HardSigmoid(x): ONNX Runtime does the same split in float and fuses it again where it pays."""
    if node.op != "HardSwish":
        return False
    x, y = node.inputs[0], node.outputs[0]
    gate = gs.Variable(model.fresh_name(f"{y.name}_gate"), y.dtype, y.shape)
    attrs = {"alpha": 1 / 6, "beta": 0.5}
    hard = gs.Node("HardSigmoid", model.fresh_name(f"{node.name}_gate"), attrs, [x], [gate])
    node.op, node.attrs, node.inputs = "Mul", {}, [x, gate]
    model.graph.nodes.append(hard)
    return True


def _activation_first(model: Model, node: gs.Node) -> bool:
    """Relu(MaxPool(x)) = MaxPool(Relu(x)), and so for whatever picks values: behind a Conv, Relu is free."""
    if node.op != "Relu":
        return False
    moved = False
    while node.inputs[0].inputs:
        mover, middle, result = node.inputs[0].inputs[0], node.inputs[0], node.outputs[0]
        if mover.op not in _PICKS or not is_standard(mover) or len(mover.outputs) != 1:
            break
        x = mover.inputs[0]
        if sole_consumer(model, middle) is not node or sole_consumer(model, x) is not mover or not x.inputs:
            break
        middle.shape, middle.dtype = (None if x.shape is None else list(x.shape)), x.dtype
        node.inputs[0], mover.inputs[0] = x, middle
        node.outputs, mover.outputs = [middle], [result]
        moved = True
    return moved
