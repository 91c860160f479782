"""Which operators run in int8: what each could do, what it would take, and the cheapest assignment of all.

All costs and kernels come from the target; see ``cut`` for how the cheapest assignment is found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.passes.quantize.cut import Network
from graphopt.passes.quantize.lowering import constant_input, sole_consumer
from graphopt.pipeline import Skipped
from graphopt.runtime.target import Target

# Operators whose second input may hold weights, the third a bias.
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_FOR_ANY_PRICE = 10**15  # nanoseconds


@dataclass
class Plan:
    """What runs in int8, by node position in the graph, and why the rest does not.

    ``absorbed`` maps an activation's position to that of the operator that takes it in.
    """

    int8: set[int] = field(default_factory=set)
    absorbed: dict[int, int] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def is_activation(tensor: gs.Tensor) -> bool:
    """Whether a tensor is computed, and in float32: all others have nothing to quantize."""
    return isinstance(tensor, gs.Variable) and bool(tensor.name) and tensor.dtype == np.float32


def data_inputs(node: gs.Node, target: Target) -> list[gs.Tensor]:
    """The inputs that carry activations or constants of their kind, without weights, biases, shapes and indices."""
    if node.op in target.passthrough_ops or node.op in target.integer_ops:
        return list(node.inputs[:1])
    if has_weights(node):
        return list(node.inputs[:1])
    return [t for t in node.inputs if t.name]


def has_weights(node: gs.Node) -> bool:
    """Whether a node multiplies its data by constant weights."""
    return node.op in WEIGHTED and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant)


def channel_axis(node: gs.Node) -> int:
    """The axis of the output channels in the weights of a Conv, Gemm or MatMul."""
    if node.op == "Conv":
        return 0
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return 1


def takes_offset(node: gs.Node) -> bool:
    """Whether an offset can go into the node's bias."""
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2].name)
    weights = node.op in ("Conv", "Gemm") and isinstance(node.inputs[1], gs.Constant)
    return weights and (not has_bias or isinstance(node.inputs[2], gs.Constant))


def decide(model: Model, target: Target, keep_float: tuple[str, ...] = (), all_weights: bool = False) -> Plan:
    """Place the operators of the main graph on ``target``. Deterministic; does not change the model.

    ``all_weights`` puts whatever has weights in int8, also where that costs time.
    """
    plan = Plan()
    nodes = list(model.graph.nodes)
    position = {id(n): i for i, n in enumerate(nodes)}
    floats = [i for i, n in enumerate(nodes) if any(is_activation(t) for t in n.outputs)]
    blocked: dict[int, str] = {}
    for i in floats:
        reason = _blocked(nodes[i], target, keep_float)
        if reason:
            blocked[i] = reason
    for i in floats:
        producer = _absorbing(model, nodes[i], target, position)
        if producer is not None and producer not in blocked and not _kept(nodes[i], keep_float):
            plan.absorbed[i] = plan.absorbed.get(producer, producer)
            blocked.pop(i, None)
    network = Network(target)
    for i in floats:
        if i in plan.absorbed:
            continue
        if i in blocked:
            network.forbid(i)
        else:
            float_ns, int8_ns = _times(model, nodes[i], target)
            network.operator(i, _FOR_ANY_PRICE if all_weights and has_weights(nodes[i]) else float_ns, int8_ns)
    for i in floats:
        for tensor in nodes[i].outputs:
            root = plan.absorbed.get(i, i)
            network.tensor(root, _readers(model, tensor, position, plan), _elements(tensor), nodes[root].op)
    for tensor in model.graph.inputs:
        if is_activation(tensor):
            network.tensor(None, _readers(model, tensor, position, plan), _elements(tensor), "")
    plan.int8 = network.solve()
    for i in floats:
        if plan.absorbed.get(i, i) in plan.int8:
            continue
        node = nodes[i]
        if plan.absorbed.pop(i, None) is not None:
            continue  # it follows its operator, which is reported
        plan.skipped.append(Skipped(node.name, node.op, blocked.get(i) or _too_dear(model, node, target)))
    plan.skipped.extend(
        Skipped(n.name, n.op, "its subgraphs are left as they are: export the model without control flow")
        for n in nodes
        if any(True for _ in n.subgraphs())
    )
    return plan


