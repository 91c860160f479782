"""Weights and biases that make the quantized model give what the float model gives, layer by layer.

Each layer is fitted to what it reads in the quantized model, layers before it fitted already, so errors do not add up;
its target is what the float model computes, at a residual Add the sum less what the other branch gives now. Weights
that reproduce it best (ridge regression) are rounded for the least error on the same inputs; the bias takes the mean
that is left (bias correction as in Nagel et al. 2019, but in sequence and on measured inputs). Weights
other than the float model's are only taken where, fitted to half of the images, they serve the other half.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.layers.moments import Moments
from graphopt.analysis.layers.quantized import dequantizer
from graphopt.analysis.layers.residual import residual
from graphopt.analysis.layers.running import BATCH, Images, Network, fitting
from graphopt.analysis.layers.sampling import Sampler, obstacle, sampler_of
from graphopt.ir import Model
from graphopt.passes.quantize.ranges import Limits, channel_caps, least_scales
from graphopt.passes.quantize.rounding import Grid, best_scales, damped, round_to
from graphopt.pipeline import Context, Skipped

_ROWS = 12288  # sampled positions of a layer over all images
_LEAST_ROWS = 16  # for each input of an output
_ROW_BYTES = 192 << 20  # of a layer's inputs at these positions
_STORED = 256 << 20  # bytes of float outputs held at a time
_STRENGTH = 1e-2  # of the ridge
_RATIOS = np.linspace(1.0, 0.5, 26)  # of scales that hold the largest weight, tried for few bits


@dataclass
class Reconstruction:
    """What came of it: relative squared error of layer outputs before and after, by node name."""

    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def improved(self) -> int:
        return sum(after < before for before, after in self.errors.values())

    def metrics(self) -> dict[str, float | int]:
        """For the report."""
        before, after = np.mean(list(self.errors.values()), axis=0) if self.errors else (0.0, 0.0)
        return {
            "layers": len(self.errors),
            "improved": self.improved,
            "relative_error_before": float(f"{before:.4g}"),
            "relative_error_after": float(f"{after:.4g}"),
        }


@dataclass(frozen=True)
class _Layer:
    name: str
    node: gs.Node
    source: gs.Node
    sampler: Sampler
    limits: Limits
    target: str
    skip: str | None
    per_image: int
    rows: int

    def rng(self, ctx: Context, number: int) -> np.random.Generator:
        """Positions are drawn anew for every batch, and alike for both models."""
        return ctx.rng(f"quantize.rows.{self.name}.{number}")


def reconstruct(
    original: Model,
    quantized: Model,
    limits: Mapping[str, Limits],
    images: Images,
    ctx: Context,
    *,
    weights: bool = True,
    biases: bool = True,
) -> Reconstruction:
    """Refit the layers of ``quantized`` named in ``limits`` in place.

    ``original`` is the float model with the same node names. ``weights``: integers and scales are chosen anew, else
    only the biases are.
    """
    found = Reconstruction()
    layers = list(_layers(original, quantized, limits, images, found.skipped))
    before, after = Network(original, images, ctx.threads), Network(quantized, images, ctx.threads)
    with quantized.edit():
        targets = _targets(before, layers, ctx)
        for layer in ctx.progress.track(layers, "refitting weights" if weights else "correcting biases", len(layers)):
            one, two = _moments(after, layer, next(targets), ctx)
            if not one.rows:
                continue
            found.errors[layer.name] = _refit(quantized, layer, one, two, weights, biases)
    return found


def _layers(
    original: Model, quantized: Model, limits: Mapping[str, Limits], images: Images, skipped: list[Skipped]
) -> Iterator[_Layer]:
    source = {n.name: (i, n) for i, n in enumerate(original.graph.nodes)}
    made_by = {t.name: i for i, node in enumerate(original.graph.nodes) for t in node.outputs}
    present = quantized.graph.tensors()
    for node in quantized.graph.nodes:
        if node.name not in limits:
            continue
        index, twin = source[node.name]
        sampler, why = sampler_of(twin), obstacle(twin) or obstacle(node)
        if sampler is None or why:
            skipped.append(Skipped(node.name, node.op, f"its weights are rounded to nearest, not refitted: {why}"))
            continue
        target, skip = residual(original, twin.outputs[0], index, made_by)
        if skip is not None and skip not in present:
            target, skip = twin.outputs[0].name, None
        groups, inputs, _ = sampler.read(twin)[0].shape
        rows = min(max(_ROWS, _LEAST_ROWS * inputs), max(1, _ROW_BYTES // (4 * groups * inputs)))
        per_image = -(-rows // max(1, images.count))
        yield _Layer(node.name, node, twin, sampler, limits[node.name], target, skip, per_image, rows)


def _targets(network: Network, layers: list[_Layer], ctx: Context) -> Iterator[list[np.ndarray]]:
    """Float outputs of each layer at its sampled positions, by batch: [rows, channels]. The float model runs once for
    as many layers as fit in memory together."""
    tensors = network.model.graph.tensors()

    def size(layer: _Layer) -> int:
        shape = [d if isinstance(d, int) else 1 for d in tensors[layer.target].shape or [1]]
        return 4 * shape[layer.sampler.channel_axis] * layer.rows + 4 * BATCH * int(np.prod(shape[1:]))

    for chunk in fitting(layers, size, _STORED):
        rows: list[list[np.ndarray]] = [[] for _ in chunk]
        for number, values in enumerate(network.tensors([layer.target for layer in chunk])):
            for layer, into in zip(chunk, rows, strict=True):
                y = layer.sampler.outputs(values[layer.target], layer.rng(ctx, number), layer.per_image)
                into.append(y + np.float32(layer.limits.offset))
        yield from rows


def _moments(network: Network, layer: _Layer, targets: list[np.ndarray], ctx: Context) -> tuple[Moments, Moments]:
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


def _refit(model: Model, layer: _Layer, one: Moments, two: Moments, weights: bool, biases: bool) -> tuple[float, float]:
    """Refit one layer; its error on the rows that it was fitted to, before and after."""
    real, _ = layer.sampler.read(layer.source)
    now, bias = layer.sampler.read(layer.node)
    intercept = biases and layer.node.op != "MatMul"
    scale = _scales(layer.node, real.shape)
    both = one + two
    before = _error(both, now, bias)
    weight = now
    if weights:
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
    _store(model, layer, scale, weight, bias)
    return before, after


def _centred(moments: Moments, weight: np.ndarray, bias: np.ndarray, intercept: bool) -> np.ndarray:
    """The bias that leaves no mean error, if there is one to choose."""
    if not intercept:
        return bias
    return np.asarray((moments.y - np.einsum("gi,gio->go", moments.x, weight)) / max(1, moments.rows))


def _rounded(
    layer: _Layer, moments: Moments, wanted: np.ndarray, bias: np.ndarray, scale: np.ndarray, intercept: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scales, and weights that are multiples of them."""
    n, limits = max(1, moments.rows), layer.limits
    xx = moments.xx / n
    if intercept:
        xx = xx - np.einsum("gi,gj->gij", moments.x, moments.x) / n**2
    xx = damped(xx)
    grid = Grid(scale, channel_caps(wanted, limits.most, limits.reduce_range))
    if limits.per_channel and limits.most < 127:
        least = least_scales(bias, _input_scale(layer.node), wanted.shape[1], limits.most)[:, None]
        scale = best_scales(wanted, xx, grid, least, _RATIOS).astype(np.float32).astype(np.float64)
        grid = Grid(scale, grid.most)
    return scale, round_to(wanted, xx, grid) * scale


