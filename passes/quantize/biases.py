"""Bias correction in sequence: each layer's mean output in the quantized model becomes that of the float model.

What rounding of weights and activations shifts on average, in this layer and in all before it, is measured and taken
out of the bias, in the order of the graph (Nagel et al. 2019, "Data-Free Quantization", section 4.2, and Nagel et al.
2021, "A White Paper on Neural Network Quantization", on empirical correction). At a residual Add it is the mean of the
sum that is restored.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphopt.analysis.layers.running import Images, Network
from graphopt.ir import Model
from graphopt.passes.quantize.ranges import Limits
from graphopt.passes.quantize.refit_layers import Layer, Reconstruction, layers_of, original_outputs
from graphopt.passes.quantize.stored import scales_of, store
from graphopt.pipeline import Context

IMAGES = 256  # that means are taken over, at most


def correct_biases(
    original: Model, quantized: Model, limits: Mapping[str, Limits], images: Images, ctx: Context
) -> Reconstruction:
    """Correct the biases of the layers of ``quantized`` named in ``limits`` in place. See ``reconstruct``."""
    found = Reconstruction()
    layers = [x for x in layers_of(original, quantized, limits, images, found.skipped) if x.node.op != "MatMul"]
    before, after = Network(original, images, ctx.threads), Network(quantized, images, ctx.threads)
    with quantized.edit():
        targets = original_outputs(before, layers, ctx)
        for layer in ctx.progress.track(layers, "correcting biases", len(layers)):
            found.errors[layer.name] = _correct(quantized, after, layer, next(targets), ctx)
    return found


def _correct(
    model: Model, network: Network, layer: Layer, targets: list[np.ndarray], ctx: Context
) -> tuple[float, float]:
    """Correct one bias; relative squared errors of the layer's outputs before and after."""
    own = layer.node.outputs[0].name
    names = [layer.node.inputs[0].name, own, *([layer.skip] if layer.skip else [])]
    rows, shift, error, mean, power = 0, 0.0, 0.0, 0.0, 0.0
    for number, values in enumerate(network.tensors(names, keep=True)):
        y = targets[number].astype(np.float64)
        missing = y - layer.sampler.outputs(values[own], layer.rng(ctx, number), layer.per_image)
        if layer.skip:
            missing -= layer.sampler.outputs(values[layer.skip], layer.rng(ctx, number), layer.per_image)
        rows += len(y)
        shift, error = shift + missing.sum(axis=0), error + np.square(missing).sum(axis=0)
        mean, power = mean + y.sum(axis=0), power + np.square(y).sum(axis=0)
    network.forget(own)
    if not rows:
        return 0.0, 0.0
    variance = max(float(np.sum(power - np.square(mean) / rows)), 1e-12)
    before, after = float(np.sum(error)), float(np.sum(error - np.square(shift) / rows))
    weight, bias = layer.sampler.read(layer.node)
    store(model, layer, scales_of(layer.node, weight.shape), weight, bias + np.reshape(shift / rows, bias.shape))
    return before / variance, after / variance
