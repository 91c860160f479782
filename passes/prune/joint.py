"""Refit two convolutions together: the first need not compute what it computed, but what the second can use.

Fitted layer by layer, a convolution that lost channels behind it still computes the channels that stayed, and only its
reader makes up for those that went. Here both are solved for what the reader should give: the first by Gauss-Newton
steps through the activation in between (conjugate gradients, preconditioned by the Kronecker factors of the curvature
as in K-FAC, Martens and Grosse 2015), the second by ridge regression, in turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from graphopt.passes.prune.ridge import Rows, rectified

_TURNS = 3
_WORTH = 0.99  # a turn that leaves more of the error than this is the last
_CONJUGATE = 8  # steps of conjugate gradients a turn, at most: the fewer, the less noise is fitted
_RIDGE = 1e-3  # towards the weights at hand, as a fraction of the inputs' mean energy
_SMOOTH = 1.0  # the same, for the order in which a step is fitted: what varies most comes first
Bounds = tuple[float, float]  # of the activation between the two; infinite where there is none


@dataclass(frozen=True)
class Stack:
    """What the first convolution reads at some places, x [places, inputs], whether a place is inside the image
    [places] rather than padding, which places each row of the second reads, index [rows, taps], and what the second
    should compute: see ``Rows``. A place may serve several rows, but each tap of one only; padding serves any.
    """

    x: np.ndarray
    inside: np.ndarray
    index: np.ndarray
    y: np.ndarray
    floor: np.ndarray | None

    @cached_property
    def energy(self) -> np.ndarray:
        """Second moments [inputs + 1] of x and a constant."""
        total = self.x.sum(axis=0, dtype=np.float64)
        found = np.empty((self.x.shape[1] + 1,) * 2)
        found[:-1, :-1], found[-1, :-1], found[:-1, -1], found[-1, -1] = self.x.T @ self.x, total, total, len(self.x)
        return found / len(self.x)

    @staticmethod
    def join(parts: Sequence[Stack]) -> Stack:
        floors = [p.floor for p in parts if p.floor is not None]
        starts = np.cumsum([0] + [len(p.x) for p in parts])
        return Stack(
            np.concatenate([p.x for p in parts]),
            np.concatenate([p.inside for p in parts]),
            np.concatenate([p.index + start for p, start in zip(parts, starts, strict=False)]),
            np.concatenate([p.y for p in parts]),
            np.concatenate(floors) if floors else None,
        )


@dataclass(frozen=True)
class Weights:
    """Weights [inputs, channels] and [taps * channels, outputs] of the two, and their biases."""

    first: np.ndarray
    bias: np.ndarray
    second: np.ndarray
    rest: np.ndarray


@dataclass(frozen=True)
class _Pass:
    """The pair on a stack: values between the two as the second reads them [rows, taps * channels], where they follow
    their input [places, channels], and the error that is left [rows, outputs]."""

    hidden: np.ndarray
    open: np.ndarray
    left: np.ndarray
    relative: float


def _run(stack: Stack, bounds: Bounds, weights: Weights) -> _Pass:
    z = stack.x @ weights.first.astype(np.float32) + weights.bias.astype(np.float32)
    gate = (z > bounds[0]) & (z < bounds[1]) & stack.inside[:, None]
    hidden = np.clip(z, *bounds, out=z)
    hidden *= stack.inside[:, None]
    read = hidden[stack.index].reshape(len(stack.y), -1)
    plain = _rows(stack, read)
    second, rest = weights.second[None], weights.rest[None]
    target = stack.y if stack.floor is None else plain.apparent(second, rest)[0]
    left = target - plain.output(second, rest)[0]
    return _Pass(read, gate, left, plain.error(second, rest))


def _rows(stack: Stack, hidden: np.ndarray) -> Rows:
    return Rows(hidden[None], stack.y[None], None if stack.floor is None else stack.floor[None])


def improve(stack: Stack, held: Stack, bounds: Bounds, weights: Weights) -> tuple[Weights, float, float]:
    """Better weights, and the relative error on ``held``, rows that they are not fitted to, before and after.

    Whatever does not lower the error on these rows is not taken.
    """
    start = _run(held, bounds, weights).relative
    best, found = start, weights

    def better(trials: Iterator[Weights]) -> None:
        nonlocal best, found
        for trial in trials:
            error = _run(held, bounds, trial).relative
            if not error < best:
                return
            found, best = trial, error

    better(_second(stack, bounds, weights))
    for _ in range(_TURNS):
        before = best
        better(_first(stack, bounds, found))
        better(_second(stack, bounds, found))
        if best > _WORTH * before:
            break
    return found, start, best


def _second(stack: Stack, bounds: Bounds, weights: Weights) -> Iterator[Weights]:
    """The second convolution fitted to what the first gives."""
    rows = _rows(stack, _run(stack, bounds, weights).hidden)
    second, rest = rectified([rows], rows.moments(), weights.second[None], weights.rest[None], _RIDGE, True)
    yield replace(weights, second=second[0], rest=rest[0])


def _first(stack: Stack, bounds: Bounds, weights: Weights) -> Iterator[Weights]:
    """The first convolution on its way along a Gauss-Newton step: the later, the closer it is fitted."""
    for delta in _directions(stack, weights, _run(stack, bounds, weights)):
        yield replace(weights, first=weights.first + delta[:-1], bias=weights.bias + delta[-1])


def _directions(stack: Stack, weights: Weights, now: _Pass) -> Iterator[np.ndarray]:
    """Changes [inputs + 1, channels] of the first weight and bias that, to first order, undo ever more of what is
    left."""
    x, inputs, channels = stack.x, stack.x.shape[1], weights.bias.size
    second = weights.second.astype(np.float32).reshape(stack.index.shape[1], channels, -1)

    def forward(delta: np.ndarray) -> np.ndarray:
        z = x @ delta[:-1].astype(np.float32) + delta[-1].astype(np.float32)
        z *= now.open
        return sum((z[at] @ tap for at, tap in zip(stack.index.T, second, strict=True)), np.zeros_like(now.left))

    def backward(error: np.ndarray) -> np.ndarray:
        g = np.zeros((len(x), channels), np.float32)
        for at, tap in zip(stack.index.T, second, strict=True):
            g[at] += error @ tap.T
        g *= now.open
        return np.concatenate([x.T @ g, g.sum(axis=0, dtype=np.float64)[None]]).astype(np.float64)

    energy = stack.energy
    left = cho_factor(energy + _SMOOTH * np.trace(energy) / len(energy) * np.eye(len(energy)), check_finite=False)
    curvature = _curvature(now.open, len(stack.y), weights)
    right = cho_factor(curvature, check_finite=False)
    damping = _RIDGE * float(np.trace(energy) / len(energy) * np.trace(curvature) / channels)

    def precondition(v: np.ndarray) -> np.ndarray:
        half = cho_solve(left, v, check_finite=False)
        result: np.ndarray = cho_solve(right, half.T, check_finite=False).T
        return result

    delta = np.zeros((inputs + 1, channels))
    residual = backward(now.left)
    towards = precondition(residual)
    direction, product = towards, float(np.vdot(residual, towards))
    for _ in range(_CONJUGATE):
        curved = backward(forward(direction)) + damping * direction
        length = product / max(float(np.vdot(direction, curved)), 1e-30)
        delta = delta + length * direction
        yield delta
        residual -= length * curved
        towards = precondition(residual)
        after = float(np.vdot(residual, towards))
        if not after > 1e-6 * product:
            return
        direction, product = towards + after / product * direction, after


def _curvature(gate: np.ndarray, rows: int, weights: Weights) -> np.ndarray:
    """What the error's curvature is between channels, over taps: the other Kronecker factor."""
    channels = gate.shape[1]
    second = weights.second.reshape(-1, channels, weights.rest.size)
    some = gate[::8].astype(np.float32)
    product = np.einsum("tmo,tko->mk", second, second) * (some.T @ some) / max(1, len(some)) * rows
    result: np.ndarray = product + (_RIDGE * np.trace(product) / channels + 1e-12) * np.eye(channels)
    return result
