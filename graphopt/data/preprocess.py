"""Preprocessing as data: from a decoded picture to the numbers that a model was trained on.

``value = (pixel * scale - mean) / std`` after an optional resize and centre crop. Written in the same grammar
as passes (``imagenet{crop=1.0}``) or as a TOML table (``preset = "imagenet"``, ``crop = 1.0``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from graphopt import spec
from graphopt.data.model_io import ImageInput, Layout, image_input
from graphopt.errors import ModelError, UsageError

if TYPE_CHECKING:
    from PIL import Image

WHAT = "preprocess"
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")
_WORDS = {"layout": ("nchw", "nhwc"), "interpolation": INTERPOLATIONS, "order": ("rgb", "bgr")}


@dataclass(frozen=True)
class Preprocess:
    """How pictures become model inputs. Build one with ``make``, ``parse`` or ``from_table``.

    ``layout`` and ``size`` (height, width in pixels) are None to follow the model's input. ``resize`` is the
    short side in pixels before the centre crop; None means ``size / crop``. ``mean`` and ``std`` have one
    entry, or one for each of the model's channels in the model's order; they are in units of ``pixel *
    scale`` with pixels in 0..255.
    """

    preset: str
    layout: Layout | None = None
    size: tuple[int, int] | None = None
    resize: int | None = None
    crop: float = 0.875
    interpolation: str = "bilinear"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    order: str = "rgb"

    @classmethod
    def make(cls, preset: str, **options: Any) -> Preprocess:
        """A preset with some options changed. Raises UsageError for an unknown name or a bad value."""
        if preset not in PRESETS:
            raise spec.unknown(WHAT, preset, PRESETS)
        for key in options:
            if key not in OPTIONS:
                raise spec.unknown("option", key, OPTIONS, f" of {WHAT} {preset!r}")
        return replace(PRESETS[preset], **{k: _read(k, v) for k, v in options.items()})

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read a specification such as ``unit{mean=0.2860,std=0.3530}``. Raises UsageError."""
        items = spec.parse(text, WHAT)
        if len(items) != 1:
            raise UsageError(
                f"{text!r} names {len(items)} presets; preprocessing has exactly one",
                "write options in braces: imagenet{crop=1.0,size=224}",
            )
        return cls.make(items[0].name, **items[0].options)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Preprocess:
        """Read a TOML table: ``preset`` and any options. Raises UsageError."""
        options = dict(table)
        preset = options.pop("preset", None)
        if not isinstance(preset, str):
            raise UsageError(
                "the preprocess table lacks 'preset'",
                'add for example preset = "imagenet"; known: ' + _known(),
            )
        return cls.make(preset, **options)

    @property
    def spec(self) -> str:
        """The canonical text: the preset and what differs from it. ``parse`` reads it back."""
        base = PRESETS[self.preset]
        changed = {k: _write(getattr(self, k)) for k in OPTIONS if getattr(self, k) != getattr(base, k)}
        return spec.format_item(spec.Item(self.preset, changed))

    def __str__(self) -> str:
        return self.spec

    def resolve(self, target: ImageInput) -> ImageInput:
        """``target`` as this preprocessing sees it: with the layout that the user insists on.

        Raises UsageError or ModelError when the two do not fit, so that a mistake shows before any image is
        read.
        """
        if self.layout not in (None, target.layout):
            target = image_input(
                target.name,
                target.shape,
                target.dtype,
                layout=self.layout,
                classes=target.classes,
                probabilities=target.probabilities,
            )
        for key in ("mean", "std"):
            count = len(getattr(self, key))
            if count not in (1, target.channels):
                raise UsageError(
                    f"preprocess {self.spec!r} has {count} values of {key}, "
                    f"but the model's input has {target.channels} channel{'s' * (target.channels > 1)}",
                    f"give {key} for these channels, for example unit{{{key}=0.5}}",
                )
        if np.issubdtype(target.dtype, np.integer) and not self._keeps_integers():
            raise UsageError(
                f"the model's input takes {target.dtype.name} pixels, but preprocess {self.spec!r} makes fractions",
                "use raw",
            )
        self.target_size(target)
        return target

    def target_size(self, target: ImageInput) -> tuple[int, int] | None:
        """Height and width that images get; None if they keep their own (dynamic input, no ``size``)."""
        known = (target.height, target.width)
        if self.size is not None:
            if any(k is not None and k != s for k, s in zip(known, self.size, strict=True)):
                shown = "x".join("?" if k is None else str(k) for k in known)
                raise UsageError(
                    f"preprocess size {self.size[0]}x{self.size[1]} does not fit the model's input of {shown}",
                    "leave size out: it defaults to the model's",
                )
            return self.size
        if known[0] is not None and known[1] is not None:
            return (known[0], known[1])
        if known != (None, None):
            raise ModelError(f"input {target.name!r} fixes only one of height and width", "give size=[height,width]")
        return None

    def apply(self, image: Image.Image | np.ndarray, target: ImageInput) -> np.ndarray:
        """Preprocess one picture: a PIL image, or an array [H,W] or [H,W,C] with values in 0..255.

        Returns [C,H,W] or [H,W,C] in the target's layout and dtype (float32 for nearly all models). An image
        that has the target's size already is neither resized nor cropped.
        """
        factor, offset = self.affine()
        target = self.resolve(target)
        result = self.fitted(image, target).astype(np.float32) * factor + offset
        if target.layout == "nchw":
            result = result.transpose(2, 0, 1)
        return _cast(result, target.dtype)

    def fitted(self, image: Image.Image | np.ndarray, target: ImageInput) -> np.ndarray:
        """The pixels that ``apply`` turns into numbers: [H,W,C] of the model's size, uint8 from 8-bit pictures."""
        from graphopt.data import pixels

        target = self.resolve(target)
        picture = pixels.with_channels(image, target.channels)
        size = self.target_size(target)
        picture = pixels.fit(picture, size, self.resize, self.crop, self.interpolation)
        values = pixels.as_array(picture)
        if self.order == "bgr" and target.channels >= 3:
            values = values[..., [2, 1, 0, *range(3, target.channels)]]
        return values

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """Factor and offset, float32 [1] or [channels]: number = pixel * factor + offset."""
        std = np.asarray(self.std, dtype=np.float64)
        factor = (self.scale / std).astype(np.float32)
        return factor, (-np.asarray(self.mean, dtype=np.float64) / std).astype(np.float32)

    def _keeps_integers(self) -> bool:
        return self.scale == 1 and all(s == 1 for s in self.std) and all(m == int(m) for m in self.mean)


