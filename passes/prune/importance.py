"""How much a group of channels matters. A criterion is one function; everything else is shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphopt import extension, spec
from graphopt.analysis.labels import Family, Labels
from graphopt.analysis.layers.running import Images
from graphopt.errors import PassError, UsageError
from graphopt.ir import Model
from graphopt.passes.prune.weights import Weight, makes, weights
from graphopt.pipeline import Context

RECONSTRUCTION = "reconstruction"  # not a score of each channel by itself: see curves
NAMES = [RECONSTRUCTION]  # that the option ``importance`` takes

Rows = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Channels:
    """What a criterion may look at.

    ``labels`` says which groups of channels occur where, ``families`` which of them may go. ``images`` are those of
    calibration; None for a criterion that did not ask for them.
    """

    model: Model
    labels: Labels
    families: tuple[Family, ...]
    images: Images | None
    ctx: Context

    def by_weights(self, score: Rows, filters: bool = False) -> np.ndarray:
        """Score [groups] of each group: its share of every weight that it indexes, summed over those weights.

        ``score`` maps the slices of one weight [channels, weights of that channel] to numbers [channels]. Each
        weight's scores are divided by their total, so that layers of different scale are comparable, and a channel
        that many layers read counts in each of them (group norm, as in DepGraph, Fang et al. 2023). Vectors such as
        biases count only for groups that index nothing else. Quantized weights are dequantized.

        With ``filters``, only the weights that make channels count, by output channel, for groups that have such.
        """
        makers, strong, weak = (np.zeros(self.labels.count) for _ in range(3))
        for weight in weights(self.model, self.labels):
            share = self.by_channel(weight, score)
            if filters and makes(self.model.graph.nodes[weight.node], weight):
                makers += share
            if weight.is_vector:
                weak += share
            else:
                strong += share
        found = np.where(strong > 0, strong, weak)
        return np.where(makers > 0, makers, found)

    def by_channel(self, weight: Weight, score: Rows) -> np.ndarray:
        """The share [groups] of each group in one weight."""
        return self.share(score(weight.rows), weight.groups)

    def share(self, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Scores [channels] of a layer as shares [groups] of their sum; ``groups`` [channels] says whose they are."""
        total = float(scores.sum())
        if total <= 0:
            return np.zeros(self.labels.count)
        return np.bincount(groups, scores / total, minlength=self.labels.count)


Criterion = Callable[[Channels], np.ndarray]


@dataclass(frozen=True)
class _Entry:
    function: Criterion
    needs_images: bool


_CRITERIA: dict[str, _Entry] = {}


def criterion(name: str, *, needs_images: bool = False) -> Callable[[Criterion], Criterion]:
    """Register a function as the criterion ``name`` of the option ``importance``. A later registration replaces an
    earlier one.

    The function gets ``Channels`` and returns a score [groups], finite and not negative: groups of the lowest score
    go first, and what a family loses with some of its groups is weighed by their sum. ``needs_images``: it looks at
    calibration images. Raises UsageError for a name that cannot be written in an option.
    """
    if name == RECONSTRUCTION or not spec.is_name(name):
        raise UsageError(f"a criterion cannot be called {name!r}", "use another word of letters, digits, '_' and '-'")

    def register(function: Criterion) -> Criterion:
        extension.add(function)
        _CRITERIA[name] = _Entry(function, needs_images)
        if name not in NAMES:
            NAMES.append(name)
        return function

    return register


def needs_images(name: str) -> bool:
    """Whether a criterion looks at calibration images."""
    return name == RECONSTRUCTION or _CRITERIA[name].needs_images


def importance(name: str, channels: Channels) -> np.ndarray:
    """Score [groups] of each group by the criterion ``name``. Raises PassError when it needs images that there are
    not, and when what it returns is no score."""
    entry = _CRITERIA[name]
    if entry.needs_images and (channels.images is None or not channels.images.count):
        raise PassError(
            f"the criterion {name!r} measures channels on images, and there are none",
            "importance=l2 looks at weights alone",
        )
    scores = np.asarray(entry.function(channels), dtype=np.float64)
    if scores.shape != (channels.labels.count,):
        wanted = f"({channels.labels.count},)"
        raise PassError(f"the criterion {name!r} gave scores of shape {scores.shape} where {wanted} was expected")
    if not np.isfinite(scores).all() or (scores < 0).any():
        raise PassError(f"the criterion {name!r} gave scores that are negative, infinite or not a number")
    return scores
