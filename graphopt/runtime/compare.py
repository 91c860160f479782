"""Two models side by side on the same images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt.data.loader import Batches
from graphopt.errors import ModelError
from graphopt.progress import Progress, Silent
from graphopt.runtime.evaluate import Evaluation, Tally, agreement, fixed_batch
from graphopt.runtime.feeds import random_feeds
from graphopt.runtime.session import (
    ModelSource,
    Port,
    SessionIO,
    describe_source,
    open_session,
    run_session,
    session_io,
)
from graphopt.runtime.statistics import PairedDelta, paired_delta


@dataclass(frozen=True)
class OutputGap:
    """How far apart the first outputs of two models are on ``n`` inputs, in the outputs' own unit.

    ``relative`` is ``max_abs`` over the largest magnitude in the first model's outputs. Images where either
    output is not finite are left out and counted in ``non_finite``.
    """

    n: int
    max_abs: float
    mean_abs: float
    relative: float
    non_finite: int


@dataclass(frozen=True)
class Comparison:
    """Model ``a`` (before) and ``b`` (after) on the same images.

    Without images, only ``outputs`` and ``bytes`` are there, and the outputs are those on random inputs
    (``random_inputs``). ``paired`` needs labels; ``agreement`` does not. ``bytes`` are the sizes of the model
    files, without external data.
    """

    a: Evaluation | None
    b: Evaluation | None
    paired: PairedDelta | None
    agreement: float | None
    outputs: OutputGap
    bytes: tuple[int, int]
    random_inputs: bool


def compare_models(
    a: ModelSource,
    b: ModelSource,
    batches: Batches | None,
    *,
    threads: int = 1,
    batch_size: int = 64,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Run both models on every image, in constant memory, and compare what they say.

    Without ``batches``, the outputs are compared on a few random inputs of the models' size (``height`` and
    ``width`` where that is open). Raises ModelError if a model does not load or run or is no classifier, or
    if the two do not take the same images; DataError as ``evaluate`` does.
    """
    sessions = [open_session(m, threads=threads) for m in (a, b)]
    io = session_io(sessions[0])
    _same_input(io, session_io(sessions[1]), a, b)
    sizes = (_size(a), _size(b))
    fixed = [fixed_batch(session_io(s).inputs[0].shape) for s in sessions]
    gap = _Gap()
    if batches is None:
        for feed in random_feeds(io, (1, 3), seed, height=height, width=width):
            x = feed[io.inputs[0].name]
            gap.add(*(run_session(s, x, n)[0] for s, n in zip(sessions, fixed, strict=True)))
        return Comparison(None, None, None, None, gap.result(), sizes, random_inputs=True)
    tallies = [Tally(batches, describe_source(m)) for m in (a, b)]
    steps = -(-len(batches) // batch_size)
    description = f"comparing on {batches.description}"
    for x in (progress or Silent()).track(batches.batches(batch_size), description, steps):
        outputs = []
        for session, tally, batch in zip(sessions, tallies, fixed, strict=True):
            start = time.perf_counter()
            output = run_session(session, x, batch)[0]
            tally.add(output, len(x), time.perf_counter() - start)
            outputs.append(output)
        gap.add(outputs[0], outputs[1])
    before = tallies[0].result()
    after = tallies[1].result(before)
    paired = None
    if before.correct is not None and after.correct is not None and before.n:
        paired = paired_delta(before.correct, after.correct)
    return Comparison(before, after, paired, agreement(before, after), gap.result(), sizes, random_inputs=False)


class _Gap:
    """Running figures of ``OutputGap``."""

    def __init__(self) -> None:
        self.n, self.non_finite, self.count = 0, 0, 0
        self.max_abs, self.total, self.largest = 0.0, 0.0, 0.0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        if a.size != b.size or len(a) != len(b):
            raise ModelError(
                f"the models' outputs have shapes {list(a.shape)} and {list(b.shape)}",
                "only models with the same classes can be compared",
            )
        x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
        finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        self.n += len(x)
        self.non_finite += int((~finite).sum())
        x, y = x[finite], y[finite]
        if x.size:
            gap = np.abs(x - y)
            self.max_abs = max(self.max_abs, float(gap.max()))
            self.total += float(gap.sum())
            self.count += gap.size
            self.largest = max(self.largest, float(np.abs(x).max()))

    def result(self) -> OutputGap:
        mean = self.total / self.count if self.count else 0.0
        relative = self.max_abs / max(self.largest, 1e-6)
        return OutputGap(self.n, self.max_abs, mean, relative, self.non_finite)


def _same_input(a: SessionIO, b: SessionIO, first: ModelSource, second: ModelSource) -> None:
    one, two = a.inputs[0], b.inputs[0]
    if len(a.inputs) != 1 or len(b.inputs) != 1 or one.dtype != two.dtype or not _compatible(one, two):
        raise ModelError(
            f"{describe_source(first)} takes {one.dtype} {list(one.shape)}, "
            f"{describe_source(second)} takes {two.dtype} {list(two.shape)}",
            "only models with one input, and the same for both, can be compared",
        )


def _compatible(one: Port, two: Port) -> bool:
    """Same shape, but for open dimensions and the batch, which may be fixed in either model."""
    return len(one.shape) == len(two.shape) and all(
        p == q or not (isinstance(p, int) and isinstance(q, int))
        for p, q in zip(one.shape[1:], two.shape[1:], strict=True)
    )


def _size(model: ModelSource) -> int:
    return len(model) if isinstance(model, bytes) else Path(model).stat().st_size
