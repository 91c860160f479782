"""Accuracy of a model on images: streamed through ONNX Runtime, one batch at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from graphopt.data.checks import check_labels
from graphopt.data.loader import Batches
from graphopt.errors import ModelError
from graphopt.progress import Progress, Silent
from graphopt.runtime.session import ModelSource, describe_source, open_session, run_session, session_io
from graphopt.runtime.statistics import wilson


@dataclass(frozen=True)
class Evaluation:
    """What a model made of ``n`` images.

    ``top1``, ``top5`` are fractions: None without labels, ``top5`` also with five classes or fewer. ``ci95``
    is the Wilson interval of ``top1``. ``predictions`` is int64 [n], -1 where the outputs hold NaN;
    ``correct`` is bool [n] or None. ``non_finite`` counts images with a NaN or infinite output. ``agreement``
    is the fraction of images with the reference's prediction. ``images_per_second`` counts inference only,
    not decoding. ``synthetic`` evaluations validate nothing.
    """

    n: int
    labels: bool
    classes: int
    top1: float | None
    top5: float | None
    ci95: tuple[float, float] | None
    predictions: np.ndarray
    correct: np.ndarray | None
    images_per_second: float
    non_finite: int = 0
    agreement: float | None = None
    synthetic: bool = False


def evaluate(
    model: ModelSource,
    batches: Batches,
    *,
    threads: int = 1,
    batch_size: int = 64,
    progress: Progress | None = None,
    reference: Evaluation | None = None,
) -> Evaluation:
    """Run all images through the model, in constant memory.

    With ``reference``, an evaluation on the same images, the result also has the agreement with it. Only the
    order of the outputs counts, so logits and probabilities do equally. Raises ModelError if the first output
    is not [N, classes], DataError if a label is outside the classes or an image cannot be decoded.
    """
    session = open_session(model, threads=threads)
    batch = fixed_batch(session_io(session).inputs[0].shape)
    tally = Tally(batches, describe_source(model))
    shown = (progress or Silent()).track(
        batches.batches(batch_size), f"evaluating on {batches.description}", -(-len(batches) // batch_size)
    )
    for x in shown:
        start = time.perf_counter()
        outputs = run_session(session, x, batch)
        tally.add(outputs[0], len(x), time.perf_counter() - start)
    return tally.result(reference)


def fixed_batch(shape: tuple[int | str | None, ...]) -> int | None:
    """The batch size that an input of this shape insists on, or None."""
    return shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else None


def agreement(a: Evaluation, b: Evaluation) -> float:
    """The fraction of images on which two evaluations predict the same class; NaN outputs agree with
    nothing."""
    if a.n != b.n:
        raise ValueError(f"evaluations on {a.n} and {b.n} images cannot be compared")
    same = (a.predictions == b.predictions) & (a.predictions >= 0)
    return float(same.mean()) if a.n else 1.0


class Tally:
    """Collects what ``Evaluation`` holds, batch after batch."""

    def __init__(self, batches: Batches, source: str) -> None:
        self._batches, self._source = batches, source
        n = len(batches)
        self._labels = batches.labels
        self._predictions = np.full(n, -1, dtype=np.int64)
        self._rank = np.zeros(n, dtype=np.int64)
        self._seen, self._seconds, self._non_finite, self._classes = 0, 0.0, 0, 0

    def add(self, output: np.ndarray, n: int, seconds: float) -> None:
        """Count the outputs [n, classes] (size-1 axes are ignored) of the next ``n`` images."""
        scores = as_scores(output, self._source)
        if len(scores) != n:
            raise ModelError(
                f"{self._source} gives {len(scores)} rows of scores for a batch of {n} images",
                "export it with the batch as the first dimension of its input and output",
            )
        if self._classes == 0:
            self._classes = scores.shape[1]
            check_labels(self._batches, self._classes)
        rows = slice(self._seen, self._seen + len(scores))
        invalid = np.isnan(scores).any(axis=1)
        self._non_finite += int((~np.isfinite(scores)).any(axis=1).sum())
        self._predictions[rows] = np.where(invalid, -1, scores.argmax(axis=1))
        if self._labels is not None:
            ranks = rank_of(scores, self._labels[rows])
            self._rank[rows] = np.where(invalid, self._classes, ranks)
        self._seen += len(scores)
        self._seconds += seconds

    def result(self, reference: Evaluation | None = None) -> Evaluation:
        """The evaluation, once all batches were added."""
        n, labeled = self._seen, self._labels is not None
        if n != len(self._predictions):
            raise ValueError(f"{n} of {len(self._predictions)} images were added")
        correct = self._rank == 0 if labeled else None
        hits = int(correct.sum()) if correct is not None else 0
        mine = Evaluation(
            n=n,
            labels=labeled,
            classes=self._classes,
            top1=hits / n if labeled and n else None,
            top5=float((self._rank < 5).mean()) if labeled and n and self._classes > 5 else None,
            ci95=wilson(hits, n) if labeled else None,
            predictions=self._predictions,
            correct=correct,
            images_per_second=n / self._seconds if self._seconds > 0 else 0.0,
            non_finite=self._non_finite,
            synthetic=self._batches.synthetic,
        )
        if reference is None:
            return mine
        return replace(mine, agreement=agreement(reference, mine))


def as_scores(output: np.ndarray, source: str) -> np.ndarray:
    """A classifier's output as [N, classes], without axes of size 1. Raises ModelError if it is not one."""
    axes = tuple(i for i in range(2, output.ndim) if output.shape[i] == 1)
    scores = output.squeeze(axes)
    if scores.ndim == 3 and scores.shape[1] == 1:
        scores = scores[:, 0]
    if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
        raise ModelError(
            f"the first output of {source} is {output.dtype} {list(output.shape)}, not scores [N, classes]",
            "graphopt handles classifiers whose first output has one score a class, at least two",
        )
    return scores


def rank_of(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the label's, int64 [n]: 0 is top-1, below 5 is top-5.

    Among equal scores, which int8 outputs often have, the lower class number comes first, as in argmax.
    """
    own = scores[np.arange(len(scores)), labels][:, None]
    before = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)
