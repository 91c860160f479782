"""Convolutions that only one other convolution reads, and the rows to refit both on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.layers.quantized import is_quantized, shape_of
from graphopt.analysis.layers.running import Network
from graphopt.analysis.layers.sampling import ConvSampler, sampler_of
from graphopt.ir import Model
from graphopt.passes.prune.consumers import ROW_BYTES, Consumer, rng_of
from graphopt.passes.prune.joint import Stack, Weights, improve
from graphopt.pipeline import Context

_HELD = 6  # every so many batches are held out
_WORK = 6e9  # multiply-accumulates of one step of conjugate gradients, at most


@dataclass(frozen=True)
class Pair:
    """A convolution whose outputs, bounded by an activation between ``low`` and ``high``, one other one reads."""

    first: int
    second: int
    low: float
    high: float


def pair_of(model: Model, index: int, made_by: dict[str, int]) -> Pair | None:
    """The pair whose second convolution is node number ``index``; None where there is no such pair."""
    nodes = model.graph.nodes
    if not _plain(nodes[index]):
        return None
    tensor, low, high = nodes[index].inputs[0], -np.inf, np.inf
    captured = model.captured()
    for _ in range(2):
        if len(tensor.outputs) != 1 or model.is_output(tensor) or tensor.name in captured or not tensor.inputs:
            return None
        node = tensor.inputs[0]
        if node.op == "Relu":
            low, high = max(low, 0.0), max(high, 0.0)
        elif node.op == "Clip" and all(isinstance(t, gs.Constant) or not t.name for t in node.inputs[1:]):
            bounds = [float(t.values) if isinstance(t, gs.Constant) else None for t in node.inputs[1:]]
            bounds += [None] * (2 - len(bounds))
            low = low if bounds[0] is None else bounds[0]
            high = high if bounds[1] is None else bounds[1]
        else:
            return Pair(made_by[tensor.name], index, low, high) if _plain(node) else None
        tensor = node.inputs[0]
    return None


def _plain(node: gs.Node) -> bool:
    whole = int(node.attrs.get("group", 1)) == 1
    return whole and isinstance(sampler_of(node), ConvSampler) and not is_quantized(node)


def refit_pair(
    network: Network, pair: Pair, consumer: Consumer, targets: list[np.ndarray], ctx: Context
) -> tuple[float, float] | None:
    """Refit both convolutions of a pair in place; the relative error on images held out, before and after.

    ``targets``: what the second should give, by batch, as for refitting it alone. None where the images are too few to
    hold any out, or the layers so wide that not even a position of each image could be afforded.
    """
    model, sampler = network.model, consumer.sampler
    assert isinstance(sampler, ConvSampler)  # or there is no pair
    first, second = model.graph.nodes[pair.first], model.graph.nodes[pair.second]
    rows = min(consumer.rows, _row_count(shape_of(first.inputs[1]), sampler.read_by_row(second)))
    if len(targets) < _HELD or rows < network.images.count:
        return None
    network.forget(second.inputs[0].name)
    weights = _weights(sampler, first, second)
    stack, held = _stacks(
        network, first, second, consumer, targets, min(rows // network.images.count, consumer.per_image), ctx
    )
    found, before, after = improve(stack, held, (pair.low, pair.high), weights)
    if after < before:
        sampler.write(model, first, found.first[None], found.bias[None])
        channels = found.bias.size
        by_channel = found.second.reshape(-1, channels, found.rest.size).transpose(1, 0, 2)
        sampler.write(model, second, by_channel.reshape(1, -1, found.rest.size), found.rest[None])
    return before, after


def _row_count(first: list[int], places: float) -> int:
    """How many rows memory and time allow for a first weight of this shape, that is read at so many places a row."""
    inputs = int(np.prod(first[1:]))
    return int(min(ROW_BYTES / (4 * places * inputs), _WORK / (2 * places * inputs * first[0])))


def _weights(sampler: ConvSampler, first: gs.Node, second: gs.Node) -> Weights:
    (one,), (bias,) = sampler.read(first)
    (two,), (rest,) = sampler.read(second)
    by_tap = two.reshape(bias.size, -1, rest.size).transpose(1, 0, 2)
    return Weights(one, bias, by_tap.reshape(-1, rest.size), rest)


def _stacks(
    network: Network,
    first: gs.Node,
    second: gs.Node,
    consumer: Consumer,
    targets: list[np.ndarray],
    per_image: int,
    ctx: Context,
) -> tuple[Stack, Stack]:
    """Rows of the pair: those to fit to, and those held out."""
    parts: tuple[list[Stack], list[Stack]] = ([], [])
    name = first.inputs[0].name
    names = [name, *([consumer.skip] if consumer.skip else [])]
    for number, values in enumerate(network.tensors(names, keep=True)):
        x, skip = values[name], None
        if consumer.skip:
            skip = consumer.sampler.outputs(values[consumer.skip], rng_of(ctx, consumer, number), consumer.per_image)
        rng = rng_of(ctx, consumer, number)
        parts[number % _HELD == _HELD - 1].append(
            _stack(first, second, x, targets[number], skip, consumer, per_image, rng)
        )
    return Stack.join(parts[0]), Stack.join(parts[1])


def _stack(
    first: gs.Node,
    second: gs.Node,
    x: np.ndarray,
    y: np.ndarray,
    skip: np.ndarray | None,
    consumer: Consumer,
    per_image: int,
    rng: np.random.Generator,
) -> Stack:
    """Rows of one batch: the first ``per_image`` positions of those that ``y`` and ``skip`` were taken at."""
    size = ConvSampler.sides(first, (x.shape[2], x.shape[3]))
    row, column = consumer.sampler.places(ConvSampler.sides(second, size), rng, consumer.per_image)
    every = len(row)
    row, column = row[:per_image], column[:per_image]
    top, left = second.attrs.get("pads", [0, 0, 0, 0])[:2]
    down, across = (a - b for a, b in zip(ConvSampler.taps(second, row, column), (top, left), strict=True))
    inside = (down >= 0) & (down < size[0]) & (across >= 0) & (across < size[1])
    places, index = np.unique(np.where(inside, down * size[1] + across, -1), return_inverse=True)
    patches = ConvSampler.patches(first, x, *np.divmod(places.clip(0), size[1]))
    starts = np.arange(len(x))[:, None, None] * len(places)

    def rows(values: np.ndarray) -> np.ndarray:
        chosen = values.reshape(len(x), every, -1)[:, : len(row)]
        return np.ascontiguousarray(chosen.reshape(len(x) * len(row), -1), dtype=np.float32)

    want = rows(y)
    floor = np.zeros_like(want) if consumer.rectified else None
    if skip is not None:
        rest = rows(skip)
        want -= rest
        floor = -rest if consumer.rectified else None
    return Stack(
        patches.reshape(len(x) * len(places), -1),
        np.tile(places >= 0, len(x)),
        (index.reshape(inside.shape) + starts).reshape(len(want), -1),
        want,
        floor,
    )
