"""The proof of a model that amplifies rounding: piece by piece, each from what the masked model gives it.

A deep network without good normalization can blow up what little summing in another order changes until its outputs
have nothing in common. Cut into pieces that all start from the same values, it has no depth to do so; and if every
piece does what it did, so does the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.labels import Labels
from graphopt.ir import Model
from graphopt.runtime.equivalence import Difference, compare_arrays
from graphopt.runtime.session import open_session, run_feeds, session_io

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def compare_pieces(
    whole: Model,
    pruned: Model,
    labels: Labels,
    keep: np.ndarray,
    feeds: Sequence[Mapping[str, np.ndarray]],
    rtol: float,
) -> Difference:
    """Compare ``pruned`` with ``whole``, the masked model, at some tensors and the outputs.

    The tensors are outputs of layers. What reads one in ``pruned`` gets the values of ``whole`` instead, without the
    channels that are gone. The result is that of the piece that differs most.
    """
    cuts = _cuts(whole, pruned, labels)
    first, second = _session(_with_outputs(whole, cuts)), _session(_resuming(pruned, cuts))
    worst = Difference(True, 0.0, 0.0)
    for feed in feeds:
        expected = _values(first, feed)
        expected.update((name, _kept(expected[name], name, labels, keep)) for name in cuts)
        found = _values(second, {**feed, **{_entry(name): expected[name] for name in cuts}})
        for name, values in expected.items():
            gap = compare_arrays(values, found[name], name, rtol=rtol)
            if (not gap.equal, gap.max_rel) > (not worst.equal, worst.max_rel):
                worst = gap
    return worst


def _cuts(whole: Model, pruned: Model, labels: Labels) -> list[str]:
    """Tensors that layers of both write."""
    common = pruned.graph.tensors()
    captured = pruned.captured()
    layers = {labels.names[c.node] for c in labels.contractions}
    return [
        tensor.name
        for node in whole.graph.nodes
        if node.name in layers
        for tensor in node.outputs[:1]
        if tensor.name in labels.tensors
        and isinstance(common.get(tensor.name), gs.Variable)
        and tensor.dtype == np.float32
        and tensor.name not in captured
        and not whole.is_output(tensor)
    ]


def _entry(name: str) -> str:
    return f"{name}.resumed"


def _kept(values: np.ndarray, name: str, labels: Labels, keep: np.ndarray) -> np.ndarray:
    for axis, groups in enumerate(labels.tensors[name]):
        if groups is not None:
            values = values.compress(keep[groups], axis=axis)
    return values


def _with_outputs(model: Model, names: Sequence[str]) -> Model:
    twin = model.copy()
    with twin.edit() as graph:
        tensors = graph.tensors()
        graph.outputs = [*graph.outputs, *(tensors[n] for n in names)]
    return twin


def _resuming(model: Model, names: Sequence[str]) -> Model:
    """The model in which whatever reads one of these tensors reads a new input of the graph."""
    twin = _with_outputs(model, names)
    with twin.edit() as graph:
        tensors = graph.tensors()
        for name in names:
            entry = gs.Variable(_entry(name), np.float32, [None] * len(tensors[name].shape or ()))
            for node in list(tensors[name].outputs):
                node.inputs = [entry if t is tensors[name] else t for t in node.inputs]
            graph.inputs.append(entry)
    return twin


def _session(model: Model) -> InferenceSession:
    return open_session(model.to_bytes(), optimize=False)


def _values(session: InferenceSession, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [port.name for port in session_io(session).outputs]
    return dict(zip(names, run_feeds(session, feed), strict=True))
