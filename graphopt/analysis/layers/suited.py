"""Synthetic images that suit a model: those on which its batch normalisations see what they saw in training.

Their running means and variances are what is left of the training images in the file; data-free quantization and
distillation optimise images towards them by gradients (Cai et al. 2020, "ZeroQ"; Yin et al. 2020, "DeepInversion").
Here images are chosen for them among more than are wanted, one after the other, so that the statistics of all chosen
come close to those of training (herding, Welling 2009), which needs no gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.layers.running import BATCH
from graphopt.data.loader import Batches
from graphopt.data.synthetic import SyntheticDataset
from graphopt.ir import Model
from graphopt.ir.view import is_standard
from graphopt.runtime.session import open_session, run_feeds, runnable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from graphopt.pipeline.context import Context

_CANDIDATES = 6  # for each image that is wanted
_PIXELS = 1 << 26  # of all candidates, at most: large images take time to make
_STATISTICS = 4096  # channels looked at
_ELEMENTS = 1 << 23  # of all the tensors that are looked at, held at a time
_FAR = 20.0  # standard deviations: what is further from training counts as this far


def suited(ctx: Context) -> Batches:
    """The calibration images, or as many synthetic ones that suit the model as it was loaded better: where images are
    synthetic and the model normalises batches by statistics of its training."""
    given, layers = ctx.calibration, _normalisations(ctx.reference)
    dataset = getattr(given, "dataset", None)
    if not given.synthetic or not isinstance(dataset, SyntheticDataset) or not layers:
        return given
    height, width = dataset.size
    count = int(min(_CANDIDATES * len(given), max(len(given), _PIXELS // (height * width))))
    wider = SyntheticDataset(count, dataset.size, dataset.seed)
    candidates = Batches(wider, None, given.preprocess, given.input, synthetic=True)
    order = herd(_distances(ctx, layers, candidates), len(given))
    # In no order: parts of the images serve to judge what was fitted to other parts.
    chosen = ctx.rng("prune.synthetic").permutation(order)
    said = f"{len(chosen)} of {count} synthetic images, chosen by batch statistics"
    return Batches(wider, chosen, given.preprocess, given.input, synthetic=True, description=said)


def herd(features: np.ndarray, count: int) -> np.ndarray:
    """Numbers [count] of rows of ``features`` [rows, features], picked one by one for a mean near zero."""
    total = np.zeros(features.shape[1])
    energy = np.einsum("ij,ij->i", features, features, dtype=np.float64)
    picked = np.empty(min(count, len(features)), dtype=np.int64)
    for k in range(picked.size):
        costs = 2.0 * (features @ total.astype(features.dtype)) + energy
        costs[picked[:k]] = np.inf
        picked[k] = int(np.argmin(costs))
        total += features[picked[k]]
    return picked


def _normalisations(model: Model) -> list[gs.Node]:
    """Batch normalisations of what other nodes compute, by constant statistics."""
    return [
        node
        for node in model.graph.nodes
        if node.op == "BatchNormalization"
        and is_standard(node)
        and not node.attrs.get("training_mode", 0)
        and node.inputs[0].inputs
        and all(isinstance(t, gs.Constant) for t in node.inputs[3:5])
    ]


def _distances(ctx: Context, layers: list[gs.Node], images: Batches) -> np.ndarray:
    """How far mean and energy of the normalised channels are from 0 and 1, by image: [images, 2 * channels]."""
    twin = ctx.reference.copy()
    with twin.edit() as graph:
        tensors = graph.tensors()
        graph.outputs = [tensors[name] for name in dict.fromkeys(node.inputs[0].name for node in layers)]
        graph.cleanup()
    names = [t.name for t in twin.outputs]
    with runnable(twin) as form:
        session = open_session(form, threads=ctx.threads)
    sizes = [int(node.inputs[3].shape[0]) for node in layers]
    chosen = ctx.rng("prune.statistics").permutation(sum(sizes))[:_STATISTICS]
    fixed = twin.inputs[0].shape[0] if twin.inputs[0].shape else None
    first = next(iter(images.batches(1, limit=1))).astype(twin.inputs[0].dtype)
    size = fixed if isinstance(fixed, int) else _batch(session, first)
    rows = []
    for batch in images.batches(size):
        fill = np.zeros((size - len(batch) if isinstance(fixed, int) else 0, *batch.shape[1:]), batch.dtype)
        feed = {twin.inputs[0].name: np.concatenate([batch, fill]).astype(twin.inputs[0].dtype)}
        values = dict(zip(names, run_feeds(session, feed), strict=True))
        found = [_moments(values[node.inputs[0].name][: len(batch)], node) for node in layers]
        mean, energy = (np.concatenate(parts, axis=1)[:, chosen] for parts in zip(*found, strict=True))
        rows.append(np.concatenate([mean, energy - 1.0], axis=1))
    return np.clip(np.concatenate(rows), -_FAR, _FAR).astype(np.float32)


def _batch(session: InferenceSession, image: np.ndarray) -> int:
    """Images like ``image`` [1,...] at a time, so that the outputs stay within bounds: one is run, since models leave
    their sizes open."""
    elements = sum(values.size for values in run_feeds(session, {session.get_inputs()[0].name: image}))
    return int(np.clip(_ELEMENTS // max(1, elements), 1, BATCH))


def _moments(x: np.ndarray, node: gs.Node) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square [images, channels] of x [images, channels, ...] as a batch normalisation sees it."""
    mean, variance = (np.asarray(t.values, dtype=np.float64) for t in node.inputs[3:5])
    scale = 1.0 / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    # In place and in single precision: tensors of large images are the memory and the time of all this.
    flat = x.reshape(*x.shape[:2], -1) - mean.astype(x.dtype)[:, None]
    first = flat.mean(axis=2, dtype=np.float64) * scale
    second = np.einsum("ncp,ncp->nc", flat, flat) / max(1, flat.shape[2])
    return first, second * np.square(scale)
