"""Importance by the first-order Taylor expansion of what a channel does to the outputs, without labels.

Molchanov et al. 2019 ("Importance estimation for neural network pruning") put a gate on each channel and take the
squared derivative of the loss with respect to it. Without labels the loss is the distance of the outputs to the
original ones, whose derivative vanishes at the original weights; what is left is its second order, the mean of
J' F J with J the derivative of the outputs with respect to the gate and F the Fisher information of the classes (as in
Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning"): half of the Kullback-Leibler
divergence that closing the gate would cause if the network were linear.

ONNX Runtime has no backward pass, so J is taken by closing a gate a little. That is exact for a piecewise linear
network and needs no derivative of any operator, but one run for each channel: of the part of the network that
depends on it, on as many images as a fixed amount of work allows.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.cost import CostAnalysis
from graphopt.analysis.labels import Family, Labels
from graphopt.analysis.layers.running import Images, Network
from graphopt.ir import Model
from graphopt.ir.view import node_view, reads
from graphopt.passes.prune.curves import log_probabilities
from graphopt.passes.prune.importance import Channels, criterion
from graphopt.runtime.session import open_session, run_feeds, runnable

_WORK = 1.5e12  # multiply-accumulates, roughly
_IMAGES = (8, 128)  # at least and at most
_STEP = 0.05  # by which a gate is closed
_COARSE = 0.5  # where activations are quantized: less would be lost among their steps


@criterion("taylor", needs_images=True)
def taylor(channels: Channels) -> np.ndarray:
    """Squared derivative of the class probabilities with respect to a gate on the channel, in Fisher's metric."""
    assert channels.images is not None
    scores = np.zeros(channels.labels.count)
    images = _some(channels)
    step = _COARSE if any(n.op == "QuantizeLinear" for n in channels.model.graph.nodes) else _STEP
    for family in channels.ctx.progress.track(channels.families, "closing gates", len(channels.families)):
        part = _Part(channels.model, channels.labels, family, images, channels.ctx.threads)
        for group in family.groups:
            scores[group] = part.sensitivity(int(group), step)
    return scores


def _some(channels: Channels) -> Images:
    """As many images as the work allows."""
    assert channels.images is not None
    gates = sum(f.groups.size for f in channels.families)
    macs = channels.ctx.analysis(CostAnalysis(), channels.model).macs
    count = int(np.clip(_WORK / max(1.0, 0.5 * gates * macs), *_IMAGES))
    few = channels.images.first(count)
    shape = channels.model.inputs[0].shape
    if shape and isinstance(shape[0], int):  # whole batches
        return few
    rest = count - sum(len(b) for b in few.batches[:-1])
    return Images((*few.batches[:-1], few.batches[-1][:rest]))


@dataclass(frozen=True)
class _Gate:
    """An input of the network that multiplies a tensor along its channels."""

    name: str
    groups: np.ndarray
    trailing: int
    dtype: np.dtype

    def values(self, group: int, step: float) -> np.ndarray:
        """Open for all groups but one, which is closed by ``step``."""
        factor = np.where(self.groups == group, 1.0 - step, 1.0)
        return factor.astype(self.dtype).reshape([-1] + [1] * self.trailing)