def outputs_in_int8(model: Model, target: Target, plan: Plan) -> set[str]:
    """Names of the tensors that int8 operators (with the activations that they absorb) write quantized."""
    nodes = model.graph.nodes
    members = plan.int8 | set(plan.absorbed)
    ours = {id(nodes[i]) for i in members}
    followed = {id(nodes[i].inputs[0]) for i in plan.absorbed}
    names = set()
    for i in sorted(members):
        node = nodes[i]
        root = nodes[plan.absorbed.get(i, i)]
        for tensor in node.outputs:
            if not is_activation(tensor) or id(tensor) in followed:
                continue
            read = any(id(n) in ours and any(tensor is t for t in data_inputs(n, target)) for n in tensor.outputs)
            if read or root.op not in target.float_output_ops:
                names.add(tensor.name)
    return names


def _readers(model: Model, tensor: gs.Tensor, position: dict[int, int], plan: Plan) -> list[int | None]:
    """Positions of the operators that read a tensor; None for whatever needs it in float."""
    known = [position[id(n)] for n in tensor.outputs if id(n) in position]  # the others are in subgraphs
    readers: list[int | None] = [plan.absorbed.get(i, i) for i in known]
    if model.is_output(tensor) or tensor.name in model.captured():
        readers.append(None)
    return readers


def _kept(node: gs.Node, keep_float: tuple[str, ...]) -> str | None:
    return next((p for p in keep_float if fnmatchcase(node.name, p)), None)


def _absorbing(model: Model, node: gs.Node, target: Target, position: dict[int, int]) -> int | None:
    """The position of the operator whose quantized output makes this activation free."""
    if target.symmetric_activations or node.op not in target.absorbed_ops or not node.inputs[0].inputs:
        return None  # a symmetric range does not end at 0
    producer = node.inputs[0].inputs[0]
    alone = sole_consumer(model, node.inputs[0]) is node
    if not alone or producer.op not in target.int8_ops or clip_bounds(node) is None:
        return None
    return position[id(producer)]


def clip_bounds(node: gs.Node) -> tuple[float, float] | None:
    """The interval that a Relu or Clip confines to, if it is constant and holds 0."""
    if node.op == "Relu":
        return 0.0, float("inf")
    bounds = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        present = len(node.inputs) > index and node.inputs[index].name
        value = constant_input(node, index)
        if present and value is None:
            return None
        bounds.append(float(value.reshape(())) if value is not None else default)
    return (bounds[0], bounds[1]) if bounds[0] <= 0 <= bounds[1] else None


def _blocked(node: gs.Node, target: Target, keep_float: tuple[str, ...]) -> str | None:
    """Why a node cannot run in int8, in words; None if it can."""
    pattern = _kept(node, keep_float)
    if pattern:
        return f"kept in float as asked (keep_float has {pattern!r})"
    if node.domain not in (None, "", "ai.onnx"):
        return f"operators of domain {node.domain!r} are not known: only standard operators are quantized"
    if node.op == "HardSigmoid" and "Add" in target.int8_ops and not target.symmetric_activations:
        return None if node.attrs.get("alpha", 0.2) > 0 else "its slope is not positive"
    if node.op in target.passthrough_ops:
        return _moving_blocked(node)
    if node.op in target.integer_ops:
        return _pad_blocked(node)
    if node.op in target.absorbed_ops:
        return "no int8 operator stands before it, for it alone, whose saturation could do its work"
    if node.op not in target.int8_ops:
        return f"{target.name} has no int8 kernel for {node.op}; an operator out of " + (
            "its list (" + ", ".join(sorted(target.int8_ops)) + ") would be quantized"
        )
    if any(t.dtype != np.float32 for t in node.inputs if t.name):
        return "it reads values that are not float32: convert the model to float32 first"
    if not all(np.isfinite(t.values).all() for t in node.inputs if isinstance(t, gs.Constant)):
        return "its constants are not all finite: no scale covers them"
    if node.op in WEIGHTED:
        return _weights_blocked(node)
    if not any(is_activation(t) for t in node.inputs):
        return "it reads constants only: fold it first"
    return None


