"""Repair after removal, without labels: each weight is refitted so that it gives what it gave before.

Layer by layer in graph order, ridge regression from the pruned network's inputs to the original network's outputs, as
in He et al. 2017 (Channel Pruning) and GRAIL; at a residual Add the target is the original sum minus what the other
branch gives now, which repairs drift as well. Only second moments are kept, so memory does not grow with the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.cost import CostAnalysis
from graphopt.analysis.labels import Labels
from graphopt.errors import ModelError
from graphopt.ir import Model
from graphopt.ir.view import node_view
from graphopt.passes.prune.ridge import Moments, fit
from graphopt.passes.prune.sampling import Sampler, sampler_of
from graphopt.pipeline import Context
from graphopt.runtime.session import open_session, run_session

_IMAGES = 512
_FEWEST = 64
_BATCH = 32
_ROWS = 12288  # sampled positions per layer over all images
_STORED = 192 << 20  # bytes of original outputs held at a time
_WORK = 1.5e12  # multiply-accumulates that forward passes may take in all, about a minute of one core


@dataclass(frozen=True)
class Recovery:
    """How many weights were refitted, and the mean relative squared error of their outputs before and after."""

    refitted: int
    images: int
    error_before: float
    error_after: float


@dataclass(frozen=True)
class _Consumer:
    """A layer to refit: node number, how its rows are sampled, and the tensors that make up its target."""

    index: int
    sampler: Sampler
    target: str
    skip: str | None
    kept: np.ndarray | None


def recover(original: Model, pruned: Model, labels: Labels, keep: np.ndarray, ctx: Context) -> Recovery:
    """Refit the weights of ``pruned`` in place; ``labels`` and ``keep`` are what it was made from ``original`` by.

    A refit that does not lower the error on images that it was not fitted to is dropped.
    """
    consumers = _consumers(original, pruned, labels, keep)
    if not consumers:
        return Recovery(0, 0, 0.0, 0.0)
    images = _load(pruned, ctx, len(consumers))
    errors: list[tuple[float, float]] = []
    refitted = 0
    with pruned.edit():
        for chunk in ctx.progress.track(list(_chunks(consumers, original, images.count)), "refitting weights"):
            targets = _targets(original, chunk, ctx, images)
            for consumer, rows in zip(chunk, targets, strict=True):
                before, after, changed = _refit(pruned, consumer, rows, ctx, images)
                errors.append((before, after))
                refitted += changed
    mean = np.mean(errors, axis=0)
    return Recovery(refitted, images.count, float(mean[0]), float(mean[1]))


def _consumers(original: Model, pruned: Model, labels: Labels, keep: np.ndarray) -> list[_Consumer]:
    """Layers whose input changed, in graph order."""
    nodes = pruned.graph.nodes
    view = node_view(pruned.graph)
    hit = {c.node for c in labels.contractions if any(not keep[g].all() for _, _, g in c.inputs)}
    reached = view.copy()
    reached.add_edges_from(("changed", index) for index in sorted(hit))
    changed = nx.descendants(reached, "changed") if hit else set()
    made_by = {t.name: i for i, node in enumerate(nodes) for t in node.outputs}
    found = []
    for index in sorted(changed):
        sampler = sampler_of(nodes[index])
        if sampler is None:
            continue
        out = nodes[index].outputs[0]
        target, skip = _residual(pruned, out, index, made_by)
        axes = labels.tensors.get(target, [])
        at = sampler.channel_axis if sampler.channel_axis >= 0 else len(axes) - 1
        groups = axes[at] if axes else None
        kept = None if groups is None or keep[groups].all() else keep[groups]
        found.append(_Consumer(index, sampler, target, skip, kept))
    return found


def _residual(model: Model, out: gs.Tensor, index: int, made_by: dict[str, int]) -> tuple[str, str | None]:
    """Target tensor, and what to subtract from it: the sum of a residual block and its finished branch."""
    users = out.outputs
    if len(users) == 1 and users[0].op == "Add" and not model.is_output(out):
        other = next((t for t in users[0].inputs if t is not out), None)
        ready = other is not None and made_by.get(other.name, index) < index
        if ready and other is not None and other.shape is not None and other.shape == out.shape:
            return users[0].outputs[0].name, other.name
    return out.name, None


@dataclass(frozen=True)
class _Images:
    """Batches of calibration images, decoded once: every layer needs them again."""

    batches: tuple[np.ndarray, ...]
    count: int
    fixed: int | None  # the batch size that the model insists on

    @property
    def per_image(self) -> int:
        """Sampled positions of an image."""
        return max(1, _ROWS // max(1, self.count))


def _load(model: Model, ctx: Context, layers: int) -> _Images:
    port = model.inputs[0]
    macs = max(1, ctx.analysis(CostAnalysis(), model).macs)
    affordable = int(_WORK / (0.6 * macs * layers))
    limit = min(len(ctx.calibration), _IMAGES, max(_FEWEST, affordable))
    fixed = port.shape[0] if port.shape and isinstance(port.shape[0], int) else None
    batches: list[np.ndarray] = []
    held = count = 0
    for batch in ctx.calibration.batches(fixed or _BATCH, limit=limit):
        batches.append(np.asarray(batch, dtype=port.dtype))
        held, count = held + batches[-1].nbytes, count + len(batch)
        if held > _STORED:
            break
    return _Images(tuple(batches), count, fixed)


def _chunks(consumers: list[_Consumer], original: Model, images: int) -> Iterator[list[_Consumer]]:
    """Runs of layers whose sampled original outputs fit in memory together."""
    tensors = original.graph.tensors()
    chunk: list[_Consumer] = []
    held = 0
    for consumer in consumers:
        shape = tensors[consumer.target].shape
        channels = int(shape[consumer.sampler.channel_axis]) if shape else 1
        size = 4 * channels * max(_ROWS, images)
        if chunk and held + size > _STORED:
            yield chunk
            chunk, held = [], 0
        chunk.append(consumer)
        held += size
    yield chunk


def _targets(original: Model, chunk: list[_Consumer], ctx: Context, images: _Images) -> list[list[np.ndarray]]:
    """Original outputs of each layer of the chunk at its sampled positions, by batch: [rows, kept channels]."""
    rows: list[list[np.ndarray]] = [[] for _ in chunk]
    for number, values in enumerate(_activations(original, [c.target for c in chunk], ctx, images)):
        for consumer, into in zip(chunk, rows, strict=True):
            y = consumer.sampler.outputs(values[consumer.target], _rng(ctx, consumer, number), images.per_image)
            into.append(y if consumer.kept is None else y[:, consumer.kept])
    return rows


def _rng(ctx: Context, consumer: _Consumer, number: int) -> np.random.Generator:
    """Positions are drawn anew for every batch, and alike for the original and the pruned network."""
    return ctx.rng(f"prune.recover.{consumer.index}.{number}")


def _activations(model: Model, names: list[str], ctx: Context, images: _Images) -> Iterator[dict[str, np.ndarray]]:
    """Named tensors on the calibration images, batch by batch; only what they need is run."""
    twin = model.copy()
    source = twin.inputs[0].name
    tensors = twin.graph.tensors()
    wanted = list(dict.fromkeys(n for n in names if n != source))
    session = None
    if wanted:
        twin.graph.outputs = [tensors[n] for n in wanted]
        twin.graph.cleanup()
        session = open_session(twin.to_bytes(), threads=ctx.threads)
    for batch in images.batches:
        values = {source: batch}
        if session is not None:
            values.update(zip(wanted, run_session(session, batch, images.fixed), strict=True))
        yield values


def _refit(
    pruned: Model, consumer: _Consumer, targets: list[np.ndarray], ctx: Context, images: _Images
) -> tuple[float, float, int]:
    node = pruned.graph.nodes[consumer.index]
    sampler = consumer.sampler
    weight, bias = sampler.read(node)
    names = [node.inputs[0].name, *([consumer.skip] if consumer.skip else [])]
    half = (Moments(weight.shape), Moments(weight.shape))
    for number, values in enumerate(_activations(pruned, names, ctx, images)):
        x = sampler.inputs(node, values[names[0]], _rng(ctx, consumer, number), images.per_image)
        y = targets[number]
        if consumer.skip:
            y = y - sampler.outputs(values[consumer.skip], _rng(ctx, consumer, number), images.per_image)
        half[number % 2].add(x, y)
    before, after, solution = fit(half[0], half[1], weight, bias, intercept=sampler.can_bias(node))
    if solution is None:
        return before, before, 0
    try:
        sampler.write(pruned, node, *solution)
    except ModelError:
        return before, before, 0
    return before, after, 1
