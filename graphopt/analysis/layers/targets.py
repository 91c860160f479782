"""What layers gave before a model was changed, at the positions that their refit samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from graphopt.analysis.layers.running import BATCH, Network, fitting
from graphopt.analysis.layers.sampling import Sampler

_STORED = 256 << 20  # bytes of original outputs held at a time


class Sampled(Protocol):
    """A layer to refit: the tensor that it should give, and how many positions of it are looked at in all (``rows``)
    and of one image."""

    @property
    def sampler(self) -> Sampler: ...
    @property
    def target(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def per_image(self) -> int: ...


T = TypeVar("T", bound=Sampled)


def targets_of(
    network: Network, layers: Sequence[T], rng_of: Callable[[T, int], np.random.Generator]
) -> Iterator[list[np.ndarray]]:
    """Outputs of each layer at its sampled positions, by batch: [rows, channels].

    ``rng_of`` gives the generator of a layer's positions in a batch. The model runs once for as many layers as fit in
    memory together.
    """
    tensors = network.model.graph.tensors()

    def size(layer: T) -> int:
        shape = [d if isinstance(d, int) else 1 for d in tensors[layer.target].shape or [1]]
        return 4 * shape[layer.sampler.channel_axis] * layer.rows + 4 * BATCH * int(np.prod(shape[1:]))

    for chunk in fitting(layers, size, _STORED):
        rows: list[list[np.ndarray]] = [[] for _ in chunk]
        for number, values in enumerate(network.tensors([layer.target for layer in chunk])):
            for layer, into in zip(chunk, rows, strict=True):
                into.append(layer.sampler.outputs(values[layer.target], rng_of(layer, number), layer.per_image))
        yield from rows
