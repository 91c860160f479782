"""Batches of preprocessed images: streamed, in a fixed order, decoded ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from graphopt.data.dataset import Dataset
from graphopt.data.model_io import ImageInput
from graphopt.data.preprocess import Preprocess
from graphopt.data.split import choose
from graphopt.errors import DataError

_LOOKED_AT = 16  # images that say whether a dataset has 8-bit pixels


class Batches:
    """Some images of a dataset as a model takes them.

    ``indices`` picks and orders images of ``dataset`` (None: all). ``labels`` is int64 [len] or None.
    ``synthetic`` says that the images are made up, so that nothing measured on them counts as validated.
    Raises UsageError or ModelError at once when preprocessing and input do not fit each other.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Sequence[int] | np.ndarray | None,
        preprocess: Preprocess,
        input: ImageInput,
        *,
        synthetic: bool = False,
        description: str | None = None,
        workers: int = 2,
    ) -> None:
        self.dataset = dataset
        self.indices = np.arange(len(dataset)) if indices is None else np.asarray(indices, dtype=np.int64)
        if len(self.indices) and not (self.indices.min() >= 0 and self.indices.max() < len(dataset)):
            raise ValueError(f"indices outside the {len(dataset)} images of {dataset.name}")
        self.preprocess = preprocess
        self.input = preprocess.resolve(input)
        self.synthetic = synthetic
        self.description = description or f"{len(self.indices)} images of {dataset.name}"
        self.workers = workers

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> np.ndarray | None:
        """Labels int64 [len], in the order of the batches; None when the dataset has none."""
        return None if self.dataset.labels is None else self.dataset.labels[self.indices]

    @property
    def class_names(self) -> list[str] | None:
        """One name a label, when the dataset says so."""
        return self.dataset.class_names

    def subset(self, n: int, seed: int = 0) -> Batches:
        """At most ``n`` of these images, drawn by ``seed`` whatever their class, in their old order."""
        if n >= len(self):
            return self
        return self.part(choose(len(self), n, seed))

    def part(self, positions: np.ndarray) -> Batches:
        """The images at these positions."""
        return Batches(
            self.dataset,
            self.indices[positions],
            self.preprocess,
            self.input,
            synthetic=self.synthetic,
            description=f"{len(positions)} of {self.description}",
            workers=self.workers,
        )

    def levels(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Factor and offset by channel, float64 [channels]: number = pixel * factor + offset, pixels being the integers
        from 0 to 255. None if the first images are no such pixels."""
        for picture in map(self.picture, range(min(len(self), _LOOKED_AT))):
            whole = picture.dtype == np.uint8 or np.array_equal(picture, np.rint(picture))
            if not (whole and picture.min() >= 0 and picture.max() <= 255):
                return None
        factor, offset = (np.broadcast_to(v, self.input.channels) for v in self.preprocess.affine())
        return factor.astype(np.float64), offset.astype(np.float64)

    def item(self, position: int) -> np.ndarray:
        """Image number ``position`` of these, preprocessed: [C,H,W] or [H,W,C]."""
        index = int(self.indices[position])
        return self.preprocess.apply(self.dataset.image(index), self.input)

    def picture(self, position: int) -> np.ndarray:
        """Image number ``position`` of these in the model's size, but as pixels: [H,W,C], uint8 for most."""
        index = int(self.indices[position])
        return self.preprocess.fitted(self.dataset.image(index), self.input)

    def batches(self, batch_size: int, limit: int | None = None, *, pixels: bool = False) -> Iterator[np.ndarray]:
        """Yield the first ``limit`` images (None: all) in order, as [n,C,H,W] or [n,H,W,C].

        With ``pixels`` they come as ``picture`` gives them.

        Every batch has ``batch_size`` images, except that the last may have fewer. Only two batches are held
        at a time. Raises DataError when an image cannot be decoded or sizes differ where the model fixes
        none.
        """
        if batch_size < 1:
            raise ValueError("batch_size must be at least 1")
        total = len(self) if limit is None else min(limit, len(self))
        read = self.picture if pixels else self.item
        if not (self.dataset.threaded and self.workers > 0):
            for start in range(0, total, batch_size):
                positions = range(start, min(start + batch_size, total))
                yield self._stack([read(p) for p in positions], start)
            return
        yield from self._threaded(read, batch_size, total)

    def _threaded(self, read: Callable[[int], np.ndarray], batch_size: int, total: int) -> Iterator[np.ndarray]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        pending: deque[tuple[int, list[Future[np.ndarray]]]] = deque()
        try:
            for start in range(0, total, batch_size):
                positions = range(start, min(start + batch_size, total))
                pending.append((start, [pool.submit(read, p) for p in positions]))
                if len(pending) == 2:  # one batch is being decoded while the caller works on the one before
                    yield self._collect(pending)
            while pending:
                yield self._collect(pending)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _collect(self, pending: deque[tuple[int, list[Future[np.ndarray]]]]) -> np.ndarray:
        start, futures = pending.popleft()
        return self._stack([f.result() for f in futures], start)

    def _stack(self, items: list[np.ndarray], start: int) -> np.ndarray:
        for offset, item in enumerate(items):
            if item.shape != items[0].shape:
                first, other = (self.dataset.locate(int(self.indices[start + k])) for k in (0, offset))
                raise DataError(
                    f"images of different sizes cannot share a batch: {first} gives {list(items[0].shape)}, "
                    f"{other} gives {list(item.shape)}",
                    "the model's input fixes no size: add size= to the preprocessing, for example size=224",
                )
        return np.stack(items)