class _Part:
    """The part of a network that depends on one family, with gates on its channels, on some images."""

    def __init__(self, model: Model, labels: Labels, family: Family, images: Images, threads: int) -> None:
        twin = model.copy()
        with twin.edit():
            self.gates, gated = _gated(twin, labels, family)
            names, outputs = _boundary(twin, gated)
            tensors = twin.graph.tensors()
            for name in names:
                tensors[name].inputs.clear()
            twin.graph.outputs = [tensors[n] for n in outputs]
            twin.graph.cleanup()
            alive = twin.graph.tensors()
            gates = [g.name for g in self.gates]
            twin.graph.inputs = [alive[n] for n in (*names, *gates) if n in alive]
        if not outputs:  # no output depends on these channels
            self.gates = []
            return
        found = list(Network(model, images, threads).tensors([*names, *outputs]))
        self.before = [[values[n] for n in outputs] for values in found]
        self.feeds = [{t.name: values[t.name] for t in twin.graph.inputs if t.name not in gates} for values in found]
        with runnable(twin) as form:
            self.session = open_session(form, threads=threads)
        self.images = images.count

    def sensitivity(self, group: int, step: float) -> float:
        """Mean over images of J' F J for one group."""
        if not self.gates:
            return 0.0
        gates = {g.name: g.values(group, step) for g in self.gates}
        total = 0.0
        for feed, before in zip(self.feeds, self.before, strict=True):
            for a, b in zip(before, run_feeds(self.session, feed | gates), strict=True):
                total += _squared(a, b)
        return total / (self.images * step**2)


def _squared(before: np.ndarray, after: np.ndarray) -> float:
    """Squared length of a small change of the outputs, summed over images: in Fisher's metric of class probabilities,
    that is the mean square of the change of their logarithms; relative to the variance of any other output."""
    before, after = before.astype(np.float64), after.astype(np.float64)
    if before.ndim == 2 and before.shape[1] > 1:
        p, q = log_probabilities(before), log_probabilities(after)
        return float((np.exp(p) * (q - p) ** 2).sum())
    return float(np.square(after - before).sum() / max(float(before.var()), 1e-12))


def _gated(twin: Model, labels: Labels, family: Family) -> tuple[list[_Gate], list[int]]:
    """Put gates where a family's channels are summed over; these, and the numbers of the new nodes."""
    mine = np.zeros(labels.count, dtype=bool)
    mine[family.groups] = True
    nodes = list(twin.graph.nodes)
    gates: dict[tuple[bytes, int], tuple[_Gate, gs.Variable]] = {}
    before: dict[int, list[gs.Node]] = {}
    for contraction in labels.contractions:
        for slot, axis, groups in contraction.inputs:
            if not mine[groups].any():
                continue
            tensor = nodes[contraction.node].inputs[slot]
            dtype = np.dtype(np.float32 if tensor.dtype is None else tensor.dtype)
            trailing = len(labels.tensors[tensor.name]) - 1 - axis
            key = (groups.tobytes(), trailing)
            if key not in gates:
                gate = _Gate(twin.fresh_name("gate"), groups, trailing, dtype)
                gates[key] = (gate, gs.Variable(gate.name, dtype=dtype, shape=[groups.size] + [1] * trailing))
            result = gs.Variable(twin.fresh_name("gated"), dtype=tensor.dtype, shape=tensor.shape)
            before.setdefault(contraction.node, []).append(
                gs.Node("Mul", twin.fresh_name("gating"), inputs=[tensor, gates[key][1]], outputs=[result])
            )
            nodes[contraction.node].inputs[slot] = result
    twin.graph.nodes = [n for i, node in enumerate(nodes) for n in (*before.get(i, ()), node)]
    new = {id(n) for added in before.values() for n in added}
    return [gate for gate, _ in gates.values()], [i for i, n in enumerate(twin.graph.nodes) if id(n) in new]


def _boundary(twin: Model, gated: list[int]) -> tuple[list[str], list[str]]:
    """Tensors that the nodes behind the gates read and do not make, which are computed once; outputs that they make."""
    view = node_view(twin.graph)
    view.add_edges_from(("gates", index) for index in gated)
    behind = nx.descendants(view, "gates") if gated else set()
    nodes, tensors = twin.graph.nodes, twin.graph.tensors()
    made = {t.name for i in behind for t in nodes[i].outputs}
    needed = dict.fromkeys(name for i in sorted(behind) for name in reads(nodes[i]))
    given = {t.name for t in twin.graph.inputs}
    read = [
        name
        for name in needed
        if name not in made and name in tensors and (tensors[name].inputs or name in given)  # not a constant, no gate
    ]
    return read, [t.name for t in twin.outputs if t.name in made]
