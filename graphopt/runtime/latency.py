"""How long a model takes: interleaved with its rivals, so that what slows the machine slows them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.progress import Progress, Silent
from graphopt.runtime.feeds import random_feed
from graphopt.runtime.session import ModelSource, open_session, run_feeds, session_io

_BLOCK_SECONDS = 0.01
_MIN_ROUNDS, _MAX_ROUNDS = 9, 1000
# Between runs the threads of one model must not spin on the cores that the next one is timed on.
_CONFIG = {"session.force_spinning_stop": "1"}


@dataclass(frozen=True)
class Latency:
    """Time of one inference in milliseconds: median and quartiles over ``rounds``, at this batch and threads.

    ``samples_ms`` [rounds] holds each round's mean over its runs; round ``i`` of all models measured together
    was taken at nearly the same time.
    """

    median_ms: float
    q1_ms: float
    q3_ms: float
    rounds: int
    runs: int
    batch: int
    threads: int
    samples_ms: np.ndarray


def measure(
    models: Sequence[ModelSource],
    *,
    threads: int = 1,
    batch: int = 1,
    height: int | None = None,
    width: int | None = None,
    seconds: float = 2.0,
    rounds: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Latency]:
    """Time the models against each other on random images.

    In every round each model runs for a block of about 10 ms, after one untimed run that brings its weights
    back into the caches; the order turns around every round. ``seconds`` is about how long each model is
    timed for, unless ``rounds`` is given. ``batch``, ``height`` and ``width`` fill the dimensions that a
    model leaves open; a model that fixes its batch is timed at that batch. Raises ModelError for a model that
    does not run, or that leaves height or width open when they are not given.
    """
    runners: list[Callable[[], object]] = []
    batches: list[int] = []
    for model in models:
        session = open_session(model, threads=threads, config=_CONFIG)
        io = session_io(session)
        feed = random_feed(io, batch=batch, height=height, width=width, seed=seed, must_know_size=True)
        run_feeds(session, feed)  # an error of the model shows here, in its own words
        runners.append(_runner(session, feed))
        batches.append(len(feed[io.inputs[0].name]))
    repeats = [_repeats(run) for run in runners]
    if rounds is None:
        block = max(_block(run, n) * n for run, n in zip(runners, repeats, strict=True))
        rounds = int(min(max(seconds / max(block, 1e-9), _MIN_ROUNDS), _MAX_ROUNDS))
    samples = np.zeros((len(runners), rounds))
    order = list(range(len(runners)))
    for r in (progress or Silent()).track(range(rounds), "timing", rounds):
        for m in order if r % 2 == 0 else order[::-1]:
            runners[m]()
            samples[m, r] = 1000 * _block(runners[m], repeats[m])
    return [_summary(samples[m], repeats[m] * rounds, batches[m], threads) for m in range(len(runners))]


def speedup(before: Latency, after: Latency) -> float:
    """How many times faster ``after`` is per image: the median over rounds of the ratio within a round.

    Unlike the ratio of two medians, it does not suffer when the machine changes its pace half way: a round's
    two times were taken one after the other, so the change is in both.
    """
    if before.rounds != after.rounds:
        raise ValueError("these latencies were not measured together")
    return float(np.median(before.samples_ms / after.samples_ms)) * after.batch / before.batch


def _runner(session: object, feed: dict[str, np.ndarray]) -> Callable[[], object]:
    run = session.run  # type: ignore[attr-defined]
    return lambda: run(None, feed)


def _repeats(run: Callable[[], object]) -> int:
    """Runs a block: warms up for a moment, then takes the fastest run as the measure."""
    fastest, start, tries = float("inf"), time.perf_counter(), 0
    while tries < 3 or (tries < 200 and time.perf_counter() - start < 0.1):
        fastest = min(fastest, _block(run, 1))
        tries += 1
    return max(1, min(1000, round(_BLOCK_SECONDS / max(fastest, 1e-6))))


def _block(run: Callable[[], object], runs: int) -> float:
    """Mean seconds of one run over ``runs`` in a row."""
    start = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - start) / runs


def _summary(samples: np.ndarray, runs: int, batch: int, threads: int) -> Latency:
    q1, median, q3 = np.percentile(samples, [25, 50, 75])
    return Latency(float(median), float(q1), float(q3), len(samples), runs, batch, threads, samples)
