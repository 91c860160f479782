"""What the activations of a model look like on the calibration images: the one calibration engine.

The float model runs once over the images with the tensors of interest as its outputs; what is kept of a tensor is
its extremes and, if asked for, a histogram. Memory does not grow with the number of images, and statistics of parts of
the images merge into those of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.base import Analysis
from graphopt.analysis.histogram import Histogram
from graphopt.analysis.thresholds import entropy_range, mse_range
from graphopt.errors import DataError, ModelError
from graphopt.ir.model import Model
from graphopt.ir.shapes import infer_shapes

Method = Literal["minmax", "average", "percentile", "entropy", "mse"]
_BATCH_ELEMENTS = 1 << 22  # activations held at a time, over all tensors asked for
_MAX_BATCH = 32
# Values that one image adds to a histogram, a tensor. A percentile such as the 99.99th is the same over millions of
# values whether 50 or 800 thousand of each image are counted; the extremes are always taken over all values.
_SAMPLE = 1 << 15


@dataclass
class TensorStatistics:
    """One tensor over all calibration images: exact extremes, of all and as means over images; means by channel; and
    perhaps a histogram."""

    low: float = float("inf")
    high: float = float("-inf")
    histogram: Histogram | None = None
    images: int = 0
    parts: int = 0  # that the sums of extremes are over: images, or batches where the tensor does not tell them apart
    low_sum: float = 0.0
    high_sum: float = 0.0
    _sums: np.ndarray | None = None

    @property
    def channel_means(self) -> np.ndarray | None:
        """Mean of each channel (axis 1) over images and positions, float64 [channels]; None for other ranks."""
        return None if self._sums is None else self._sums / max(self.images, 1)

    def add(self, values: np.ndarray, sample: int | None = None, images: int | None = None) -> None:
        """Take in a batch [n,...], or a scalar; at most ``sample`` values an image go into the histogram.

        ``images``: how many the batch is of, where the first axis holds more than one entry for each.
        """
        if not values.size:
            return
        values = np.atleast_1d(values)
        count = len(values) if images is None or values.size % images else images
        each = values.reshape(count, -1)
        lows, highs = each.min(axis=1), each.max(axis=1)
        self.low = float(np.minimum(self.low, lows.min()))  # unlike min(), keeps a NaN
        self.high = float(np.maximum(self.high, highs.max()))
        self.low_sum += float(lows.sum(dtype=np.float64))
        self.high_sum += float(highs.sum(dtype=np.float64))
        self.parts += count
        if values.ndim >= 2:
            by_channel = values.reshape(values.shape[0], values.shape[1], -1)
            sums = by_channel.mean(axis=2).sum(axis=0, dtype=np.float64)
            self._sums = sums if self._sums is None else self._sums + sums
        self.images += len(values)
        if self.histogram is not None and np.isfinite(self.low) and np.isfinite(self.high):
            flat = values.reshape(-1)
            step = 1 if sample is None else -(-flat.size // (sample * len(values)))
            # An odd step shares no factor with the usual widths and channel counts: every position is met.
            self.histogram.add(flat[:: step if step == 1 else step | 1])

    def merge(self, other: TensorStatistics) -> None:
        """Become the statistics of the images of both."""
        self.low, self.high = (
            float(np.minimum(self.low, other.low)),
            float(np.maximum(self.high, other.high)),
        )
        self.low_sum, self.high_sum = self.low_sum + other.low_sum, self.high_sum + other.high_sum
        self.parts, self.images = self.parts + other.parts, self.images + other.images
        if other._sums is not None:
            self._sums = other._sums.copy() if self._sums is None else self._sums + other._sums
        if other.histogram is not None:
            if self.histogram is None:
                self.histogram = Histogram()
            self.histogram.merge(other.histogram)

    def range(self, percentile: float = 100.0) -> tuple[float, float]:
        """Bounds that hold ``percentile`` percent of the values, what is outside split evenly; 100: the extremes."""
        if percentile >= 100 or self.histogram is None:
            return self.low, self.high
        tail = (100 - percentile) / 200
        low = max(self.low, self.histogram.quantile(tail))
        return low, max(low, min(self.high, self.histogram.quantile(1 - tail)))

    def bounds(self, method: Method, percentile: float = 100.0, levels: int = 256) -> tuple[float, float]:
        """The range that a calibration method chooses, within the extremes, for so many ``levels``.

        All but ``minmax`` and ``average`` need a histogram.
        """
        if method == "average":
            return self.low_sum / max(self.parts, 1), self.high_sum / max(self.parts, 1)
        if method == "percentile":
            return self.range(percentile)
        if method == "minmax" or self.histogram is None:
            return self.low, self.high
        choose = entropy_range if method == "entropy" else mse_range
        return choose(self.histogram, self.low, self.high, levels)


@dataclass(frozen=True)
class ActivationStatistics(Analysis[Mapping[str, TensorStatistics]]):
    """Extremes (and, with method ``histogram``, distributions) of float tensors over the calibration images.

    ``tensors`` are names of graph inputs or node outputs of the main graph; ``images`` limits how many images are
    used (None: all). Raises ModelError for a name that does not exist, DataError for values that are not finite.
    """

    tensors: tuple[str, ...]
    method: Literal["extremes", "histogram"] = "extremes"
    images: int | None = None

    def compute(self, model: Model, ctx: Any) -> Mapping[str, TensorStatistics]:
        found = {
            name: TensorStatistics(histogram=Histogram() if self.method == "histogram" else None)
            for name in dict.fromkeys(self.tensors)
        }
        for count, batch in _observe(model, ctx, tuple(found), self.images):
            for name, values in batch.items():
                found[name].add(values, _SAMPLE, count)
        if any(s.images == 0 for s in found.values()):
            raise DataError("there are no calibration images", "calibrate on at least one image")
        for name, statistics in found.items():
            if not np.isfinite(statistics.high - statistics.low):
                raise DataError(
                    f"tensor {name!r} takes values that are not finite on the calibration images",
                    "check the preprocessing, and that the float model gives finite outputs",
                )
        return found


def observe(
    model: Model, ctx: Any, tensors: tuple[str, ...], images: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Run the calibration images through ``model`` and yield the named tensors, batch by batch.

    Batches are as large as keeps the tensors under a fixed number of elements, so memory depends on the model alone.
    A batch size that the model fixes is kept by repeating the last image; the repetition is yielded, too. Fewer images
    than there are come from all over them, since folders hold one class after the other.
    """
    for _, batch in _observe(model, ctx, tensors, images):
        yield batch


