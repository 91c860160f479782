"""Proof by execution: removing channels must do exactly what masking them to zero does."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels import Labels
from graphopt.analysis.layers.quantized import unrounded
from graphopt.errors import GraphoptError
from graphopt.ir import Model
from graphopt.passes.prune.pieces import compare_pieces
from graphopt.passes.prune.surgery import remove
from graphopt.pipeline.context import Context
from graphopt.runtime.equivalence import compare_outputs
from graphopt.runtime.feeds import model_feeds
from graphopt.runtime.session import open_session, run_feeds

RTOL = 1e-4
BATCHES = (1, 3)
Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Verdict:
    """Whether pruned and masked model agree, how far apart they are relative to the output's magnitude, and why not."""

    holds: bool
    error: float
    reason: str = ""


def masked(model: Model, labels: Labels, keep: np.ndarray) -> Model:
    """A copy of ``model`` in which the groups that do not stay are multiplied by zero where they are summed over.

    At the contractions, because there a channel's value enters others; before them it may pass through operators
    that do not map zero to zero. A residual branch that goes as a whole is so at the sum that it ends in.
    """
    twin = model.copy()
    with twin.edit() as graph:
        nodes = list(graph.nodes)
        made: dict[tuple[str, int, bytes], gs.Variable] = {}
        before: dict[int, list[gs.Node]] = {}
        for contraction in labels.contractions:
            node = nodes[contraction.node]
            for slot, axis, groups in contraction.inputs:
                kept = keep[groups]
                if kept.all():
                    continue
                tensor = node.inputs[slot]
                key = (tensor.name, axis, kept.tobytes())
                if key not in made:
                    dtype = np.float32 if tensor.dtype is None else tensor.dtype
                    rank = len(labels.tensors[tensor.name])
                    factor = kept.astype(dtype).reshape([-1] + [1] * (rank - 1 - axis))
                    mask, made[key] = _times(twin, tensor, factor)
                    before.setdefault(contraction.node, []).append(mask)
                node.inputs[slot] = made[key]
        for branch in labels.cut(keep):
            for index, slot in branch.sums:
                tensor = nodes[index].inputs[1 - slot]
                nothing = np.zeros((), np.float32 if tensor.dtype is None else tensor.dtype)
                mask, nodes[index].inputs[1 - slot] = _times(twin, tensor, nothing)
                before.setdefault(index, []).append(mask)
        graph.nodes = [n for i, node in enumerate(nodes) for n in (*before.get(i, ()), node)]
    return twin


def _times(model: Model, tensor: gs.Tensor, factor: np.ndarray) -> tuple[gs.Node, gs.Variable]:
    """A node that multiplies a tensor by a constant, and its result."""
    result = gs.Variable(model.fresh_name("masked"), dtype=tensor.dtype, shape=tensor.shape)
    inputs = [tensor, model.constant("keep", factor)]
    return gs.Node("Mul", model.fresh_name("mask"), inputs=inputs, outputs=[result]), result


def proof_feeds(model: Model, ctx: Context) -> list[dict[str, np.ndarray]]:
    """Random inputs of batches 1 and 3 (or the batch that the model fixes), and calibration images alike."""
    return model_feeds(model, ctx.calibration, BATCHES, int(ctx.rng("prune.proof").integers(1 << 31)))


def check(model: Model, labels: Labels, keep: np.ndarray, feeds: Feeds) -> Verdict:
    """Prune a copy of ``model`` and compare it with the masked one on ``feeds``; ONNX Runtime must also load and
    run it with its optimizations on. Quantized activations are compared without their rounding.

    Where outputs differ, it may be that the model amplifies rounding: then the comparison is made piece by piece.
    """
    try:
        pruned = model.copy()
        remove(pruned, labels, keep)
        data = pruned.to_bytes()
        twins = unrounded(masked(model, labels, keep)), unrounded(pruned)
        found = compare_outputs(*(twin.to_bytes() for twin in twins), feeds, rtol=RTOL)
        if not found.equal and math.isfinite(found.max_rel):
            found = compare_pieces(*twins, labels, keep, feeds, RTOL)
        if not found.equal:
            return Verdict(False, found.max_rel, found.reason)
        session = open_session(data)
        for feed in feeds:
            run_feeds(session, feed)
        return Verdict(True, found.max_rel)
    except GraphoptError as error:
        return Verdict(False, math.inf, error.message)


def guilty(count: int, holds: Callable[[int], bool]) -> int:
    """Index of the family at which the proof stops holding, when families are added one by one.

    ``holds(k)`` proves the first ``k`` of ``count``; it is true for none and false for all. Takes log2(count)
    proofs.
    """
    return bisect_left(range(1, count), True, key=lambda k: not holds(k))
