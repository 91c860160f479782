"""Runs passes in order; verifies, records and, for EXACT passes, compares. What passes must not be trusted with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from graphopt.errors import ContractError, GraphoptError, PassError
from graphopt.ir import Model, Snapshot, verify
from graphopt.ir.values import nbytes
from graphopt.pipeline import exactness
from graphopt.pipeline.base import Kind, Pass, PassResult, Skipped
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


class PassManager:
    """Runs a list of passes over a model.

    ``verify_each`` adds ``onnx.checker`` and a load in ONNX Runtime after each pass. ``records`` grows while the
    passes run, so that a failure leaves the story up to it.
    """

    def __init__(self, passes: Sequence[Pass], hooks: Sequence[Hook] = (), verify_each: bool = False) -> None:
        self.passes, self.hooks, self.verify_each = list(passes), list(hooks), verify_each
        self.records: list[Record] = []

    def run(self, model: Model, ctx: Context) -> list[Record]:
        """Run all passes. Raises PassError when a pass fails or breaks a promise."""
        pending: list[tuple[int, Model]] = []  # EXACT passes not compared yet: index, and the model before
        for index, step in enumerate(self.passes):
            if step.kind is Kind.LOSSY:
                self._check_exact(pending, model, ctx)
                pending = []
            start = model.copy()
            result = self._run_one(index, start, model, ctx)
            if step.kind is Kind.EXACT and result.changed:
                pending.append((index, start))
        self._check_exact(pending, model, ctx)
        return self.records

    def _check_exact(self, pending: list[tuple[int, Model]], model: Model, ctx: Context) -> None:
        if not pending:
            return
        specs = [self.passes[index].spec for index, _ in pending]
        ctx.progress.log(f"comparing with the model before {', '.join(specs)}")
        try:
            verdict = exactness.check([*(start for _, start in pending), model], specs, ctx)
        except exactness.Inexact as error:
            index, start = pending[error.index]
            raise self._failure(index, start, error) from error
        for index, _ in pending:
            self.records[index].exactness = verdict

    def _run_one(self, index: int, start: Model, model: Model, ctx: Context) -> PassResult:
        """Run one pass on ``model``; ``start`` is a copy of it."""
        step = self.passes[index]
        ctx.progress.log(f"pass {step.spec}")
        for hook in self.hooks:
            hook.before(index, step, model)
        before, size, mark = Snapshot.of(model), _size(model), model.fingerprint()
        began = time.perf_counter()
        try:
            result = step.run(model, ctx)
            seconds = time.perf_counter() - began
            self._verify(step, model, before, result, mark)
        except Exception as error:
            if isinstance(error, GraphoptError) and not isinstance(error, ContractError):
                raise  # said on purpose, to the user
            raise self._failure(index, start, error) from error
        delta = {key: value - size[key] for key, value in _size(model).items()}
        record = Record(
            step.spec, step.kind.value, result.changed, seconds, delta, result.metrics, list(result.skipped)
        )
        self.records.append(record)
        for hook in self.hooks:
            hook.after(index, step, model, result)
        ctx.forget(model)
        return result

    def _verify(self, step: Pass, model: Model, before: Snapshot, result: PassResult, mark: int) -> None:
        if not isinstance(result, PassResult):
            raise ContractError(f"the pass {step.name!r} returned {type(result).__name__}, not a PassResult")
        if not result.changed and model.fingerprint() != mark:
            raise ContractError(f"the pass {step.name!r} changed the model and says that it did not")
        verify(model, before, f"the pass {step.name!r}")
        if self.verify_each:
            _deep_check(step, model)

    def _failure(self, index: int, start: Model, error: Exception) -> PassError:
        step = self.passes[index]
        notes = [note for hook in self.hooks if (note := hook.failed(index, step, start, error))]
        if isinstance(error, ContractError):
            return ContractError(error.message, "; ".join(filter(None, [error.hint, *notes])))
        return PassError(f"the pass {step.name!r} failed: {type(error).__name__}: {error}", "; ".join(notes))


def _size(model: Model) -> dict[str, int]:
    constants = list(model.constants())
    return {
        "nodes": sum(len(g.nodes) for g in model.graphs()),
        "initializers": len(constants),
        "weight_bytes": sum(nbytes(c) for c in constants),
    }


def _deep_check(step: Pass, model: Model) -> None:
    from graphopt.runtime.session import open_session, runnable

    try:
        with runnable(model) as form:
            onnx.checker.check_model(form if isinstance(form, bytes) else str(form), full_check=True)
            open_session(form)
    except Exception as error:
        raise ContractError(f"the pass {step.name!r} broke the model: {error}") from error
