"""Which operators run in int8: what each could do, what it would take, and the cheapest assignment of all.

All costs and kernels come from the target; see ``cut`` for how the cheapest assignment is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.ir.view import is_standard
from graphopt.passes.quantize.cut import Network
from graphopt.passes.quantize.estimate import elements, times
from graphopt.passes.quantize.operators import (
    clip_bounds,
    data_inputs,
    has_weights,
    is_activation,
    sole_consumer,
)
from graphopt.passes.quantize.reasons import blocked, too_dear
from graphopt.pipeline import Skipped
from graphopt.pipeline.patterns import matching
from graphopt.runtime.target import Target

_FOR_ANY_PRICE = 10**15  # nanoseconds
_LONELY = "behind an operator in float it would be slower in int8 than in float"


@dataclass
class Plan:
    """What runs in int8, by node position in the graph, and why the rest does not.

    ``absorbed`` maps an activation's position to that of the operator that takes it in.
    """

    int8: set[int] = field(default_factory=set)
    absorbed: dict[int, int] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def decide(
    model: Model,
    target: Target,
    keep_float: tuple[str, ...] = (),
    all_weights: bool = False,
) -> Plan:
    """Place the operators of the main graph on ``target``. Deterministic; does not change the model.

    ``all_weights`` puts whatever has weights in int8, also where that costs time. Costs are those of the shapes that
    the model states: give it one image (``with_batch``), or what merges the batch with another axis counts as one.
    """
    plan = Plan()
    nodes = list(model.graph.nodes)
    position = {id(n): i for i, n in enumerate(nodes)}
    floats = [i for i, n in enumerate(nodes) if any(is_activation(t) for t in n.outputs)]
    reasons = {i: reason for i in floats if (reason := blocked(nodes[i], target, keep_float))}
    for i in floats:
        producer = _absorbing(model, nodes[i], target, position)
        if producer is not None and producer not in reasons and matching(nodes[i].name, keep_float) is None:
            plan.absorbed[i] = producer
            reasons.pop(i, None)
    plan.int8 = _cheapest(model, target, plan, floats, reasons, position, all_weights)
    while lonely := _lonely(model, target, plan, position):
        reasons.update(dict.fromkeys(lonely, _LONELY))
        plan.int8 = _cheapest(model, target, plan, floats, reasons, position, all_weights)
    for i in floats:
        if plan.absorbed.get(i, i) in plan.int8:
            continue
        node = nodes[i]
        if plan.absorbed.pop(i, None) is not None:
            continue  # it follows its operator, which is reported
        if node.op in target.fused_behind and _behind_int8(model, target, plan, position, node):
            continue
        plan.skipped.append(Skipped(node.name, node.op, reasons.get(i) or too_dear(model, node, target)))
    plan.skipped.extend(
        Skipped(n.name, n.op, "its subgraphs are left as they are: export the model without control flow")
        for n in nodes
        if any(True for _ in n.subgraphs())
    )
    return plan


def _cheapest(
    model: Model,
    target: Target,
    plan: Plan,
    floats: list[int],
    reasons: Mapping[int, str],
    position: dict[int, int],
    all_weights: bool,
) -> set[int]:
    nodes = model.graph.nodes
    network = Network(target)
    for i in floats:
        if i in plan.absorbed:
            continue
        if i in reasons:
            network.forbid(i)
        else:
            float_ns, int8_ns = times(model, nodes[i], target)
            network.operator(i, _FOR_ANY_PRICE if all_weights and has_weights(nodes[i]) else float_ns, int8_ns)
    for i in floats:
        for tensor in nodes[i].outputs:
            root = plan.absorbed.get(i, i)
            readers = _readers(model, tensor, position, plan)
            joining = frozenset()
            if tensor.shape is not None and len(tensor.shape) == 4:
                joining = frozenset(r for r in readers if r is not None and nodes[r].op in target.joining_ops)
            network.tensor(root, readers, elements(tensor), nodes[root].op, joining)
    for tensor in model.graph.inputs:
        if is_activation(tensor):
            network.tensor(None, _readers(model, tensor, position, plan), elements(tensor), "")
    return network.solve()


def _lonely(model: Model, target: Target, plan: Plan, position: dict[int, int]) -> list[int]:
    """Operators in int8 that are slow there because what they read comes from float."""
    found = []
    for i in sorted(plan.int8):
        node = model.graph.nodes[i]
        if node.op in target.int8_followers:
            producers = [position.get(id(n), -1) for n in node.inputs[0].inputs]
            if not any(plan.absorbed.get(k, k) in plan.int8 for k in producers):
                found.append(i)
    return found


def _behind_int8(model: Model, target: Target, plan: Plan, position: dict[int, int], node: gs.Node) -> bool:
    """Whether a chain of operators that the runtime fuses leads to the node from one in int8."""
    while node.op in target.fused_behind and node.inputs[0].inputs:
        node = node.inputs[0].inputs[0]
    return position.get(id(node), -1) in plan.int8


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


def _absorbing(model: Model, node: gs.Node, target: Target, position: dict[int, int]) -> int | None:
    """The position of the operator whose quantized output makes this activation free."""
    if target.symmetric_activations or node.op not in target.absorbed_ops or not is_standard(node):
        return None  # a symmetric range does not end at 0
    if not node.inputs[0].inputs:
        return None
    producer = node.inputs[0].inputs[0]
    alone = sole_consumer(model, node.inputs[0]) is node
    if not alone or producer.op not in target.int8_ops or clip_bounds(node) is None:
        return None
    return position[id(producer)]
