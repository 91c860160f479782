"""What a model costs: multiply-accumulates and parameters, by node and in total."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.base import Analysis
from graphopt.ir import Model, infer_shapes
from graphopt.ir.view import is_standard

Shape = list[int | None]


@dataclass(frozen=True)
class NodeCost:
    """One node: MACs at batch 1 (None: its sizes are not known) and parameters that it is the first to read."""

    macs: int | None
    params: int
    op: str


@dataclass(frozen=True)
class Cost:
    """MACs at batch 1 and parameters of a model.

    Products of two activations (attention scores) are left out, as is customary. ``unknown`` names the nodes whose
    MACs could not be counted and says why; they are not part of ``macs``. ``weights`` names the constants of the main
    graph that count as parameters.
    """

    macs: int
    params: int
    by_node: dict[str, NodeCost] = field(default_factory=dict)
    unknown: tuple[tuple[str, str], ...] = ()
    weights: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CostAnalysis(Analysis[Cost]):
    """MACs and parameters. A symbolic size counts as 1 on axis 0 (the batch) and as unknown anywhere else."""

    def compute(self, model: Model, ctx: Any = None) -> Cost:
        return cost(model)


def cost(model: Model) -> Cost:
    """Count a model's MACs and parameters; linear in nodes. Does not change the model."""
    shapes = known_shapes(with_batch(model, 1))
    producers = {t.name: node for node in model.graph.nodes for t in node.outputs}
    seen: set[str] = set()
    by_node: dict[str, NodeCost] = {}
    unknown: list[tuple[str, str]] = []
    for node in model.graph.nodes:
        macs: int | None = 0
        counter = _COUNTERS.get(node.op) if is_standard(node) else None
        if counter is not None:
            macs = counter(node, [shapes.get(t.name) for t in node.inputs], shapes.get(node.outputs[0].name), producers)
            if macs is None:
                unknown.append((node.name, "the sizes of its tensors are not all known"))
        for sub in node.subgraphs(recursive=True):
            if any(n.op in _COUNTERS for n in sub.nodes):
                unknown.append((node.name, "its subgraphs run an unknown number of times"))
                break
        by_node[node.name] = NodeCost(macs, _params(node, seen, producers), node.op)
    weights = frozenset(seen)
    inner = 0
    for sub in model.graph.subgraphs(recursive=True):
        inner += sum(_params(node, seen, {}) for node in sub.nodes)
    total = sum(c.macs or 0 for c in by_node.values())
    params = sum(c.params for c in by_node.values()) + inner
    return Cost(total, params, by_node, tuple(unknown), weights)


def with_batch(model: Model, size: int, shape: Sequence[int] | None = None) -> Model:
    """A copy that takes ``size`` images: an axis into which the batch was merged then has its true size.

    A batch that the model fixes stays. ``shape`` is that of an image, for a model that leaves it open.
    """
    twin = model.copy()
    changed = False
    for tensor in twin.graph.inputs:
        if tensor.shape and not isinstance(tensor.shape[0], int):
            tensor.shape = [size, *tensor.shape[1:]]
            changed = True
        if tensor.shape and shape is not None and len(tensor.shape) == len(shape) + 1:
            tensor.shape = [tensor.shape[0], *shape]
            changed = True
    if changed:
        _infer(twin)
    return twin


def known_shapes(model: Model) -> dict[str, Shape]:
    """Shapes of the main graph's tensors by name, as far as they can be inferred: symbolic sizes become None.

    The model is not changed: when some shape is missing, inference runs on a copy that shares the weights. Sizes
    that only constant folding reveals (pads computed by the exporter's chains of nodes) are found by folding it.
    """
    shapes = _static(model)
    if not _complete(model, shapes):
        twin = model.copy()
        _infer(twin)
        shapes |= _static(twin)
        if not _complete(model, shapes):
            _fold_quietly(twin)
            shapes |= _static(twin)
    return shapes


def _infer(model: Model) -> None:
    """Infer shapes anew, those of the outputs included: exporters give these symbolic sizes that are in fact known."""
    outputs, model.graph.outputs = model.graph.outputs, []
    infer_shapes(model, fresh=True)
    model.graph.outputs = outputs


def _fold_quietly(model: Model) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # folding warns about nodes that it will not merge
    try:
        with contextlib.suppress(Exception):  # a model that cannot be folded keeps what is known of it
            model.graph.fold_constants(size_threshold=1 << 16).cleanup()
            _infer(model)
    finally:
        onnxruntime.set_default_logger_severity(2)


def _static(model: Model) -> dict[str, Shape]:
    return {
        name: [int(d) if isinstance(d, int | np.integer) else None for d in t.shape]
        for name, t in model.graph.tensors().items()
        if name and t.shape is not None
    }