OPTIONS = tuple(f.name for f in fields(Preprocess) if f.name != "preset")

PRESETS: dict[str, Preprocess] = {
    p.preset: p
    for p in (
        Preprocess("imagenet", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Preprocess("inception", scale=1 / 127.5, mean=(1.0,)),
        Preprocess("efficientnet-lite", interpolation="bicubic", mean=(127.0,), std=(128.0,)),
        Preprocess("unit", scale=1 / 255),
        Preprocess("raw"),
    )
}


def _known() -> str:
    return ", ".join(sorted(PRESETS))


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return np.ascontiguousarray(values, dtype=dtype)


def _write(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def _read(key: str, value: Any) -> Any:
    """The typed value of option ``key``. Raises UsageError that says what would be right."""

    def bad(expected: str) -> UsageError:
        shown = spec.format_value(value) if isinstance(value, bool | int | float | str | list | tuple) else value
        return UsageError(f"{WHAT} option {key}={shown} is not {expected}")

    if key in _WORDS:
        if value not in _WORDS[key]:
            raise spec.unknown(key, str(value), _WORDS[key], f" of {WHAT}")
        return value
    if key == "size":
        sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
        if len(sides) != 2 or not all(_is_int(s) and s > 0 for s in sides):
            raise bad("a number of pixels, or [height,width]")
        return sides
    if key == "resize":
        if not (_is_int(value) and value > 0):
            raise bad("a number of pixels")
        return value
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(_is_number(n) for n in numbers):
        raise bad("a finite number" + (" or a list of them" if key in ("mean", "std") else ""))
    floats = tuple(float(n) for n in numbers)
    if key in ("mean", "std"):
        if not floats or (key == "std" and min(floats) <= 0):
            raise bad("positive" if floats else "a number or a list of them")
        return floats
    if len(floats) != 1 or isinstance(value, list | tuple):
        raise bad("one number")
    if key == "crop" and not 0 < floats[0] <= 1:
        raise bad("a fraction above 0 and at most 1")
    if key == "scale" and floats[0] <= 0:
        raise bad("positive")
    return floats[0]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(cast(float, value))
