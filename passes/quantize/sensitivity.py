"""How much each layer suffers from being quantized, and what that does to the model."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.analysis.cost import cost
from graphopt.analysis.layers.running import Network, load_images
from graphopt.data.loader import Batches
from graphopt.ir import Model
from graphopt.passes.quantize.assemble import Assembler
from graphopt.runtime.evaluate import as_scores
from graphopt.runtime.session import open_session, run_session, runnable

_WORK = 3e10  # multiply-accumulates of judging one layer: bounds the images that it takes
_FEWEST, _MOST = 32, 512
_LAYER_IMAGES = 64
_CLEAN = 120.0  # decibels that stand for no error


@dataclass(frozen=True)
class Sensitivity:
    """One layer in a model that is otherwise float: the signal to noise ratio of the scores in decibels, and the
    percentage of predictions that change; with labels, points of top-1 lost. ``layer_db``: the ratio of its own output
    in the model that is quantized throughout, errors of all layers before it included."""

    node: str
    op: str
    output_db: float
    changed: float
    top1: float | None
    layer_db: float | None

    def report(self) -> dict[str, Any]:
        """An entry of the report."""
        return {
            "node": self.node,
            "op": self.op,
            "output_sqnr_db": round(self.output_db, 2),
            "layer_sqnr_db": None if self.layer_db is None else round(self.layer_db, 2),
            "changed_predictions": round(self.changed, 3),
            "top1_drop": None if self.top1 is None else round(self.top1, 3),
        }


def sensitivities(
    assembler: Assembler, quantized: Model, images: Batches, until: float = math.inf
) -> list[Sensitivity]:
    """Every layer that could be restored, the most harmful first.

    ``quantized``: the model with all of them quantized. ``images``: what the effect is measured on, with their labels
    if they have some. Stops at the time ``until`` of the monotonic clock, with the layers that it came to.
    """
    original, ctx = assembler.original, assembler.ctx
    count = int(np.clip(_WORK / max(1, cost(original).macs), _FEWEST, _MOST))
    chosen = images.subset(count, ctx.seed) if len(images) > count else images
    before = _scores(original, chosen, ctx.threads)
    labels = None if chosen.labels is None else np.asarray(chosen.labels)
    own = dict(_layer_db(assembler, quantized))
    operators = {n.name: n.op for n in original.graph.nodes}
    found = []
    for name in ctx.progress.track(assembler.candidates, "quantizing one layer at a time", len(assembler.candidates)):
        if time.monotonic() > until:
            break
        after = _scores(assembler.alone(name), chosen, ctx.threads)
        was, now = before.argmax(axis=1), after.argmax(axis=1)
        top1 = None if labels is None else 100 * float((was == labels).mean() - (now == labels).mean())
        changed = 100 * float((was != now).mean())
        found.append(Sensitivity(name, operators[name], decibels(before, after), changed, top1, own.get(name)))
    return sorted(found, key=lambda s: (s.output_db, s.node))


def decibels(signal: np.ndarray, other: np.ndarray) -> float:
    """Variance of a signal against the mean square of what another differs from it by; at most 120."""
    noise = float(np.square(signal.astype(np.float64) - other).mean())
    power = float(signal.var(dtype=np.float64))
    return _db(power, noise)


def _db(power: float, noise: float) -> float:
    return min(_CLEAN, 10 * math.log10(power / noise)) if noise > 0 and power > 0 else _CLEAN


def _scores(model: Model, images: Batches, threads: int) -> np.ndarray:
    with runnable(model) as form:
        session = open_session(form, threads=threads)
    fixed = model.inputs[0].shape[0] if model.inputs[0].shape else None
    size = fixed if isinstance(fixed, int) else None
    rows = [as_scores(run_session(session, x, size)[0], "the model")[: len(x)] for x in images.batches(64)]
    return np.concatenate(rows)


def _layer_db(assembler: Assembler, quantized: Model) -> Iterator[tuple[str, float]]:
    """Signal to noise of what each layer computes, behind the activation that it takes in."""
    original, ctx = assembler.original, assembler.ctx
    nodes, present = original.graph.nodes, quantized.graph.tensors()
    followers = {root: i for i, root in assembler.plan.absorbed.items()}
    tensors = {}
    for i, node in enumerate(nodes):
        if node.name in assembler.candidates:
            result = nodes[followers.get(i, i)].outputs[0].name
            if result in present:
                tensors[node.name] = result
    images = load_images(original, ctx, _LAYER_IMAGES, "quantize.sensitivity")
    names = list(dict.fromkeys(tensors.values()))
    sums = {name: np.zeros(4) for name in names}  # count, sum, squares, squares of the error
    pairs = zip(
        Network(original, images, ctx.threads).tensors(names),
        Network(quantized, images, ctx.threads).tensors(names),
        strict=True,
    )
    for real, rounded in pairs:
        for name in names:
            x = real[name].astype(np.float64)
            sums[name] += (x.size, x.sum(), np.square(x).sum(), np.square(x - rounded[name]).sum())
    for node_name, name in tensors.items():
        n, total, squares, error = sums[name]
        power = squares / n - (total / n) ** 2
        yield node_name, _db(power * n, error)