def _complete(model: Model, shapes: dict[str, Shape]) -> bool:
    names = [t.name for node in model.graph.nodes for t in (*node.inputs, *node.outputs) if t.name]
    return all(name in shapes and None not in shapes[name][1:] for name in names)


def is_constant(tensor: gs.Tensor, producers: dict[str, gs.Node]) -> bool:
    """Whether a tensor's values are fixed: an initializer, a Constant node, or one of these dequantized."""
    node = producers.get(tensor.name)
    while node is not None and node.op in ("DequantizeLinear", "QuantizeLinear", "Identity", "Cast"):
        tensor = node.inputs[0]
        node = producers.get(tensor.name)
    return isinstance(tensor, gs.Constant) or (node is not None and node.op == "Constant")


def _params(node: gs.Node, seen: set[str], producers: dict[str, gs.Node]) -> int:
    found = 0
    for tensor in node.inputs:
        weight = tensor
        source = producers.get(tensor.name)
        if source is not None and source.op == "DequantizeLinear":
            weight = source.inputs[0]
        elif node.op in ("DequantizeLinear", "QuantizeLinear"):
            continue  # counted at the node that reads the real values; scales are not parameters
        elif source is not None and source.op == "Constant" and isinstance(source.attrs.get("value"), gs.Constant):
            weight = source.attrs["value"]
            weight.name = weight.name or tensor.name
        if not isinstance(weight, gs.Constant) or weight.name in seen:
            continue
        if weight is not tensor or np.issubdtype(np.dtype(weight.dtype), np.floating) or node.op.startswith("QLinear"):
            seen.add(weight.name)
            found += prod(int(d) for d in weight.shape)
    return found


def _at_batch_one(shape: Sequence[int | None] | None) -> list[int] | None:
    if shape is None:
        return None
    filled = [1 if d is None and axis == 0 else d for axis, d in enumerate(shape)]
    return None if any(d is None for d in filled) else [int(d) for d in filled if d is not None]


Producers = dict[str, gs.Node]
Counter = Callable[[gs.Node, list[Shape | None], Shape | None, Producers], int | None]


def _conv(node: gs.Node, inputs: list[Shape | None], output: Shape | None, producers: Producers) -> int | None:
    weight, out = _at_batch_one(inputs[3 if node.op == "QLinearConv" else 1]), _at_batch_one(output)
    return None if weight is None or out is None else prod(out) * prod(weight[1:])


def _conv_transpose(
    node: gs.Node, inputs: list[Shape | None], output: Shape | None, producers: Producers
) -> int | None:
    weight, x = _at_batch_one(inputs[1]), _at_batch_one(inputs[0])
    return None if weight is None or x is None else prod(x) * prod(weight[1:])


def _gemm(node: gs.Node, inputs: list[Shape | None], output: Shape | None, producers: Producers) -> int | None:
    if not any(is_constant(t, producers) for t in node.inputs[:2]):
        return 0
    b, out = _at_batch_one(inputs[1]), _at_batch_one(output)
    return None if b is None or out is None else prod(out) * b[1 if node.attrs.get("transB", 0) else 0]


def _matmul(node: gs.Node, inputs: list[Shape | None], output: Shape | None, producers: Producers) -> int | None:
    b_slot = 3 if node.op == "QLinearMatMul" else 1
    if not (is_constant(node.inputs[0], producers) or is_constant(node.inputs[b_slot], producers)):
        return 0
    b, out = _at_batch_one(inputs[b_slot]), _at_batch_one(output)
    return None if b is None or out is None else prod(out) * b[-2 if len(b) > 1 else 0]


def einsum_terms(equation: str | bytes) -> tuple[list[str], str] | None:
    """The letters of each operand of an Einsum and of its result; None where there is an ellipsis or a diagonal."""
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    left, arrow, right = text.partition("->")
    operands = left.split(",")
    if not arrow:  # the letters that occur once, in alphabetical order
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    if "." in text or any(len(set(term)) < len(term) for term in (*operands, right)):
        return None
    return operands, right


def _einsum(node: gs.Node, inputs: list[Shape | None], output: Shape | None, producers: Producers) -> int | None:
    if not any(is_constant(t, producers) for t in node.inputs):
        return 0
    terms = einsum_terms(node.attrs["equation"])
    shapes = [_at_batch_one(shape) for shape in inputs]
    if terms is None or any(s is None or len(s) != len(t) for s, t in zip(shapes, terms[0], strict=True)):
        return None
    sizes = {k: d for term, shape in zip(terms[0], shapes, strict=True) for k, d in zip(term, shape or [], strict=True)}
    return prod(sizes.values())


_COUNTERS: dict[str, Counter] = {
    "Einsum": _einsum,
    "Conv": _conv,
    "QLinearConv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
}
