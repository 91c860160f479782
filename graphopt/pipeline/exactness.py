"""The check that EXACT passes keep their word, and the search for the pass and the node that did not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import ContractError, ModelError
from graphopt.ir import Model, save
from graphopt.ir.convert import nbytes
from graphopt.pipeline.context import Context
from graphopt.runtime.equivalence import Difference, compare_outputs
from graphopt.runtime.feeds import random_feeds
from graphopt.runtime.session import Port, SessionIO, open_session

# Folding a batch norm or reordering sums moves each float32 product by about 1e-7 of its size, and a hundred layers
# add up to well under 1e-5 of the largest output; a wrong rewrite moves outputs by their own size.
TOLERANCE = 1e-4
RANDOM_OPS = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
_BATCHES = (1, 3)
_IN_MEMORY = 1_000_000_000


class Inexact(ContractError):
    """The step at ``index`` changed the outputs."""

    def __init__(self, index: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.index = index


def check(states: list[Model], specs: list[str], ctx: Context) -> dict[str, Any]:
    """Compare the first and the last of ``states`` in ONNX Runtime, without optimizations.

    The EXACT pass ``specs[i]`` turned ``states[i]`` into ``states[i + 1]``. Returns what the report says of it.
    Raises Inexact naming the pass, and where it can be told the node, whose change moved an output by more than
    ``TOLERANCE`` of the largest output value.
    """
    random = next((n.name for g in states[0].graphs() for n in g.nodes if n.op in RANDOM_OPS), None)
    if random is not None:
        return {"checked": False, "reason": f"node {random!r} is random, so no two runs are equal"}
    feeds = _feeds(states[0], ctx)
    try:
        found = _difference(states[0], states[-1], feeds)
    except ModelError as error:
        if not _runs(states[0]):
            return {"checked": False, "reason": f"ONNX Runtime cannot run the model: {error.message}"}
        index = _first_bad(states, feeds)
        message = f"after {specs[index]!r} ONNX Runtime cannot run the model: {error.message}"
        raise Inexact(index, message) from error
    if found.equal:
        return {"checked": True, "max_relative_error": found.max_rel, "tolerance": TOLERANCE}
    index = _first_bad(states, feeds)
    node = _first_bad_node(states[index], states[index + 1], feeds)
    where = f", first at node {node!r}" if node else ""
    raise Inexact(
        index,
        f"the exact pass {specs[index]!r} changed the outputs{where}: relative error {found.max_rel:.2g}, "
        f"tolerance {TOLERANCE:g}",
        "leave the pass out, and report this",
    )


def _first_bad(states: list[Model], feeds: list[dict[str, np.ndarray]]) -> int:
    """Index of the step that broke equality with the first state, by bisection."""
    low, high = 0, len(states) - 2
    while low < high:
        middle = (low + high) // 2
        try:
            good = _difference(states[0], states[middle + 1], feeds).equal
        except ModelError:
            good = False
        low, high = (middle + 1, high) if good else (low, middle)
    return low


def _first_bad_node(before: Model, after: Model, feeds: list[dict[str, np.ndarray]]) -> str | None:
    """The earliest node of ``after`` whose output differs from the tensor of the same name in ``before``."""
    shared = before.graph.tensors()
    producers: list[tuple[gs.Node, gs.Tensor]] = []
    for node in after.graph.nodes:
        for tensor in node.outputs:
            twin = shared.get(tensor.name)
            if isinstance(twin, gs.Variable) and twin.inputs and twin.dtype is not None:
                producers.append((node, tensor))
    low, high = 0, len(producers)
    while low < high:
        middle = (low + high) // 2
        names = [t.name for _, t in producers[: middle + 1]]
        try:
            good = _difference(_tap(before, names), _tap(after, names), feeds[:1]).equal
        except ModelError:
            return None
        low, high = (middle + 1, high) if good else (low, middle)
    return producers[low][0].name if low < len(producers) else None


def _tap(model: Model, names: list[str]) -> Model:
    twin = model.copy()
    tensors = twin.graph.tensors()
    twin.graph.outputs = [tensors[n] for n in names]
    return twin


def _difference(a: Model, b: Model, feeds: list[dict[str, np.ndarray]]) -> Difference:
    with runnable(a) as left, runnable(b) as right:
        return compare_outputs(left, right, feeds, rtol=TOLERANCE)


def _runs(model: Model) -> bool:
    try:
        with runnable(model) as form:
            open_session(form, optimize=False)
    except ModelError:
        return False
    return True


@contextmanager
def runnable(model: Model) -> Iterator[bytes | Path]:
    """The model in a form that ONNX Runtime opens: bytes, or a temporary file when it is large."""
    if sum(nbytes(c) for c in model.constants()) < _IN_MEMORY:
        yield model.to_bytes()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, external_above=_IN_MEMORY)
        yield path


def _feeds(model: Model, ctx: Context) -> list[dict[str, np.ndarray]]:
    """Random inputs in several batch sizes, and the first calibration images."""
    inputs = tuple(Port(t.name, tuple(t.shape or ()), np.dtype(t.dtype)) for t in model.inputs)
    images = next(iter(ctx.calibration.batches(max(_BATCHES))), None)
    side: dict[str, int] = {}
    if images is not None and images.ndim == 4:
        last = (2, 3) if images.shape[1] <= 4 else (1, 2)
        side = {"height": images.shape[last[0]], "width": images.shape[last[1]]}
    feeds = random_feeds(SessionIO(inputs, ()), _BATCHES, ctx.seed, **side)
    if len(inputs) == 1 and images is not None:
        fixed = inputs[0].shape[0] if inputs[0].shape else None
        sizes = [fixed] if isinstance(fixed, int) else list(_BATCHES)
        feeds.extend({inputs[0].name: images[:n]} for n in sizes if n <= len(images))
    return feeds
