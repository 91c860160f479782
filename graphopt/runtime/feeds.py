"""Random inputs for a model, for timing it and for comparing it with another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphopt.data.model_io import Dim, image_input
from graphopt.errors import ModelError
from graphopt.runtime.session import ModelSource, Port, SessionIO, open_session, session_io

if TYPE_CHECKING:
    from graphopt.data.loader import Batches
    from graphopt.ir import Model

# Where a model leaves height and width open, global pooling follows and any size does; this one is common.
_OPEN_SIDE = 224


def random_feeds(
    model: SessionIO | ModelSource,
    batch_sizes: Sequence[int] = (1, 3),
    seed: int = 0,
    *,
    height: int | None = None,
    width: int | None = None,
) -> list[dict[str, np.ndarray]]:
    """One feed a batch size, of standard normal values (pixels 0..255 for uint8), by input name.

    A model that fixes its batch gets feeds of that batch, as many. Open heights and widths are ``height`` and
    ``width``, else 224. Raises ModelError if the model cannot be loaded.
    """
    io = model if isinstance(model, SessionIO) else session_io(open_session(model, optimize=False))
    return [
        random_feed(io, batch=batch, height=height, width=width, seed=seed + i) for i, batch in enumerate(batch_sizes)
    ]


def model_feeds(
    model: Model, images: Batches, batch_sizes: Sequence[int] = (1, 3), seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """What two versions of a model are compared on: random inputs and the first images, in several batch sizes.

    The images settle the sizes that the model leaves open; a batch that it fixes is kept.
    """
    ports = [Port(t.name, tuple(t.shape or ()), np.dtype(t.dtype)) for t in model.inputs]
    alone = ports[0] if len(ports) == 1 else None
    fixed = alone.shape[0] if alone is not None and alone.shape and isinstance(alone.shape[0], int) else None
    wanted = fixed or max(batch_sizes)
    batch = next(iter(images.batches(wanted, limit=wanted)), None)
    if alone is not None and batch is not None:
        ports = [Port(alone.name, (*alone.shape[:1], *batch.shape[1:]), alone.dtype)]
    feeds = random_feeds(SessionIO(tuple(ports), ()), batch_sizes, seed)
    if alone is not None and batch is not None:
        sizes = [fixed] if fixed else batch_sizes
        feeds.extend({alone.name: batch[:n].astype(alone.dtype)} for n in sizes if n <= len(batch))
    return feeds


def random_feed(
    io: SessionIO,
    *,
    batch: int = 1,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    must_know_size: bool = False,
) -> dict[str, np.ndarray]:
    """One random value for every input. With ``must_know_size``, an open side that is not given is a
    ModelError."""
    rng = np.random.default_rng(seed)
    named: dict[str, int] = {}  # a dimension's name stands for one number everywhere
    feed = {}
    for port in io.inputs:
        sides = _sides(port, batch, height, width)
        shape = []
        for axis, dim in enumerate(port.shape):
            if isinstance(dim, int) and dim > 0:
                shape.append(dim)
                continue
            size = named.get(dim) if isinstance(dim, str) and dim else None
            if size is None:
                size = sides[axis]
            if size is None:
                if must_know_size:
                    raise ModelError(
                        f"input {port.name!r} of shape {list(port.shape)} leaves its size open",
                        "give the height and width of the images",
                    )
                size = _OPEN_SIDE
            if isinstance(dim, str) and dim:
                named[dim] = size
            shape.append(size)
        feed[port.name] = _values(rng, port.dtype, tuple(shape))
    return feed


def _sides(port: Port, batch: int, height: int | None, width: int | None) -> list[int | None]:
    """What to put for each axis if it is open: the batch first, channels 3, height and width where they
    are."""
    sides: list[int | None] = [None] * len(port.shape)
    if sides:
        sides[0] = batch
    if len(sides) == 4:
        nchw = _is_nchw(port.shape, port)
        for axis, value in zip((1, 2, 3), (3, height, width) if nchw else (height, width, 3), strict=True):
            sides[axis] = value
    return sides


def _is_nchw(shape: tuple[Dim, ...], port: Port) -> bool:
    try:
        return image_input(port.name, shape, np.float32).layout == "nchw"
    except ModelError:
        return True  # nothing tells: ONNX's own layout


def _values(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    low, high = (-128, 128) if dtype.name == "int8" else (0, 256) if dtype.name == "uint8" else (0, 2)
    return rng.integers(low, high, shape).astype(dtype)
