"""Intermediate tensors of a network on calibration images, without running it from the start each time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from graphopt.ir import Model
from graphopt.runtime.session import open_session, run_feeds, runnable

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context

T = TypeVar("T")

BATCH = 32  # images at most
_BATCH_BYTES = 8 << 20  # fewer images, where they are large: their intermediate tensors are many times that
IMAGES = 1024  # that refitting and statistics take at most
_LOADED = 320 << 20  # bytes of images held
_CACHED = 320 << 20  # bytes of intermediate tensors held


@dataclass(frozen=True)
class Images:
    """Batches of calibration images, decoded once: every layer needs them again."""

    batches: tuple[np.ndarray, ...]

    @property
    def count(self) -> int:
        return sum(len(b) for b in self.batches)

    def first(self, count: int) -> Images:
        """The first whole batches that hold ``count`` images, or all."""
        sizes = np.cumsum([len(b) for b in self.batches])
        return Images(self.batches[: int(np.searchsorted(sizes, count)) + 1])

    def halves(self) -> tuple[Images, Images]:
        """Two sets that share no image, the first no smaller; of a single batch, twice the same."""
        half = (len(self.batches) + 1) // 2
        return Images(self.batches[:half]), Images(self.batches[half:] or self.batches)


def fitting(items: Iterable[T], size: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Runs of items whose sizes add up to no more than ``limit``; one that is larger stands alone."""
    chunk: list[T] = []
    held = 0
    for item in items:
        taken = size(item)
        if chunk and held + taken > limit:
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += taken
    if chunk:
        yield chunk


def load_images(model: Model, ctx: Context, limit: int = IMAGES, purpose: str = "prune.images") -> Images:
    """At most ``limit`` images, and no more than fit in memory; whole batches where the model fixes their size.

    In an order of their own: in many sources those of a class are next to each other, and parts of the images must
    be like the whole.
    """
    port = model.inputs[0]
    fixed = port.shape[0] if port.shape and isinstance(port.shape[0], int) else None
    batches: list[np.ndarray] = []
    held = 0
    count = len(ctx.calibration)
    drawn = ctx.rng(purpose).choice(count, min(count, limit), replace=False)
    mixed = ctx.calibration.part(drawn)
    first = next(iter(mixed.batches(1, limit=1)), np.zeros(1))
    size = fixed or int(np.clip(_BATCH_BYTES // max(1, first.nbytes), 4, BATCH))
    for batch in mixed.batches(size):
        if fixed and len(batch) != fixed:
            break
        batches.append(np.asarray(batch, dtype=port.dtype))
        held += batches[-1].nbytes
        if held >= _LOADED:
            break
    return Images(tuple(batches))


class Network:
    """A model on a set of images. Its weights may change between calls, but only downstream of tensors it has given.

    Tensors that were given are kept while they fit in memory, and later ones are computed from them.
    """

    def __init__(self, model: Model, images: Images, threads: int) -> None:
        self.model, self.images, self.threads = model, images, threads
        self._cache: dict[str, list[np.ndarray]] = {}

    def tensors(self, names: list[str], keep: bool = False) -> Iterator[dict[str, np.ndarray]]:
        """Named tensors, batch by batch. ``keep``: later calls may start from them."""
        known = {self.model.inputs[0].name: list(self.images.batches), **self._cache}
        missing = [n for n in dict.fromkeys(names) if n not in known]
        run = self._runner(missing, known)
        collected: dict[str, list[np.ndarray]] = {n: [] for n in missing} if keep else {}
        for number in range(len(self.images.batches)):
            values = {n: known[n][number] for n in names if n in known}
            values.update(run(number) if run else {})
            for name, into in collected.items():
                into.append(values[name])
            if sum(b.nbytes for into in collected.values() for b in into) > _CACHED:
                collected = {}
            yield values
        self._remember(collected)

    def forget(self, name: str) -> None:
        """Let a tensor that was given be computed anew: weights upstream of it change."""
        self._cache.pop(name, None)

    def _runner(self, missing: list[str], known: dict[str, list[np.ndarray]]):  # type: ignore[no-untyped-def]
        if not missing:
            return None
        twin = self.model.copy()
        with twin.edit():  # or the file that the model was read from would be taken for it
            tensors = twin.graph.tensors()
            twin.graph.outputs = [tensors[n] for n in missing]
            for name in known:
                tensors[name].inputs.clear()
            twin.graph.cleanup()
            alive = twin.graph.tensors()
            twin.graph.inputs = [tensors[n] for n in known if n in alive and alive[n].outputs]
        names = [t.name for t in twin.graph.inputs]
        with runnable(twin) as form:
            session = open_session(form, threads=self.threads)

        def run(number: int) -> dict[str, np.ndarray]:
            feed = {n: known[n][number] for n in names}
            return dict(zip(missing, run_feeds(session, feed), strict=True))

        return run

    def _remember(self, collected: dict[str, list[np.ndarray]]) -> None:
        """Add tensors to the cache, dropping the oldest ones for which there is no room."""
        self._cache.update({n: b for n, b in collected.items() if b})
        sizes = {n: sum(b.nbytes for b in batches) for n, batches in self._cache.items()}
        for name in list(self._cache):
            if sum(sizes.values()) <= _CACHED:
                break
            del self._cache[name], sizes[name]
