"""What each family loses at each number of channels that it may keep: what allocation weighs against MACs saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.analysis.labels import Family, Labels
from graphopt.analysis.layers.running import Images, Network
from graphopt.ir import Model
from graphopt.passes.prune.proof import masked
from graphopt.passes.prune.reconstruction import Elimination, eliminate
from graphopt.passes.prune.statistics import Reader, readers
from graphopt.pipeline import Context

_PROBES = 4  # counts of a family at which its effect on the model's outputs is measured
_PROBE_MACS = 8e9  # of one such measurement, roughly: bounds the images that it takes


@dataclass(frozen=True)
class Curve:
    """The counts that one family may keep, from all of it downwards, and what is lost at each.

    ``order``: its groups, the first to go first.
    """

    order: np.ndarray
    kept: np.ndarray
    lost: np.ndarray


def allowed(family: Family, multiple: int, min_keep: float) -> np.ndarray:
    """Counts of groups that a family may keep, from all downwards: multiples, no fewer than the floor, and none where a
    branch goes with them."""
    size = family.groups.size
    floor = max(1, int(np.ceil(min_keep * size)))
    some = [k for k in range((size - 1) // multiple * multiple, 0, -multiple) if k >= floor]
    return np.array([size, *some, *([] if family.branch is None else [0])])


def by_scores(families: Sequence[Family], scores: np.ndarray, multiple: int, min_keep: float) -> list[Curve]:
    """Curves from a score [groups] of each group."""
    found = []
    for family in families:
        order = family.groups[np.argsort(scores[family.groups], kind="stable")]
        kept = allowed(family, multiple, min_keep)
        total = np.concatenate([[0.0], np.cumsum(scores[order])])
        whole = max(float(total[-1]), 1e-30)
        # The loss of a layer that keeps a share s of its importance is -log(s): attenuations multiply along the
        # network, and taking the second half of a layer costs more than taking the first.
        share = np.clip(1.0 - total[order.size - kept] / whole, 1e-12, 1.0)
        found.append(Curve(order, kept, -np.log(share) * whole))
    return found


def by_reconstruction(
    model: Model,
    labels: Labels,
    families: Sequence[Family],
    scores: np.ndarray,
    multiple: int,
    min_keep: float,
    images: Images,
    macs: int,
    ctx: Context,
) -> list[Curve]:
    """Curves from what layers can make up for, scaled by what is measured at the model's outputs.

    ``scores`` [groups] rank the channels that no layer with constant weights reads (those of attention, say).
    """
    # What layers make up on the images of the statistics says little of others: the effect is measured on those.
    seen, unseen = images.halves()
    found = list(readers(model, labels, tuple(families), Network(model, seen, ctx.threads), ctx))
    reading: dict[int, list[Reader]] = {}
    for reader in found:
        for group in np.unique(reader.columns):
            reading.setdefault(int(group), []).append(reader)
    few = unseen.first(int(np.clip(_PROBE_MACS / max(1, macs), 24, 256)))
    outputs = _Outputs(model, few, ctx)
    curves = []
    for family in ctx.progress.track(families, "measuring channels"):
        mine = reading.get(int(family.groups[0]), [])
        kept = allowed(family, multiple, min_keep)
        gone = family.groups.size - kept
        at = _probed(gone[kept > 0]) + gone[kept == 0].tolist()
        if mine:
            path = eliminate(family, mine, int(kept[-1]), at)
            measured = [outputs.distance(_with_weights(model, mine, path, k)) for k in at]
            curves.append(Curve(path.order, kept, _scaled(path.error[gone], path.error[at], measured)))
        else:
            (plain,) = by_scores([family], scores, multiple, min_keep)
            measured = [outputs.distance(masked(model, labels, _without(labels, plain.order[:k]))) for k in at]
            curves.append(Curve(plain.order, kept, _scaled(plain.lost, np.interp(at, gone, plain.lost), measured)))
    return curves


def _probed(gone: np.ndarray) -> list[int]:
    """Some of the removed counts ``gone``, which begin at none, spread from the first removal to the last."""
    if gone.size == 1:
        return []
    return sorted({int(gone[k]) for k in 1 + np.linspace(0, gone.size - 2, _PROBES).round().astype(int)})


def _without(labels: Labels, gone: np.ndarray) -> np.ndarray:
    keep = labels.everything()
    keep[gone] = False
    return keep


def _with_weights(model: Model, mine: list[Reader], path: Elimination, gone: int) -> Model:
    """The model in which a family's readers ignore its first ``gone`` channels and make up for them."""
    twin = model.copy()
    with twin.edit() as graph:
        for reader, weight in zip(mine, path.weights[gone], strict=True):
            node = graph.nodes[reader.node]
            missing = reader.weight - weight
            bias = reader.bias + (np.einsum("gi,gio->go", reader.mean, missing) if reader.sampler.can_bias(node) else 0)
            reader.sampler.write(twin, node, weight, bias)
    return twin


def _scaled(error: np.ndarray, there: np.ndarray, measured: list[float]) -> np.ndarray:
    """What errors of a layer do to the outputs, in between the errors ``there`` for which it was measured."""
    lost: np.ndarray = np.interp(error, [0.0, *there], np.maximum.accumulate([0.0, *measured]))
    return lost


class _Outputs:
    """The model's outputs on some images, to compare those of changed copies with."""

    def __init__(self, model: Model, images: Images, ctx: Context) -> None:
        self.images, self.threads = images, ctx.threads
        self.names = [t.name for t in model.outputs]
        self.before = self._of(model)

    def _of(self, model: Model) -> list[np.ndarray]:
        found = list(Network(model, self.images, self.threads).tensors(self.names))
        return [np.concatenate([values[n] for values in found]).astype(np.float64) for n in self.names]

    def distance(self, model: Model) -> float:
        """How far the outputs have moved, summed over outputs."""
        return sum(divergence(a, b) for a, b in zip(self.before, self._of(model), strict=True))


def divergence(before: np.ndarray, after: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of class probabilities [images, classes]; of any other output, the squared
    error relative to its variance."""
    if before.ndim == 2 and before.shape[1] > 1:
        return kullback_leibler(log_probabilities(before), log_probabilities(after))
    return float(((after - before) ** 2).mean() / max(float(before.var()), 1e-12))


def kullback_leibler(wanted: np.ndarray, found: np.ndarray) -> float:
    """Mean divergence of logarithms of probabilities [images, classes] from those that are wanted, in nats."""
    return float((np.exp(wanted) * (wanted - found)).sum(axis=1).mean())


def log_probabilities(values: np.ndarray) -> np.ndarray:
    if values.min() >= 0 and np.allclose(values.sum(axis=1), 1.0, atol=1e-3):
        return np.log(np.maximum(values, 1e-9))
    shifted = values - values.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
