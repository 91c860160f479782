"""Images in a .npz file: array ``x``, optionally labels ``y``."""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from graphopt.data.dataset import Dataset
from graphopt.data.model_io import CHANNEL_COUNTS, Layout
from graphopt.errors import DataError

_HINT = "save it with numpy.savez(file, x=images, y=labels)"


class ArrayDataset(Dataset):
    """``x`` is [N,H,W], [N,H,W,C] or [N,C,H,W], pixels in 0..255 (uint8, or another real type); ``y`` is [N].

    An uncompressed ``x`` is mapped from disk; a compressed one is read whole. Pickled objects are refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        try:
            with zipfile.ZipFile(path) as archive:
                members = {Path(i.filename).stem: i for i in archive.infolist() if i.filename.endswith(".npy")}
                if "x" not in members:
                    found = ", ".join(sorted(members)) or "nothing"
                    raise DataError(f"{path} has no array 'x' (it has {found})", _HINT)
                self._x = _member(path, archive, members["x"])
                y = _member(path, archive, members["y"]) if "y" in members else None
                # The zip directory holds a checksum of every array: a fingerprint of the content for free.
                sums = sorted((name, info.CRC, info.file_size) for name, info in members.items())
        except DataError:
            raise
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error, struct.error) as error:
            raise DataError(f"cannot read {path}: {error or type(error).__name__}", _HINT) from None
        self.fingerprint = hashlib.sha256(repr(sums).encode()).hexdigest()[:16]
        self.layout: Layout = _layout(path, self._x)
        if len(self._x) == 0:
            raise DataError(f"{path} holds no images: x is empty")
        self.labels = None if y is None else _labels(path, y, len(self._x))

    def __len__(self) -> int:
        return len(self._x)

    def image(self, index: int) -> np.ndarray:
        array = np.asarray(self._x[index])
        if array.ndim == 2:
            array = array[..., None]
        elif self.layout == "nchw":
            array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8:
            array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise DataError(f"{self.locate(index)} holds NaN or infinite pixels")
        return np.ascontiguousarray(array)

    def locate(self, index: int) -> str:
        return f"{self.path.resolve()}, x[{index}]"


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array: mapped where it lies in the file if stored as it is, else decompressed."""
    if info.compress_type == zipfile.ZIP_STORED and info.file_size > 1 << 16:
        with path.open("rb") as file:
            file.seek(info.header_offset)
            local = file.read(30)  # a zip local header; the lengths of name and extra field close it
            if len(local) == 30 and local[:4] == b"PK\x03\x04":
                name_length, extra_length = struct.unpack("<HH", local[26:30])
                file.seek(info.header_offset + 30 + name_length + extra_length)
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
                if read is not None:
                    shape, fortran, dtype = read(file)
                    if not dtype.hasobject:
                        order = "F" if fortran else "C"
                        return np.memmap(path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload]
    with archive.open(info) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _layout(path: Path, x: np.ndarray) -> Layout:
    if x.dtype.kind not in "uif":
        raise DataError(f"{path}: x has type {x.dtype}, which is no pixel type", "use uint8 or float32")
    if x.ndim == 3:
        return "nhwc"
    shown = f"{path}: x has shape {list(x.shape)}"
    if x.ndim != 4:
        raise DataError(shown + ", which is no batch of images", "use [N,H,W], [N,H,W,C] or [N,C,H,W]")
    fits: list[Layout] = []
    if x.shape[3] in CHANNEL_COUNTS:
        fits.append("nhwc")
    if x.shape[1] in CHANNEL_COUNTS:
        fits.append("nchw")
    if len(fits) == 2:
        # Both ends could be channels, as in [N,4,4,3]: a square picture settles it.
        square = {"nhwc": x.shape[1] == x.shape[2], "nchw": x.shape[2] == x.shape[3]}
        fits = [f for f in fits if square[f]]
    if len(fits) != 1:
        raise DataError(
            shown + "; no single axis looks like 1, 3 or 4 channels",
            "use [N,H,W,C] or [N,C,H,W] with C 1, 3 or 4",
        )
    return fits[0]


def _labels(path: Path, y: np.ndarray, count: int) -> np.ndarray:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]  # Keras stores labels as a column
    if y.ndim != 1:
        raise DataError(f"{path}: y has shape {list(y.shape)}, labels are [N]", "store one-hot labels as y.argmax(1)")
    if len(y) != count:
        raise DataError(f"{path}: x has {count} images but y has {len(y)} labels", "they must be as many")
    if y.dtype.kind not in "uif":
        raise DataError(f"{path}: y has type {y.dtype}", "store labels as integers from 0")
    labels = y.astype(np.int64)
    if not np.array_equal(labels, y) or labels.min() < 0:
        raise DataError(f"{path}: y holds values that are no labels", "store labels as integers from 0")
    return labels
