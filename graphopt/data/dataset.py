"""What every source of images is, and the sources whose images are files."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphopt.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))


class Dataset(ABC):
    """Images by number, with labels where there are some.

    ``labels`` is int64 [N] or None. ``class_names`` has one name a label, or is None. ``fingerprint`` changes
    when the data does, as far as can be told without decoding it. ``notes`` says what was left out, in words
    for the user. ``threaded`` tells whether images are worth decoding in threads.
    """

    name: str
    path: Path
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    fingerprint: str
    notes: tuple[str, ...] = ()
    threaded: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> Image.Image | np.ndarray:
        """Image ``index`` as an upright PIL image, or an array [H,W,C]. Raises DataError that names it."""

    @abstractmethod
    def locate(self, index: int) -> str:
        """Where image ``index`` comes from, for messages; equal for the same image in two datasets."""


class FileDataset(Dataset):
    """Images that are files, decoded when asked for."""

    threaded = True

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        labels: np.ndarray | None,
        class_names: list[str] | None,
        notes: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.name = path.name or str(path)
        self.files = list(files)
        self.labels = labels
        self.class_names = class_names
        self.notes = tuple(notes)
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        return decode_image(self.files[index])

    def locate(self, index: int) -> str:
        return str(self.files[index].resolve())

    def _fingerprint(self) -> str:
        # Names, sizes and labels, but no times or absolute paths: a copy elsewhere is the same data.
        root = self.path if self.path.is_dir() else self.path.parent
        digest = hashlib.sha256()
        for i, file in enumerate(self.files):
            shown = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()
            label = -1 if self.labels is None else int(self.labels[i])
            digest.update(f"{shown}\0{file.stat().st_size}\0{label}\n".encode())
        return digest.hexdigest()[:16]


def is_image_file(path: Path) -> bool:
    """Whether a folder's entry counts as an image: by its suffix, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def decode_image(path: Path) -> Image.Image:
    """Decode an image file, upright. Raises DataError that names the file."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is too large to decode: {error}", "shrink the image, or take it out of the dataset"
        ) from None
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise DataError(
            f"cannot decode image {path}: {error or type(error).__name__}",
            "replace the file, or take it out of the dataset",
        ) from None


def read_classes(path: Path) -> list[str]:
    """Class names from a text file, one a line in label order. Raises DataError with the line number."""
    names: list[str] = []
    for number, line in enumerate(read_text(path).rstrip().splitlines(), start=1):
        name = line.strip()
        if not name:
            raise DataError(f"{path}, line {number}: empty class name", "write one class a line, in label order")
        if name in names:
            raise DataError(f"{path}, line {number}: class {name!r} is there twice")
        names.append(name)
    if not names:
        raise DataError(f"{path} names no classes", "write one class a line, in label order")
    return names


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
