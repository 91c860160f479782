"""The last layer refitted to the original's probabilities: errors of scores count where they change what is said.

Least squares spend as much on a score that is far behind as on the two that compete. Given what the layer reads, the
Kullback-Leibler divergence from the original's softmax is convex in the weights, and labels are not needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from graphopt.analysis.layers.quantized import is_quantized
from graphopt.analysis.layers.running import Network
from graphopt.analysis.layers.sampling import DenseSampler
from graphopt.ir import Model
from graphopt.passes.prune.consumers import Consumer, rng_of
from graphopt.passes.prune.curves import kullback_leibler
from graphopt.passes.prune.ridge import Rows, best_strength
from graphopt.pipeline import Context

_STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the ridge, as a fraction of the inputs' mean energy
_STEPS = 200
_SMALL = 1e-12  # an energy that vanishes


def gives_scores(model: Model, consumer: Consumer) -> bool:
    """Whether what a layer computes are the model's scores, one row an image, perhaps before a softmax."""
    node = model.graph.nodes[consumer.index]
    if (
        not isinstance(consumer.sampler, DenseSampler)
        or is_quantized(node)
        or consumer.skip
        or consumer.kept is not None
    ):
        return False
    result = node.outputs[0]
    if consumer.target != result.name or result.shape is None or len(result.shape) != 2:
        return False
    return model.is_output(result) or _only_softmax(model, result)


def _only_softmax(model: Model, tensor: gs.Tensor) -> bool:
    reader = tensor.outputs[0] if len(tensor.outputs) == 1 else None
    return reader is not None and reader.op == "Softmax" and model.is_output(reader.outputs[0])


@dataclass(frozen=True)
class _Problem:
    """Inputs x [images, inputs] and scores to come close to [images, classes]; the layer's weight and bias now."""

    x: np.ndarray
    scores: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    intercept: bool

    def part(self, rows: np.ndarray) -> _Problem:
        return _Problem(self.x[rows], self.scores[rows], self.weight, self.bias, self.intercept)

    def at_least_squares(self, judged: _Problem) -> _Problem:
        """The same from the weight and bias of least squares, with the ridge that suits other images best."""
        one, two = (Rows(*(a[None].astype(np.float32) for a in (p.x, p.scores)), None) for p in (self, judged))
        moments, start = one.moments(), (self.weight[None], self.bias[None])
        strength = best_strength(moments, two, *start, self.intercept)
        if strength is None:
            return self
        (weight,), (bias,) = moments.solve(*start, strength, self.intercept)
        return replace(self, weight=weight, bias=bias)

    def divergence(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Mean Kullback-Leibler divergence of what a weight and bias give from what is wanted, in nats."""
        return kullback_leibler(log_softmax(self.scores, axis=1), log_softmax(self.x @ weight + bias, axis=1))

    def solve(self, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Minimise the divergence plus a ridge that pulls towards the weight at hand."""
        inputs, classes = self.weight.shape
        wanted = softmax(self.scores, axis=1)
        ridge = strength * float(np.square(self.x).mean()) + _SMALL

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            change = flat.reshape(inputs + 1, classes)
            found = log_softmax(self.x @ (self.weight + change[:-1]) + self.bias + change[-1], axis=1)
            error = (np.exp(found) - wanted) / len(wanted)
            slope = np.concatenate([self.x.T @ error + ridge * change[:-1], error.sum(axis=0, keepdims=True)])
            slope[-1] *= self.intercept
            value = ridge / 2 * np.square(change[:-1]).sum() - (wanted * found).sum() / len(wanted)
            return float(value), slope.ravel()

        start = np.zeros((inputs + 1) * classes)
        change = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
        change = change.reshape(inputs + 1, classes)
        return self.weight + change[:-1], self.bias + change[-1]


def refit_scores(
    network: Network,
    consumer: Consumer,
    targets: list[np.ndarray],
    start: tuple[np.ndarray, np.ndarray],
    ctx: Context,
) -> None:
    """Refit the last layer, which least squares have fitted, in place.

    ``targets``: its original scores, by batch; ``start``: its weight and bias before they were fitted to anything.
    On every other batch it is first tried whether, and with what ridge towards these or towards least squares, that
    brings the batches between closer to the original than least squares do.
    """
    node, sampler = network.model.graph.nodes[consumer.index], consumer.sampler
    name, intercept = node.inputs[0].name, sampler.can_bias(node)
    x = [
        sampler.inputs(node, tensors[name], rng_of(ctx, consumer, number), consumer.per_image)[:, 0]
        for number, tensors in enumerate(network.tensors([name], keep=True))
    ]
    if len(x) < 2:
        return
    batch = np.repeat(np.arange(len(x)), [len(rows) for rows in x])
    values = np.concatenate(x).astype(np.float64), np.concatenate(targets)
    whole = [_Problem(*values, weight, bias, intercept) for (weight,), (bias,) in (start, sampler.read(node))]
    fitted, judged = whole[0].part(batch % 2 == 0), whole[0].part(batch % 2 == 1)
    halves = [fitted, fitted.at_least_squares(judged)]
    found = {
        (which, strength): judged.divergence(*half.solve(strength))
        for which, half in enumerate(halves)
        for strength in _STRENGTHS
    }
    which, strength = min(found, key=lambda tried: found[tried])
    if found[which, strength] < judged.divergence(halves[1].weight, halves[1].bias):
        weight, bias = whole[which].solve(strength)
        sampler.write(network.model, node, weight[None], bias[None])