def _moving_blocked(node: gs.Node) -> str | None:
    if not is_activation(node.inputs[0]):
        return "its data is constant: fold it first"
    if node.op == "Resize" and node.attrs.get("mode", "nearest") not in ("nearest", "linear", b"nearest", b"linear"):
        return "cubic interpolation goes beyond the range of its input: use linear or nearest"
    if node.op == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].name:
        return "it also returns where the maxima are: drop that output"
    return None


def _weights_blocked(node: gs.Node) -> str | None:
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if not is_activation(node.inputs[0]):
        return "its data is constant and its weights are not: swap the operands"
    if not isinstance(weight, gs.Constant):
        return None if node.op == "MatMul" else "its weights are computed while it runs: they must be constant"
    if node.op == "MatMul":
        return None if weight.values.ndim == 2 else "its constant operand is not a matrix"
    if bias is not None and bias.name and not isinstance(bias, gs.Constant):
        return "its bias is computed while it runs: it must be constant"
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return "it transposes its data (transA=1): put a Transpose before it"
        if bias is not None and bias.name and bias.values.size not in (1, _gemm_width(node)):
            return "its bias differs by row: it must be one row"
    return None


def _gemm_width(node: gs.Node) -> int:
    rows, columns = node.inputs[1].values.shape
    return int(rows if node.attrs.get("transB", 0) else columns)


def _pad_blocked(node: gs.Node) -> str | None:
    if not is_activation(node.inputs[0]):
        return "its data is constant: fold it first"
    value = constant_input(node, 2)
    given = len(node.inputs) > 2 and node.inputs[2].name
    if node.attrs.get("mode", "constant") in ("constant", b"constant") and given:
        if value is None:
            return "its padding value is computed while it runs: it must be constant"
        if value.any():
            return "it pads with a value other than 0: only zeros are sure to be in the quantized range"
    return None


def _times(model: Model, node: gs.Node, target: Target) -> tuple[int, int]:
    """Nanoseconds in float and in int8, at batch 1."""
    costs = target.costs
    if node.op == "HardSigmoid" and node.inputs[0].inputs:
        alone = sole_consumer(model, node.inputs[0]) is node
        if alone and takes_offset(node.inputs[0].inputs[0]):
            return round(_elements(node.outputs[0]) * costs.of(node.op).float_ns), 0  # see Rewriter._hard_sigmoids
    units, op = _elements(node.outputs[0]), node.op
    if op in WEIGHTED:
        weight = node.inputs[1]
        if isinstance(weight, gs.Constant):
            if op == "Conv":
                units *= int(np.prod(weight.values.shape[1:]))
                op = "depthwise" if weight.values.shape[1] == 1 and weight.values.shape[0] > 1 else op
            else:
                units = units // max(_columns(node), 1) * weight.values.size
        else:
            units *= _known(node.inputs[0].shape[-1] if node.inputs[0].shape else None)
    cost = costs.of(op)
    return round(units * cost.float_ns + costs.node_ns), round(units * cost.int8_ns + costs.node_ns)


def _columns(node: gs.Node) -> int:
    return _gemm_width(node) if node.op == "Gemm" else int(node.inputs[1].values.shape[-1])


def _elements(tensor: gs.Tensor) -> int:
    """Elements for one image; open dimensions count as 1, an unknown shape as a middling layer."""
    if tensor.shape is None:
        return 1 << 14
    return int(np.prod([_known(d) for d in tensor.shape], dtype=np.int64))


def _known(dim: object) -> int:
    return dim if isinstance(dim, int) and dim > 0 else 1


def _too_dear(model: Model, node: gs.Node, target: Target) -> str:
    """Why the cut left a node in float; the same words for all nodes in the same case, so that reports can group."""
    float_ns, int8_ns = _times(model, node, target)
    why = (
        "it would be no faster in int8 than in float"
        if int8_ns >= float_ns
        else "int8 would save less time than converting its tensors to int8 and back takes"
    )
    remedy = "place=smaller does it anyway" if has_weights(node) else "it would follow neighbours in int8"
    return f"by estimate from the cost table of {target.name} (not measured), {why}; {remedy}"
