"""Repair after removal, without labels: each weight is refitted so that it gives what it gave before.

Layer by layer in graph order, ridge regression from the pruned network's inputs to the original network's outputs, as
in He et al. 2017 (Channel Pruning) and GRAIL; at a residual Add the target is the original sum minus what the other
branch gives now, which repairs drift as well. The last layer is then fitted to the original's probabilities. A layer is
fitted to rows of a fixed number of positions, however many images there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import networkx as nx
import numpy as np

from graphopt.analysis.labels import Labels
from graphopt.analysis.layers.quantized import is_quantized
from graphopt.analysis.layers.running import Images, Network
from graphopt.analysis.layers.sampling import obstacle
from graphopt.analysis.layers.targets import targets_of
from graphopt.ir import Model
from graphopt.ir.view import node_view
from graphopt.passes.prune.consumers import Consumer, consumers, rng_of
from graphopt.passes.prune.pairs import pair_of, refit_pair
from graphopt.passes.prune.ridge import Rows, fit
from graphopt.passes.prune.scores import gives_scores, refit_scores
from graphopt.pipeline import Context


@dataclass(frozen=True)
class Recovery:
    """How many weights were refitted, and the mean relative squared error of their outputs before and after.

    ``left``: the layers whose inputs changed and that cannot be refitted, by number, and why.
    """

    refitted: int
    images: int
    error_before: float
    error_after: float
    pairs: int = 0
    left: tuple[tuple[int, str], ...] = ()


def recover(original: Model, pruned: Model, labels: Labels, keep: np.ndarray, images: Images, ctx: Context) -> Recovery:
    """Refit the weights of ``pruned`` in place; ``labels`` and ``keep`` are what it was made from ``original`` by.

    A refit that does not lower the error on images that it was not fitted to is dropped.
    """
    changed = _changed(original, pruned, labels, keep)
    found = consumers(pruned, labels, keep, changed, images.count)
    weighted = {labels.names[c.node] for c in labels.contractions if c.scale}
    nodes = pruned.graph.nodes
    left = tuple((i, why) for i in changed if nodes[i].name in weighted and (why := obstacle(nodes[i])))
    if not found or not images.count:
        return Recovery(0, images.count, 0.0, 0.0, 0, left)
    before, after = Network(original, images, ctx.threads), Network(pruned, images, ctx.threads)
    errors: list[tuple[float, float]] = []
    pairs = 0
    numbers = {t.name: i for i, node in enumerate(pruned.graph.nodes) for t in node.outputs}
    with pruned.edit():
        rows = targets_of(before, found, partial(rng_of, ctx))
        for consumer in ctx.progress.track(found, "refitting weights", len(found)):
            targets = next(rows)
            if consumer.kept is not None:
                targets = [y[:, consumer.kept] for y in targets]
            scored = gives_scores(pruned, consumer)
            start = consumer.sampler.read(pruned.graph.nodes[consumer.index]) if scored else None
            pair = pair_of(pruned, consumer.index, numbers)
            together = refit_pair(after, pair, consumer, targets, ctx) if pair is not None else None
            pairs += together is not None and together[1] < together[0]
            errors.append(together or _refit(after, consumer, targets, ctx))
            if start is not None:
                refit_scores(after, consumer, targets, start, ctx)
    mean = np.mean(errors, axis=0)
    refitted = sum(b != a for b, a in errors)
    return Recovery(refitted, images.count, float(mean[0]), float(mean[1]), pairs, left)


def _changed(original: Model, pruned: Model, labels: Labels, keep: np.ndarray) -> list[int]:
    """Nodes whose input changed, in graph order."""
    view = node_view(pruned.graph)
    number = {node.name: index for index, node in enumerate(pruned.graph.nodes)}  # removal may add and drop nodes
    names = {labels.names[c.node] for c in labels.contractions if any(not keep[g].all() for _, _, g in c.inputs)}
    sums = [original.graph.nodes[index].outputs[0] for branch in labels.cut(keep) for index, _ in branch.sums]
    names.update(reader.name for result in sums for reader in result.outputs)
    hit = {number[name] for name in names if name in number}
    reached = view.copy()
    reached.add_edges_from(("changed", index) for index in sorted(hit))
    return sorted(nx.descendants(reached, "changed")) if hit else []


def _refit(network: Network, consumer: Consumer, targets: list[np.ndarray], ctx: Context) -> tuple[float, float]:
    """Refit one layer; its relative error on unseen images before and after."""
    node, sampler = network.model.graph.nodes[consumer.index], consumer.sampler
    weight, bias = sampler.read(node)
    name, per_image = node.inputs[0].name, consumer.per_image
    most = sum(len(y) for y in targets[::2])
    halves = [_Table(weight.shape, most, consumer.rectified) for _ in range(2)]  # of even batches, and of odd ones
    names = [name, *([consumer.skip] if consumer.skip else [])]
    for number, values in enumerate(network.tensors(names, keep=True)):
        x = sampler.inputs(node, values[name], rng_of(ctx, consumer, number), per_image)
        y, skip = targets[number], None
        if consumer.skip:
            skip = sampler.outputs(values[consumer.skip], rng_of(ctx, consumer, number), per_image)
        halves[number % 2].add(x, y, skip)
    one, two = (half.rows() for half in halves)
    before, after, solution = fit(one, two, weight, bias, intercept=sampler.can_bias(node))
    if solution is not None and is_quantized(node):  # rounding may undo what was gained
        rounded = two.error(*sampler.stored(node, *solution)) if two is not None else before
        solution, after = (solution, max(after, rounded)) if rounded < before else (None, before)
    if solution is not None:
        sampler.write(network.model, node, *solution)
    return before, after


class _Table:
    """Rows of a layer, written in place as batches come: a list to be joined would hold them twice."""

    def __init__(self, shape: tuple[int, ...], most: int, rectified: bool) -> None:
        groups, inputs, outputs = shape
        self.x = np.empty((groups, most, inputs), np.float32)
        self.y = np.empty((groups, most, outputs), np.float32)
        self.floor = np.zeros((groups, most, outputs), np.float32) if rectified else None
        self.count = 0

    def add(self, x: np.ndarray, y: np.ndarray, skip: np.ndarray | None) -> None:
        """Rows x [rows, groups, inputs] and y [rows, channels], and what is added to the layer's output, like y."""
        groups, _, outputs = self.y.shape
        at = slice(self.count, self.count + len(y))
        self.x[:, at] = x.transpose(1, 0, 2)
        self.y[:, at] = y.reshape(len(y), groups, outputs).transpose(1, 0, 2)
        if skip is not None:
            rest = skip.reshape(len(y), groups, outputs).transpose(1, 0, 2)
            self.y[:, at] -= rest
            if self.floor is not None:
                self.floor[:, at] = -rest
        self.count += len(y)

    def rows(self) -> Rows | None:
        """All of them; None where there are none."""
        if not self.count:
            return None
        floor = None if self.floor is None else self.floor[:, : self.count]
        return Rows(self.x[:, : self.count], self.y[:, : self.count], floor)
