"""Integers for weights whose rounding errors make up for each other on what the layers read in the float model.

Second moments of all layers' inputs come from a single run over some calibration images at sampled positions, and
layers are rounded independently of each other (Frantar et al. 2023, "GPTQ"; see ``rounding``). That takes a fraction
of the time of ``reconstruct``, which also repairs what earlier layers did.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.layers.running import Images, Network, fitting
from graphopt.ir import Model
from graphopt.passes.quantize.ranges import Limits, channel_caps
from graphopt.passes.quantize.refit_layers import Layer, Reconstruction, layers_of
from graphopt.passes.quantize.rounding import Grid, damped, round_to
from graphopt.passes.quantize.stored import scales_of, store
from graphopt.pipeline import Context

IMAGES = 128  # that moments are taken over, at most
_ROWS = 2048  # sampled positions of a layer over all images, at least
_ROWS_PER_INPUT = 4
_HELD = 512 << 20  # bytes of moments held at a time


@dataclass(frozen=True)
class Rounded:
    """What rounding came to: weights [groups, inputs, outputs] on their grid of ``scale``, the mean shift of the
    outputs that is left [groups, outputs], and the output error of rounding to nearest and of this one."""

    weight: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    before: float
    after: float


def compensate(
    original: Model,
    quantized: Model,
    limits: Mapping[str, Limits],
    images: Images,
    ctx: Context,
    known: MutableMapping[str, Rounded],
    *,
    biases: bool,
) -> Reconstruction:
    """Choose the integers of the layers of ``quantized`` named in ``limits`` anew, in place; scales stay.

    ``original`` is the float model with the same node names. ``biases``: they take up the mean error of rounding, else
    they stay as they are. ``known`` keeps what was found for a layer, for the next model made of the same original.
    """
    found = Reconstruction()
    layers = list(layers_of(original, quantized, limits, images, found.skipped))
    open_ = [x for x in layers if not _current(known.get(x.name), x)]
    for layer, moments in _inputs(original, open_, images, ctx):
        known[layer.name] = _round(layer, moments, biases)
    with quantized.edit():
        for layer in layers:
            result = known[layer.name]
            found.errors[layer.name] = result.before, result.after
            bias = layer.sampler.read(layer.source)[1] + layer.limits.offset
            kept = bias + result.shift if biases else layer.sampler.read(layer.node)[1]
            store(quantized, layer, result.scale, result.weight, kept)
    return found


def _current(result: Rounded | None, layer: Layer) -> bool:
    return result is not None and np.array_equal(result.scale, scales_of(layer.node, result.weight.shape))


@dataclass
class _Inputs:
    """Sums over rows of a layer's inputs x [groups, rows, inputs] and of their products."""

    rows: int
    x: np.ndarray
    xx: np.ndarray

    def add(self, x: np.ndarray) -> None:
        self.rows += x.shape[1]
        self.x += x.sum(axis=1, dtype=np.float64)
        self.xx += x.transpose(0, 2, 1) @ x


def _inputs(model: Model, layers: list[Layer], images: Images, ctx: Context) -> Iterator[tuple[Layer, _Inputs]]:
    """Moments of what each layer reads; the model runs once for as many layers as fit in memory together."""

    def size(layer: Layer) -> int:
        groups, inputs, _ = layer.sampler.read(layer.source)[0].shape
        return 8 * groups * inputs * (inputs + 1)

    network = Network(model, images, ctx.threads)
    for chunk in fitting(layers, size, _HELD):
        shapes = [layer.sampler.read(layer.source)[0].shape for layer in chunk]
        sums = [_Inputs(0, np.zeros((g, i)), np.zeros((g, i, i))) for g, i, _ in shapes]
        names = [layer.source.inputs[0].name for layer in chunk]
        batches = network.tensors(names)
        for number, values in enumerate(ctx.progress.track(batches, "looking at inputs", len(images.batches))):
            for layer, name, into in zip(chunk, names, sums, strict=True):
                rows = max(_ROWS, _ROWS_PER_INPUT * into.x.shape[1])
                per_image = min(-(-rows // max(1, images.count)), layer.per_image)
                x = layer.sampler.inputs(layer.source, values[name], layer.rng(ctx, number), per_image)
                into.add(np.ascontiguousarray(x.transpose(1, 0, 2), dtype=np.float32))
        yield from zip(chunk, sums, strict=True)


def _round(layer: Layer, moments: _Inputs, biases: bool) -> Rounded:
    real = layer.sampler.read(layer.source)[0]
    scale, n = scales_of(layer.node, real.shape), max(1, moments.rows)
    mean, xx = moments.x / n, moments.xx / n
    if biases and layer.node.op != "MatMul":  # a mean error is the bias's to take up
        xx = xx - np.einsum("gi,gj->gij", mean, mean)
    xx = damped(xx)
    grid = Grid(scale, channel_caps(real, layer.limits.most, layer.limits.reduce_range))
    weight = grid.nearest(real) * scale
    before = _error(real - weight, xx)
    chosen = round_to(real, xx, grid) * scale
    after = _error(real - chosen, xx)
    if after < before:
        weight = chosen
    power = max(_error(real, xx), 1e-30)
    shift = np.einsum("gi,gio->go", mean, real - weight)
    return Rounded(weight, scale, shift, before / power, min(after, before) / power)


def _error(change: np.ndarray, xx: np.ndarray) -> float:
    """Mean square of what a change of the weights does to the outputs."""
    return float(np.einsum("gio,gio->", change, xx @ change))
