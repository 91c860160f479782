"""Pictures before they become numbers: channels, resizing, cropping.

A picture is a PIL image with 8 bits a channel, or a float32 array [H,W,C]. 8-bit pictures go through PIL,
whose antialiased resize is the one that torchvision and timm train with.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from graphopt.errors import DataError, UsageError

Picture = Image.Image | np.ndarray

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # what PIL's conversion to "L" uses (ITU-R 601)


def with_channels(image: Picture, channels: int) -> Picture:
    """The picture upright (EXIF) and with 1, 3 or 4 channels. Raises DataError if it cannot be converted."""
    if isinstance(image, Image.Image):
        return _convert(image, channels)
    array = image[..., None] if image.ndim == 2 else image
    if array.ndim != 3 or array.shape[2] not in _MODES:
        raise DataError(
            f"an image array of shape {list(image.shape)} is neither [H,W] nor [H,W,C] with 1, 3 or 4 channels",
            "transpose the array so that channels come last",
        )
    if array.dtype == np.uint8:
        return _convert(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), channels)
    array = array.astype(np.float32)
    have = array.shape[2]
    if have == channels:
        return array
    if channels == 1:
        return array[..., :3] @ _LUMA[:, None]
    if channels == 3:
        return np.repeat(array, 3, axis=2) if have == 1 else array[..., :3]
    raise DataError(f"a float image with {have} channels has no alpha for a model that takes {channels} channels")


def fit(image: Picture, size: tuple[int, int] | None, resize: int | None, crop: float, interpolation: str) -> Picture:
    """Resize the short side, then cut ``size`` (height, width) out of the centre, as torchvision does.

    The short side becomes ``resize``, or else ``int(size / crop)``. A picture of that size already is
    returned as it is. With no ``size`` only an explicit ``resize`` applies.
    """
    height, width = shape_of(image)
    if size is None:
        if resize is None:
            return image
        return _resize(image, _short_side(height, width, resize), interpolation)
    if (height, width) == size:
        return image
    if resize is not None:
        new = _short_side(height, width, resize)
        if new[0] < size[0] or new[1] < size[1]:
            raise UsageError(
                f"resize={resize} makes a {width}x{height} image {new[1]}x{new[0]}, "
                f"smaller than the {size[1]}x{size[0]} to be cut out of it",
                "give a larger resize, or leave it out",
            )
    else:
        new = _cover(height, width, size, crop)
    image = _resize(image, new, interpolation)
    top, left = round((new[0] - size[0]) / 2), round((new[1] - size[1]) / 2)
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + size[1], top + size[0]))
    return image[top : top + size[0], left : left + size[1]]


def as_array(image: Picture) -> np.ndarray:
    """The picture as an array [H,W,C]: uint8 from a PIL image, else float32."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def shape_of(image: Picture) -> tuple[int, int]:
    """Height and width in pixels."""
    if isinstance(image, Image.Image):
        return (image.height, image.width)
    return (int(image.shape[0]), int(image.shape[1]))


def _convert(image: Image.Image, channels: int) -> Picture:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16 bits a pixel. PIL's own conversion differs between versions; this one keeps the full range.
        wide = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(np.clip(np.rint(wide), 0, 255).astype(np.uint8))
    elif image.mode == "F":
        return with_channels(np.asarray(image), channels)
    mode = _MODES[channels]
    return image if image.mode == mode else image.convert(mode)


def _short_side(height: int, width: int, side: int) -> tuple[int, int]:
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def _cover(height: int, width: int, size: tuple[int, int], crop: float) -> tuple[int, int]:
    """The smallest size of the picture's own shape that covers ``size / crop``."""
    # 1e-9: a quotient such as 224 / 0.7 must not lose a pixel to the last bit of a float.
    want_h, want_w = (int(side / crop + 1e-9) for side in size)
    if want_h * width >= want_w * height:
        return want_h, max(want_w, int(want_h * width / height))
    return max(want_h, int(want_w * height / width)), want_w


def _resize(image: Picture, size: tuple[int, int], interpolation: str) -> Picture:
    height, width = size
    if shape_of(image) == size:
        return image
    if isinstance(image, Image.Image):
        return image.resize((width, height), _FILTERS[interpolation])
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(image[..., c])).resize((width, height), _FILTERS[interpolation])
        )
        for c in range(image.shape[2])
    ]
    return np.stack(planes, axis=2)
