"""Runs passes in order; verifies, records and, for EXACT passes, compares. What passes must not be trusted with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from graphopt import garbage
from graphopt.errors import ContractError, GraphoptError, PassError
from graphopt.ir import Model, Snapshot, verify
from graphopt.ir.values import nbytes
from graphopt.pipeline import exactness
from graphopt.pipeline.base import Kind, Pass, PassResult, Pipeline, Skipped
from graphopt.pipeline.context import Context
from graphopt.pipeline.hooks import Hook


@dataclass
class Record:
    """What the report says about one pass."""

    spec: str
    kind: str
    changed: bool
    seconds: float
    delta: dict[str, int]
    metrics: dict[str, Any] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    exactness: dict[str, Any] | None = None
    again: str | None = None


# A pipeline that repeats until nothing changes ends sooner, unless two of its passes undo each other.
_MOST_ROUNDS = 10


class PassManager:
    """Runs a list of passes and pipelines over a model; a pipeline repeats its passes until none changes anything.

    ``verify_each`` adds ``onnx.checker`` and a load in ONNX Runtime after each pass. ``records`` grows while the
    passes run, so that a failure leaves the story up to it: one a pass, and one more for each later round of a
    pipeline in which it changed something.
    """

    def __init__(
        self, passes: Sequence[Pass | Pipeline], hooks: Sequence[Hook] = (), verify_each: bool = False
    ) -> None:
        self.passes, self.hooks, self.verify_each = list(passes), list(hooks), verify_each
        self.records: list[Record] = []
        self.again: list[str] = []  # specifications that give the same bytes again
        self._exact = _Segment()
        self._ran = 0
        self._idle: list[Pass] = []  # that said they changed nothing since the last that did
        self._state: _State | None = None
        self._snapshot: Snapshot | None = None  # of the model when it was last verified
        self._unverified = False  # whether believed passes have changed it since
        self._eager = verify_each or any(hook.wants_verified for hook in self.hooks)

    def run(self, model: Model, ctx: Context) -> list[Record]:
        """Run all passes. Raises PassError when a pass fails or breaks a promise."""
        for number, step in enumerate(self.passes):
            ctx.int8_follows = any(isinstance(later, Pass) and later.to_int8 for later in self.passes[number + 1 :])
            if isinstance(step, Pipeline):
                self._run_pipeline(step, model, ctx)
                self.again.append(step.spec)
            else:
                self.again.append(self._run_one(step, model, ctx).again or step.spec)
        self._settle(model, ctx)
        self._check_exact(model, ctx)
        return self.records

    def _run_pipeline(self, pipeline: Pipeline, model: Model, ctx: Context) -> None:
        latest: dict[Pass, Record] = {}
        idle = 0  # passes in a row that changed nothing: with all of them, another round would change nothing
        for round_ in range(_MOST_ROUNDS):
            for step in pipeline.passes:
                if idle == len(pipeline.passes):
                    return
                record = self._run_one(step, model, ctx, keep=round_ == 0)
                # What was left alone at first may be gone by now.
                latest.setdefault(step, record).skipped = record.skipped
                idle = 0 if record.changed else idle + 1
        if idle < len(pipeline.passes):
            ctx.progress.warn(f"{pipeline.name!r} still changed the model in round {_MOST_ROUNDS}; stopped there")

    def _run_one(self, step: Pass, model: Model, ctx: Context, keep: bool = True) -> Record:
        """Run one pass and append its record, unless it changed nothing and need not be kept."""
        # Until _settle, which finds out by replaying exact passes.
        believed = step.counts_changes and step.kind is Kind.EXACT and not self._eager
        if not believed:
            self._settle(model, ctx)
        if step.kind is Kind.LOSSY:
            self._check_exact(model, ctx)
        if self._exact.start is None:
            self._exact.start = _as_it_is(model, ctx)
        ctx.progress.log(f"pass {step.spec}")
        index, self._ran = self._ran, self._ran + 1
        for hook in self.hooks:
            hook.before(index, step, model)
        before = self._state if self._state is not None and self._state.revision == model.revision else _State.of(model)
        if self._snapshot is None or (before is not self._state and not self._unverified):
            self._snapshot = Snapshot.of(model)
        began = time.perf_counter()
        try:
            with garbage.paused() if step.kind is Kind.EXACT else nullcontext():
                result = step.run(model, ctx)
                seconds = time.perf_counter() - began
                after = self._take(step, model, before, result, believed)
        except Exception as error:
            if isinstance(error, GraphoptError) and not isinstance(error, ContractError):
                raise  # said on purpose, to the user
            # It may have been given a broken model.
            raise self._broken(ctx) or self._failure(index, step, self._exact.replay(ctx)[-1], error) from error
        self._state = after
        if not believed:
            self._settle(model, ctx)
        delta = {key: value - before.size[key] for key, value in after.size.items()}
        record = Record(
            step.spec, step.kind.value, result.changed, seconds, delta, result.metrics, list(result.skipped)
        )
        record.again = result.again
        if keep or result.changed:
            self.records.append(record)
        for hook in self.hooks:
            hook.after(index, step, model, result)
        ctx.forget(model)
        if step.kind is Kind.LOSSY:
            self._exact = _Segment()
        elif result.changed:
            self._exact.add(index, step, record)
        return record

    def _take(self, step: Pass, model: Model, before: _State, result: PassResult, believed: bool) -> _State:
        """The state after a pass, verified unless the pass is believed for now."""
        if not isinstance(result, PassResult):
            raise ContractError(f"the pass {step.name!r} returned {type(result).__name__}, not a PassResult")
        if not result.changed:
            self._idle.append(step)
            return replace(before, revision=model.revision)
        self._idle.clear()
        if believed:
            self._unverified = True
        else:
            verify(model, self._snapshot, f"the pass {step.name!r}")
            self._snapshot = None
            if self.verify_each:
                _deep_check(step, model)
        return _State.of(model)

    def _settle(self, model: Model, ctx: Context) -> None:
        """Verify what believed passes have left. Raises PassError naming the first that broke its promises."""
        if self._unverified:
            try:
                verify(model, self._snapshot)
            except ContractError as error:
                raise self._broken(ctx) or self._failure(
                    self._exact.indices[-1], self._exact.steps[-1], self._exact.replay(ctx)[-2], error
                ) from error
            self._unverified, self._snapshot = False, None
        self._check_idle(model, ctx)

    def _broken(self, ctx: Context) -> PassError | None:
        """The failure of the first pass not verified yet that leaves a broken model, if one does."""
        if not self._unverified:
            return None
        assert self._exact.start is not None
        model = self._exact.start
        for index, step in zip(self._exact.indices, self._exact.steps, strict=True):
            start, model = model, model.copy()
            snapshot = Snapshot.of(model)
            try:
                step.run(model, ctx)
                verify(model, snapshot, f"the pass {step.name!r}")
            except Exception as error:
                return self._failure(index, step, start, error)
        return None

    def _check_exact(self, model: Model, ctx: Context) -> None:
        segment, self._exact = self._exact, _Segment()
        if segment.start is None or not segment.steps:
            return
        specs = [step.spec for step in segment.steps]
        ctx.progress.log(f"comparing with the model before {', '.join(dict.fromkeys(specs))}")
        try:
            verdict = exactness.check(segment.start, model, specs, lambda: segment.replay(ctx), ctx)
        except exactness.Inexact as error:
            start = segment.replay(ctx)[error.index]
            raise self._failure(segment.indices[error.index], segment.steps[error.index], start, error) from error
        for record in segment.records:
            record.exactness = verdict

    def _check_idle(self, model: Model, ctx: Context) -> None:
        """Raise PassError if a pass that said so since the last change did not leave the model alone."""
        claimed, self._idle = self._idle, []
        if not claimed or self._state is None or model.fingerprint() == self._state.mark:
            return
        start = self._exact.replay(ctx)[-1]
        culprit, twin = claimed[-1], start.copy()
        mark = twin.fingerprint()
        for step in claimed[:-1]:
            step.run(twin, ctx)
            if twin.fingerprint() != mark:
                culprit = step
                break
        error = ContractError(f"the pass {culprit.name!r} changed the model and says that it did not")
        raise self._failure(self._ran - 1, culprit, start, error) from error

    def _failure(self, index: int, step: Pass, start: Model, error: Exception) -> PassError:
        notes = [note for hook in self.hooks if (note := hook.failed(index, step, start, error))]
        if isinstance(error, ContractError):
            return ContractError(error.message, "; ".join(filter(None, [error.hint, *notes])))
        return PassError(f"the pass {step.name!r} failed: {type(error).__name__}: {error}", "; ".join(notes))


@dataclass(frozen=True)
class _State:
    """What the manager knows of the model between two passes, so that a pass that changes nothing costs little."""

    revision: int
    size: dict[str, int]
    mark: int

    @classmethod
    def of(cls, model: Model) -> _State:
        mark, weights, nodes = model.survey()
        size = {"nodes": nodes, "initializers": len(weights), "weight_bytes": sum(map(nbytes, weights))}
        return cls(model.revision, size, mark)


@dataclass
class _Segment:
    """EXACT passes not compared yet. One copy of the model before them is kept; passes being deterministic, the
    states between them can be had again by running them on it, which only a failure needs."""

    start: Model | None = None
    indices: list[int] = field(default_factory=list)
    steps: list[Pass] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def add(self, index: int, step: Pass, record: Record) -> None:
        self.indices.append(index)
        self.steps.append(step)
        self.records.append(record)

    def replay(self, ctx: Context) -> list[Model]:
        """The model before the first step, and after each step."""
        assert self.start is not None
        states = [self.start]
        for step in self.steps:
            model = states[-1].copy()
            step.run(model, ctx)
            states.append(model)
        return states


def _as_it_is(model: Model, ctx: Context) -> Model:
    """A copy of the model; the reference serves where nothing has changed yet."""
    same = ctx.reference is not model and ctx.reference.is_copy_of(model)
    return ctx.reference if same else model.copy()


def _deep_check(step: Pass, model: Model) -> None:
    from graphopt.runtime.session import open_session, runnable

    try:
        with runnable(model) as form:
            onnx.checker.check_model(form if isinstance(form, bytes) else str(form), full_check=True)
            open_session(form)
    except Exception as error:
        raise ContractError(f"the pass {step.name!r} broke the model: {error}") from error
