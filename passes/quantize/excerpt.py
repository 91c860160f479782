"""Parts of a model as models of their own, in float and in int8, so that both can be timed against each other."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir import Model
from graphopt.passes.quantize.operators import is_activation
from graphopt.passes.quantize.placement import Plan
from graphopt.passes.quantize.ranges import QuantParams
from graphopt.passes.quantize.rewrite import Rewriter
from graphopt.runtime.target import Target

_SHOWN = 64  # integers of a constant that belong to its description: shapes, axes, pads


@dataclass(frozen=True)
class Excerpt:
    """Some operators in float and in int8. ``key`` says all that their times depend on: no names, no weights."""

    floats: Model
    int8: Model
    key: str


def excerpt(
    model: Model, target: Target, plan: Plan, members: Iterable[int], per_channel: bool = True
) -> Excerpt | None:
    """The operators at ``members`` (with the activations that they absorb), between inputs and outputs in float.

    None if a size that their time depends on is not known.
    """
    chosen = sorted({*members, *(i for i, root in plan.absorbed.items() if root in members)})
    floats = _cut_out(model, chosen)
    tensors = floats.graph.tensors().values()
    if not all(t.shape is not None and all(isinstance(d, int) for d in t.shape) for t in tensors if t.name):
        return None
    new = {old: k for k, old in enumerate(chosen)}
    inner = Plan({new[i] for i in members}, {new[i]: new[r] for i, r in plan.absorbed.items() if i in new})
    int8 = in_int8(floats, target, inner, per_channel)
    ops = ", ".join(f"{count} {op}" for op, count in sorted(Counter(n.op for n in floats.graph.nodes).items()))
    return Excerpt(floats, int8, f"int8 {ops} {mark(floats)} {mark(int8)}")


def in_int8(model: Model, target: Target, plan: Plan, per_channel: bool = True) -> Model:
    """A copy with the plan applied, of use for timing only: nothing is calibrated."""
    twin = model.copy()
    # Times do not depend on values, so any parameters do: all the same suits operators that only move values.
    params = QuantParams(1 / 128, 0 if np.iinfo(target.activation).min < 0 else 128, target.activation)
    names = {t.name for t in twin.graph.tensors().values() if is_activation(t)}
    Rewriter(twin, target, plan, dict.fromkeys(names, params), per_channel=per_channel).apply()
    return twin


def mark(model: Model) -> str:
    """A short name for what ``describe`` says."""
    return hashlib.sha256(describe(model).encode()).hexdigest()[:16]


def describe(model: Model) -> str:
    """Canonical text of a graph: operators, attributes, types, shapes; names and the values of weights are left out."""
    number: dict[int, int] = {}
    lines = [f"opset{model.opset}"]
    lines += [f"input {number.setdefault(id(t), len(number))} {t.dtype}{t.shape}" for t in model.graph.inputs]
    for node in model.graph.nodes:
        attributes = json.dumps(dict(node.attrs), sort_keys=True, default=str)
        inputs = [f"#{number[id(t)]}" if id(t) in number else _words(t) for t in node.inputs]
        for t in node.outputs:
            number[id(t)] = len(number)
        lines.append(f"{node.op}{attributes}({' '.join(inputs)}) {len(node.outputs)}")
    lines.append(f"outputs {[number[id(t)] for t in model.graph.outputs]}")
    return "\n".join(lines)


def _words(tensor: gs.Tensor) -> str:
    if not isinstance(tensor, gs.Constant):
        return "-"
    values = tensor.values
    shown = values.tolist() if values.dtype == np.int64 and values.size <= _SHOWN else ""
    return f"{values.dtype}{list(values.shape)}{shown}"


def _cut_out(model: Model, chosen: list[int]) -> Model:
    twin = model.copy()
    nodes = list(twin.graph.nodes)
    kept = [nodes[i] for i in chosen]
    ours = {id(n) for n in kept}
    given = {t.name for t in twin.graph.outputs}
    inputs: dict[str, gs.Variable] = {}
    outputs: dict[str, gs.Variable] = {}
    for node in kept:
        for t in node.inputs:
            if isinstance(t, gs.Variable) and t.name and not any(id(n) in ours for n in t.inputs):
                inputs[t.name] = t
        for t in node.outputs:
            if t.name and (t.name in given or not t.outputs or any(id(n) not in ours for n in t.outputs)):
                outputs[t.name] = t
    for node in nodes:
        if id(node) not in ours:
            node.inputs.clear()
            node.outputs.clear()
    with twin.edit() as graph:
        graph.nodes = kept
        graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
    twin.header.input_defaults.clear()
    return twin
