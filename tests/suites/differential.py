"""A model before and after ``simplify``: the same outputs, a sound structure, nothing left to do; or who is guilty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx

from graphopt import Context, GraphoptError, Model
from graphopt.ir import Snapshot, verify
from graphopt.pipeline import Pass, Registry
from graphopt.runtime.equivalence import compare_arrays
from graphopt.runtime.session import open_session, run_feeds
from graphopt.runtime.target import get_target

Feeds = Mapping[str, np.ndarray]
Outputs = list[np.ndarray]
# Compares outputs, wanted and found: why they differ, or an empty text.
Compare = Callable[[Sequence[Outputs], Sequence[Outputs]], str]

TOLERANCE = 1e-4
# What is left of values about 1 when they cancel: then the largest value of an output is noise as well.
_NOISE = 2e-6
_MOST_ROUNDS = 10


class Broken(AssertionError):
    """A pass did harm. ``guilty`` is its name, ``kind`` one of ``KINDS``."""

    KINDS = ("crash", "structure", "invalid", "wrong", "restless")

    def __init__(self, kind: str, guilty: str, message: str) -> None:
        super().__init__(f"{kind}, by {guilty!r}: {message}")
        self.kind, self.guilty = kind, guilty


@dataclass(frozen=True)
class Simplified:
    """What ``simplify`` made of a model."""

    model: Model
    before: bytes
    after: bytes
    changed_by: tuple[str, ...]  # a pass is named once for each run in which it changed something


@cache
def passes() -> tuple[Pass, ...]:
    """The passes of ``simplify``, whatever it holds."""
    return tuple(Registry().pipeline("simplify").passes)


def context(model: Model) -> Context:
    """What an exact pass may ask for; it has no use for images."""
    nothing: Any = ()
    return Context(get_target("ort-cpu"), nothing, model)


def execute(form: bytes, feeds: Sequence[Feeds]) -> list[Outputs]:
    """Outputs for each feed, in ONNX Runtime with optimizations off. Raises ModelError."""
    session = open_session(form, optimize=False)
    return [run_feeds(session, feed) for feed in feeds]


def close(wanted: Sequence[Outputs], found: Sequence[Outputs]) -> str:
    """Compare to ``TOLERANCE`` of the largest value of each output; integers must be equal."""
    for a, b in zip(wanted, found, strict=True):
        if len(a) != len(b):
            return f"{len(a)} outputs became {len(b)}"
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            difference = compare_arrays(x, y, f"output {k}", rtol=TOLERANCE)
            if not difference.equal and difference.max_abs > _NOISE:
                return difference.reason
    return ""


def check(
    model: Model,
    feeds: Sequence[Feeds],
    *,
    run: Callable[[bytes, Sequence[Feeds]], list[Outputs]] = execute,
    compare: Compare = close,
    wanted: list[Outputs] | None = None,
    strict: bool = True,
) -> Simplified:
    """Simplify a copy of ``model`` and check everything that must hold. Raises Broken, naming the pass.

    ``wanted`` are the outputs of the model itself, if they are known. ``strict`` lets ``onnx.checker`` infer shapes
    too: it fails on some models that are well formed.
    """
    before = model.to_bytes()
    if wanted is None:
        wanted = run(before, feeds)
    result = model.copy()
    changed = _repeat(result)
    if not changed:
        return Simplified(result, before, before, ())
    after = result.to_bytes()
    if model.to_bytes() != before:
        raise Broken("wrong", ",".join(dict.fromkeys(changed)), "the model that shares its arrays was changed")
    try:
        found = run(after, feeds)
    except GraphoptError as error:
        raise _blame(model, feeds, run, compare, wanted, "invalid", error.message) from error
    reason = compare(wanted, found)
    if reason:
        raise _blame(model, feeds, run, compare, wanted, "wrong", reason)
    try:
        onnx.checker.check_model(onnx.load_from_string(after), full_check=strict)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Broken("invalid", ",".join(dict.fromkeys(changed)), f"onnx.checker: {error}") from error
    again = result.copy()
    if more := _repeat(again):
        raise Broken("restless", more[0], "it changes a model that has been simplified")
    return Simplified(result, before, after, tuple(changed))


def _repeat(model: Model) -> list[str]:
    """Run the passes until none changes the model, as the pass manager does. Names those that did."""
    changed: list[str] = []
    idle = 0
    for _ in range(_MOST_ROUNDS):
        for step in passes():
            if idle == len(passes()):
                return changed
            if _apply(step, model):
                changed.append(step.name)
                idle = 0
            else:
                idle += 1
    if idle < len(passes()):
        raise Broken("restless", changed[-1], f"the passes still change the model in round {_MOST_ROUNDS}")
    return changed


def _apply(step: Pass, model: Model) -> bool:
    snapshot, mark = Snapshot.of(model), model.fingerprint()
    try:
        result = step.run(model, context(model))
    except Exception as error:
        raise Broken("crash", step.name, f"{type(error).__name__}: {error}") from error
    if result.changed != (model.fingerprint() != mark):
        raise Broken("structure", step.name, f"it says changed={result.changed}, which is not so")
    try:
        verify(model, snapshot, step.name)
    except GraphoptError as error:
        raise Broken("structure", step.name, error.message) from error
    known = {n.name for g in model.graphs() for n in g.nodes}
    if strange := [s.node for s in result.skipped if s.node not in known or not s.reason]:
        raise Broken("structure", step.name, f"it skips {strange[0]!r}, which is no node, or without a reason")
    return result.changed


def _blame(
    model: Model,
    feeds: Sequence[Feeds],
    run: Callable[[bytes, Sequence[Feeds]], list[Outputs]],
    compare: Compare,
    wanted: list[Outputs],
    kind: str,
    message: str,
) -> Broken:
    """Apply the passes one at a time, and compare after each."""
    state = model.copy()
    for _ in range(_MOST_ROUNDS):
        for step in passes():
            if not _apply(step, state):
                continue
            try:
                reason = compare(wanted, run(state.to_bytes(), feeds))
            except GraphoptError as error:
                return Broken("invalid", step.name, error.message)
            if reason:
                return Broken("wrong", step.name, reason)
    return Broken(kind, "all passes together", message)
