"""From a plan to the parameters of every tensor that it quantizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import networkx as nx
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.activations import ActivationStatistics, Method
from graphopt.ir import Model
from graphopt.passes.quantize.operators import clip_bounds, data_inputs, is_activation
from graphopt.passes.quantize.placement import Plan, outputs_in_int8
from graphopt.passes.quantize.ranges import QuantParams, activation_params
from graphopt.pipeline import Context

# Ops whose output's range is known without looking: (low, high) and the steps between them.
_KNOWN = {"Sigmoid": (0.0, 1.0, 256), "Softmax": (0.0, 1.0, 256), "HardSigmoid": (0.0, 1.0, 255)}


@dataclass(frozen=True)
class Calibrated:
    """Parameters by tensor name, of all tensors that int8 operators read or write; channel means of those that a Conv
    or Gemm reads."""

    params: dict[str, QuantParams]
    means: dict[str, np.ndarray]


def calibrate(
    model: Model,
    ctx: Context,
    plan: Plan,
    percentile: float = 100.0,
    images: int | None = None,
    method: Method = "percentile",
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Calibrated:
    """Look at the calibration images once, and choose parameters.

    Tensors that operators only move between each other share one set. With the method ``percentile``, that share of the
    values lies inside the range; 100 takes the extremes. ``ranges`` are those known beforehand, by tensor name.
    """
    target = ctx.target
    nodes = model.graph.nodes
    chosen = [nodes[i] for i in sorted(plan.int8)]
    tensors = model.graph.tensors()
    moving = [n for n in chosen if n.op in target.passthrough_ops or n.op in target.integer_ops]
    wanted = outputs_in_int8(model, target, plan)
    wanted |= {t.name for n in chosen for t in data_inputs(n, target) if is_activation(t)}
    groups = nx.Graph()
    groups.add_nodes_from(name for name in tensors if name in wanted)
    for node in moving:
        groups.add_edges_from((node.inputs[0].name, t.name) for t in node.outputs if is_activation(t))
    # What a moving operator writes lies within what it reads (zeros of a Pad are in every range): only the tensors
    # that come from elsewhere need a look.
    moved = {t.name for n in moving for t in n.outputs}
    members = [sorted(c) for c in nx.connected_components(groups)]
    known = dict(ranges or {})
    for node in chosen:
        if node.op in _KNOWN:
            low, high, steps = _KNOWN[node.op]
            known[node.outputs[0].name] = (low, low + (high - low) / steps * 255)
    weighted = {n.inputs[0].name for n in chosen if n.op in ("Conv", "Gemm")}
    ask = tuple(n for n in groups if (n not in moved and n not in known) or n in weighted)
    kept: Literal["extremes", "histogram"] = "histogram"
    if method in ("minmax", "average") or (method == "percentile" and percentile >= 100):
        kept = "extremes"
    statistics = ctx.analysis(ActivationStatistics(ask, kept, images), model)
    levels = np.iinfo(target.activation).max - np.iinfo(target.activation).min + 1
    params: dict[str, QuantParams] = {}
    for names in members:
        ranges = [
            known[n] if n in known else _trim(model, tensors[n], statistics[n].bounds(method, percentile, levels))
            for n in names
            if n not in moved
        ]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
        shared = activation_params(low, high, target.activation, target.symmetric_activations)
        params.update(dict.fromkeys(names, shared))
    means = {n: m for n in groups if n in weighted and (m := statistics[n].channel_means) is not None}
    return Calibrated(params, means)


def _trim(model: Model, tensor: gs.Tensor, found: tuple[float, float]) -> tuple[float, float]:
    """Cut off what the readers do not tell apart: x * HardSigmoid(x) is 0 below -beta/alpha.

    A Clip's output that is 0 on all images gets the bounds of the Clip, which the range may have to stand in for.
    """
    if found == (0.0, 0.0) and tensor.inputs and tensor.inputs[0].op == "Clip":
        bounds = clip_bounds(tensor.inputs[0]) or found
        return bounds if np.isfinite(bounds).all() else found
    gates = [n for n in tensor.outputs if n.op == "HardSigmoid"]
    if model.is_output(tensor) or tensor.name in model.captured():
        return found
    if len(gates) != 1 or not _only_gated(tensor, gates[0], tensor.outputs):
        return found
    alpha, beta = gates[0].attrs.get("alpha", 0.2), gates[0].attrs.get("beta", 0.5)
    return (max(found[0], -beta / alpha), found[1]) if alpha > 0 else found


def _only_gated(tensor: gs.Tensor, gate: gs.Node, readers: Iterable[gs.Node]) -> bool:
    y = gate.outputs[0]
    return all(
        n is gate or (n.op == "Mul" and any(t is tensor for t in n.inputs) and any(t is y for t in n.inputs))
        for n in readers
    )
