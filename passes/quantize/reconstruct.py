"""Weights and biases that make the quantized model give what the float model gives, layer by layer.

Each layer is fitted to what it reads in the quantized model, layers before it fitted already, so errors do not add up;
its target is what the float model computes, at a residual Add the sum less what the other branch gives now. Weights
that reproduce it best (ridge regression) are rounded for the least error on the same inputs; the bias takes the mean
that is left (bias correction as in Nagel et al. 2019, but in sequence and on measured inputs). Weights
other than the float model's are only taken where, fitted to half of the images, they serve the other half.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphopt.analysis.layers.moments import Moments
from graphopt.analysis.layers.running import Images, Network
from graphopt.ir import Model
from graphopt.passes.quantize.ranges import Limits, channel_caps, least_scales
from graphopt.passes.quantize.refit_layers import Layer, Reconstruction, layers_of, original_outputs
from graphopt.passes.quantize.rounding import Grid, best_scales, damped, round_to
from graphopt.passes.quantize.stored import input_scale, scales_of, store
from graphopt.pipeline import Context

_STRENGTH = 1e-2  # of the ridge
_RATIOS = np.linspace(1.0, 0.5, 21)  # of scales that hold the largest weight, tried for few bits


def reconstruct(
    original: Model,
    quantized: Model,
    limits: Mapping[str, Limits],
    images: Images,
    ctx: Context,
    *,
    biases: bool = True,
) -> Reconstruction:
    """Choose integers, scales and, with ``biases``, biases of the layers of ``quantized`` named in ``limits`` anew, in
    place. ``original`` is the float model with the same node names.
    """
    found = Reconstruction()
    layers = list(layers_of(original, quantized, limits, images, found.skipped))
    before, after = Network(original, images, ctx.threads), Network(quantized, images, ctx.threads)
    with quantized.edit():
        targets = original_outputs(before, layers, ctx)
        for layer in ctx.progress.track(layers, "refitting weights", len(layers)):
            one, two = _moments(after, layer, next(targets), ctx)
            if not one.rows:
                continue
            found.errors[layer.name] = _refit(quantized, layer, one, two, biases)
    return found


def _moments(network: Network, layer: Layer, targets: list[np.ndarray], ctx: Context) -> tuple[Moments, Moments]:
    """Moments of what the layer reads now and should give, over the even batches and over the odd ones."""
    shape = layer.sampler.read(layer.source)[0].shape
    halves = Moments.empty(shape), Moments.empty(shape)
    name = layer.node.inputs[0].name
    for number, values in enumerate(network.tensors([name, *([layer.skip] if layer.skip else [])], keep=True)):
        x = layer.sampler.inputs(layer.node, values[name], layer.rng(ctx, number), layer.per_image)
        y = targets[number]
        if layer.skip:
            y = y - layer.sampler.outputs(values[layer.skip], layer.rng(ctx, number), layer.per_image)
        halves[number % 2].add(x, y)
    return halves


def _error(moments: Moments, weight: np.ndarray, bias: np.ndarray) -> float:
    """Squared error of a layer's outputs, relative to their variance."""
    n = max(1, moments.rows)
    squares = moments.yy - 2 * np.einsum("gio,gio->go", weight, moments.xy)
    squares = squares + np.einsum("gio,gio->go", weight, moments.xx @ weight)
    squares = squares + 2 * bias * (np.einsum("gi,gio->go", moments.x, weight) - moments.y) + n * bias**2
    variance = float((moments.yy - moments.y**2 / n).sum())
    return float(squares.sum()) / max(variance, 1e-12)


def _refit(model: Model, layer: Layer, one: Moments, two: Moments, biases: bool) -> tuple[float, float]:
    """Refit one layer; its error on the rows that it was fitted to, before and after."""
    real, _ = layer.sampler.read(layer.source)
    now, bias = layer.sampler.read(layer.node)
    intercept = biases and layer.node.op != "MatMul"
    scale = scales_of(layer.node, real.shape)
    both = one + two
    before = _error(both, now, bias)
    wanted, wanted_bias = real, bias
    if two.rows:
        fitted = one.solve(real, bias, _STRENGTH, intercept)
        if _error(two, *fitted) < _error(two, real, _centred(one, real, bias, intercept)):
            wanted, wanted_bias = both.solve(real, bias, _STRENGTH, intercept)
    scale, weight = _rounded(layer, both, wanted, wanted_bias, scale, intercept)
    bias = _centred(both, weight, bias, intercept)
    after = _error(both, weight, bias)
    if not after < before:
        return before, before
    store(model, layer, scale, weight, bias)
    return before, after


def _centred(moments: Moments, weight: np.ndarray, bias: np.ndarray, intercept: bool) -> np.ndarray:
    """The bias that leaves no mean error, if there is one to choose."""
    if not intercept:
        return bias
    return np.asarray((moments.y - np.einsum("gi,gio->go", moments.x, weight)) / max(1, moments.rows))


def _rounded(
    layer: Layer, moments: Moments, wanted: np.ndarray, bias: np.ndarray, scale: np.ndarray, intercept: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scales, and weights that are multiples of them."""
    n, limits = max(1, moments.rows), layer.limits
    xx = moments.xx / n
    if intercept:
        xx = xx - np.einsum("gi,gj->gij", moments.x, moments.x) / n**2
    xx = damped(xx)
    grid = Grid(scale, channel_caps(wanted, limits.most, limits.reduce_range))
    if limits.per_channel and limits.most < 127:
        least = least_scales(bias, input_scale(layer.node), wanted.shape[1], limits.most)[:, None]
        scale = best_scales(wanted, xx, grid, least, _RATIOS).astype(np.float32).astype(np.float64)
        grid = Grid(scale, grid.most)
    return scale, round_to(wanted, xx, grid) * scale
