"""What a model's image input says about itself: layout, channels, size, batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike

from graphopt.errors import ModelError

Layout = Literal["nchw", "nhwc"]
Dim = int | str | None

CHANNEL_COUNTS = (1, 3, 4)
_CHANNEL_AXIS: dict[Layout, int] = {"nchw": 1, "nhwc": 3}
_DTYPES = ("float32", "float16", "float64", "uint8", "int8")


@dataclass(frozen=True)
class ImageInput:
    """One image input of a model.

    ``shape`` is as the model declares it, batch first; a dynamic dimension is a name or None. ``height``,
    ``width`` (pixels) and ``batch`` (images) are None where they are dynamic. ``classes`` and
    ``probabilities`` (the model ends in a softmax) describe the output, when the caller knows it.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: np.dtype
    layout: Layout
    channels: int
    height: int | None
    width: int | None
    batch: int | None = None
    classes: int | None = None
    probabilities: bool | None = None

    def item_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape of one image of the given size in this input's layout."""
        if self.layout == "nchw":
            return (self.channels, height, width)
        return (height, width, self.channels)


def image_input(
    name: str,
    shape: tuple[Dim, ...] | list[Dim],
    dtype: DTypeLike,
    *,
    layout: Layout | None = None,
    classes: int | None = None,
    probabilities: bool | None = None,
) -> ImageInput:
    """Read an image input off its declared shape.

    Without ``layout``, it is the one whose channel axis has 1, 3 or 4 entries. With ``layout``, a dynamic
    channel axis is taken for 3 (RGB). Raises ModelError if the input is not a batch of images or the layout
    cannot be told.
    """
    dims = tuple(_dim(d) for d in shape)
    where = f"input {name!r} of shape [{', '.join('?' if d is None else str(d) for d in dims)}]"
    if len(dims) != 4:
        raise ModelError(
            f"{where} is not a batch of images: it has {len(dims)} dimensions, an image input has 4",
            "graphopt handles image classifiers with one input [N,C,H,W] or [N,H,W,C]",
        )
    kind = np.dtype(dtype)
    if kind.name not in _DTYPES:
        raise ModelError(f"{where} takes {kind.name}, which no image can be fed to", "supported: " + ", ".join(_DTYPES))
    chosen = layout or _infer_layout(dims, where)
    channels = dims[_CHANNEL_AXIS[chosen]]
    if not isinstance(channels, int):
        channels = 3
    if channels not in CHANNEL_COUNTS:
        raise ModelError(
            f"{where} read as {chosen} has {channels} channels; images have 1, 3 or 4",
            "give the other layout to the preprocessing (layout=nchw or layout=nhwc)",
        )
    height, width = (dims[2], dims[3]) if chosen == "nchw" else (dims[1], dims[2])
    return ImageInput(
        name=name,
        shape=dims,
        dtype=kind,
        layout=chosen,
        channels=channels,
        height=height if isinstance(height, int) else None,
        width=width if isinstance(width, int) else None,
        batch=dims[0] if isinstance(dims[0], int) else None,
        classes=classes,
        probabilities=probabilities,
    )


def _dim(value: Dim) -> Dim:
    """A dimension with every spelling of "dynamic" (None, empty, zero, negative) made None or a name."""
    if isinstance(value, str):
        return value or None
    if value is None or int(value) <= 0:
        return None
    return int(value)


def _infer_layout(dims: tuple[Dim, ...], where: str) -> Layout:
    fits: list[Layout] = [k for k, axis in _CHANNEL_AXIS.items() if dims[axis] in CHANNEL_COUNTS]
    if len(fits) == 2:
        # Both ends could be channels, as in [N,4,4,3]: a square picture settles it.
        square: dict[Layout, bool] = {"nchw": dims[2] == dims[3], "nhwc": dims[1] == dims[2]}
        fits = [k for k in fits if square[k]]
    if len(fits) != 1:
        raise ModelError(
            f"cannot tell the layout of {where}: no single axis looks like 1, 3 or 4 channels",
            "say it in the preprocessing, for example imagenet{layout=nchw}",
        )
    return fits[0]
