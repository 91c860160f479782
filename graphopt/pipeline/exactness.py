"""The check that EXACT passes keep their word, and the search for the pass and the node that did not."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import ContractError, ModelError
from graphopt.ir import Model
from graphopt.pipeline.context import Context
from graphopt.runtime.equivalence import Difference, compare_outputs
from graphopt.runtime.feeds import model_feeds
from graphopt.runtime.session import open_session, run_feeds, runnable

# Folding a batch norm or reordering sums moves each float32 product by about 1e-7 of its size, and a hundred layers
# add up to well under 1e-5 of the largest output; a wrong rewrite moves outputs by their own size.
TOLERANCE = 1e-4
RANDOM_OPS = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
_BATCHES = (1, 3)


class Inexact(ContractError):
    """The step at ``index`` changed the outputs."""

    def __init__(self, index: int, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.index = index


def check(
    first: Model, last: Model, specs: list[str], replay: Callable[[], list[Model]], ctx: Context
) -> dict[str, Any]:
    """Compare two states of a model in ONNX Runtime, without optimizations. Returns what the report says of it.

    The EXACT passes ``specs`` turned one into the other; ``replay`` gives the states before and after each of them.
    Raises Inexact naming the pass, and where it can be told the node, whose change moved an output by more than
    ``TOLERANCE`` of the largest output value.
    """
    random = next((n.name for g in first.bare_graphs() for n in g.nodes if n.op in RANDOM_OPS), None)
    if random is not None:
        return {"checked": False, "reason": f"node {random!r} is random, so no two runs are equal"}
    feeds = model_feeds(first, ctx.calibration, _BATCHES, ctx.seed)
    try:
        found = _difference(first, last, feeds)
    except ModelError as error:
        own = _failure(first, feeds)
        if own is not None:
            return {"checked": False, "reason": f"ONNX Runtime cannot run the model: {own.message}"}
        index = _first_bad(replay(), feeds)
        message = f"after {specs[index]!r} ONNX Runtime cannot run the model: {error.message}"
        raise Inexact(index, message) from error
    if found.equal:
        return {"checked": True, "max_relative_error": found.max_rel, "tolerance": TOLERANCE}
    states = replay()
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
    """Index of the step that broke equality with the first state, by bisection. The last state is known to differ."""

    def differs(index: int) -> bool:
        try:
            return not _difference(states[0], states[index + 1], feeds).equal
        except ModelError:
            return True

    return bisect_left(range(len(states) - 2), True, key=differs)


def _first_bad_node(before: Model, after: Model, feeds: list[dict[str, np.ndarray]]) -> str | None:
    """The earliest node of ``after`` whose output differs from the tensor of the same name in ``before``."""
    shared = before.graph.tensors()
    producers: list[tuple[gs.Node, gs.Tensor]] = []
    for node in after.graph.nodes:
        for tensor in node.outputs:
            twin = shared.get(tensor.name)
            if isinstance(twin, gs.Variable) and twin.inputs and twin.dtype is not None:
                producers.append((node, tensor))

    def differs(index: int) -> bool:
        names = [t.name for _, t in producers[: index + 1]]
        return not _difference(_tap(before, names), _tap(after, names), feeds[:1]).equal

    try:
        found = bisect_left(range(len(producers)), True, key=differs)
    except ModelError:
        return None
    return producers[found][0].name if found < len(producers) else None


def _tap(model: Model, names: list[str]) -> Model:
    twin = model.copy()
    tensors = twin.graph.tensors()
    twin.graph.outputs = [tensors[n] for n in names]
    return twin


def _difference(a: Model, b: Model, feeds: list[dict[str, np.ndarray]]) -> Difference:
    with runnable(a) as left, runnable(b) as right:
        return compare_outputs(left, right, feeds, rtol=TOLERANCE)


def _failure(model: Model, feeds: list[dict[str, np.ndarray]]) -> ModelError | None:
    """What ONNX Runtime says against running a model on the feeds."""
    try:
        with runnable(model) as form:
            session = open_session(form, optimize=False)
            for feed in feeds:
                run_feeds(session, feed)
    except ModelError as error:
        return error
    return None