def _scales(node: gs.Node, shape: tuple[int, ...]) -> np.ndarray:
    """Scales of a layer's weight [groups, 1, outputs]."""
    source = dequantizer(node.inputs[1])
    assert source is not None
    scale = np.asarray(source.inputs[1].values, np.float64)
    groups, _, outputs = shape
    return np.asarray(np.broadcast_to(scale.reshape(-1), groups * outputs).reshape(groups, 1, outputs))


def _input_scale(node: gs.Node) -> float | None:
    """Scale of what a layer reads; None where it reads floats."""
    source = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    if source is None or source.op != "DequantizeLinear":
        return None
    return float(np.asarray(source.inputs[1].values).reshape(-1)[0])


def _store(model: Model, layer: _Layer, scale: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
    node, entry = layer.node, _input_scale(layer.node)
    source = dequantizer(node.inputs[1])
    assert source is not None
    old = np.asarray(source.inputs[1].values)
    kept = scale.reshape(-1)[: max(old.size, 1)].reshape(old.shape).astype(np.float32)
    source.inputs[1].values = kept
    if node.op != "MatMul" and entry is not None:
        kept_bias = (np.float32(entry) * kept).astype(np.float32)
        if len(node.inputs) < 3 and bias.any():
            _new_bias(model, node, kept_bias, bias.size)
        elif len(node.inputs) > 2 and (stored := dequantizer(node.inputs[2])) is not None:
            stored.inputs[1].values = kept_bias
    layer.sampler.write(model, node, weight, bias)


def _new_bias(model: Model, node: gs.Node, scale: np.ndarray, channels: int) -> None:
    """A bias of zeros on integers, for a layer that has none."""
    name = f"{node.name}_bias"
    inputs = [
        model.constant(f"{name}_quantized", np.zeros(channels, np.int32)),
        model.constant(f"{name}_scale", scale),
        model.constant(f"{name}_zero_point", np.zeros(scale.shape, np.int32)),
    ]
    out = gs.Variable(model.fresh_name(f"{name}_dequantized"), np.float32, [channels])
    attrs = {"axis": 0} if scale.ndim else {}
    at = next(i for i, n in enumerate(model.graph.nodes) if n is node)
    dequantize = gs.Node("DequantizeLinear", model.fresh_name(f"{name}_DequantizeLinear"), attrs, inputs, [out])
    model.graph.nodes.insert(at, dequantize)
    node.inputs = [*node.inputs[:2], out]