def _observe(
    model: Model, ctx: Any, tensors: tuple[str, ...], images: int | None
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Number of images (repetitions included) and tensors, batch by batch."""
    if not tensors:
        return
    if len(model.inputs) != 1:
        raise ModelError(
            f"calibration needs a model with one input, this one has {len(model.inputs)}",
            "turn the other inputs into constants",
        )
    entry = model.inputs[0]
    probe = _Probe(model, tensors, ctx.threads)
    fixed = entry.shape[0] if entry.shape and isinstance(entry.shape[0], int) and entry.shape[0] > 0 else None
    size = fixed or probe.batch_size()
    total = len(ctx.calibration) if images is None else min(images, len(ctx.calibration))
    chosen = ctx.calibration if images is None else ctx.calibration.subset(images, ctx.seed)
    batches = chosen.batches(size)
    # One batch runs while the caller counts the one before. The order, and so the result, stays the same.
    with ThreadPoolExecutor(1, thread_name_prefix="calibrate") as pool:
        running: tuple[int, Future[dict[str, np.ndarray]]] | None = None
        for x in ctx.progress.track(batches, "calibrating", -(-total // size)):
            if fixed and len(x) < fixed:
                x = np.concatenate([x, np.repeat(x[-1:], fixed - len(x), axis=0)])
            done = (running[0], running[1].result()) if running is not None else None
            running = len(x), pool.submit(probe.run, entry.name, x)
            if done is not None:
                yield done
        if running is not None:
            yield running[0], running[1].result()


@dataclass
class _Probe:
    """The model with other outputs, in ONNX Runtime."""

    model: Model
    tensors: tuple[str, ...]
    threads: int
    shapes: list[list[int | str | None] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        from graphopt.runtime.session import open_session, runnable

        self._inputs = [n for n in self.tensors if any(n == t.name for t in self.model.graph.inputs)]
        self._inner = [n for n in self.tensors if n not in self._inputs]
        twin = self.model.copy()
        known = twin.graph.tensors()
        for name in self._inner:
            if not isinstance(known.get(name), gs.Variable):
                raise ModelError(f"there is no activation {name!r} to calibrate on")
        if any(known[n].dtype is None or known[n].shape is None for n in self._inner):
            infer_shapes(twin)
        self.shapes = [known[n].shape for n in self.tensors]
        self._session = None
        if self._inner:
            with twin.edit() as graph:  # or the file that it came from would be run
                graph.outputs = [known[n] for n in self._inner]
                graph.cleanup(remove_unused_graph_inputs=False)
            with runnable(twin) as form:
                self._session = open_session(form, threads=self.threads)

    def batch_size(self) -> int:
        elements = 0
        for shape in self.shapes:
            sides = None if shape is None else [d for d in shape[1:] if isinstance(d, int)]
            if shape is None or sides is None or len(sides) < len(shape) - 1:
                return 1
            elements += int(np.prod(sides, dtype=np.int64))
        return int(min(max(_BATCH_ELEMENTS // max(elements, 1), 1), _MAX_BATCH))

    def run(self, entry: str, x: np.ndarray) -> dict[str, np.ndarray]:
        from graphopt.runtime.session import run_feeds

        values = dict.fromkeys(self._inputs, x)
        if self._session is not None:
            values.update(zip(self._inner, run_feeds(self._session, {entry: x}), strict=True))
        return values
