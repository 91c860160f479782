"""Images to train on: decoded once, kept as pixels, cropped and mirrored at random."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass

import numpy as np
import torch

from graphopt.data.loader import Batches
from graphopt.progress import Progress

_IN_MEMORY = 1 << 30  # bytes; more are kept in a temporary file
_DECODED = 256  # images at a time


@dataclass(frozen=True)
class Augmentation:
    """``shift``: by how much of its size an image moves at most, the border mirrored; ``flip``: left and right, half of
    them; ``mixup``: parameter of the Beta distribution by which pairs of images are blended (Zhang et al., 2018; of a
    teacher's answers to the blends: Beyer et al., "Knowledge distillation: a good teacher is patient and consistent",
    2022), 0 for none."""

    shift: float = 0.125
    flip: bool = True
    mixup: float = 0.0


class ImageStore:
    """The images of ``batches`` as pixels [N,H,W,C], and batches of them as the model takes them."""

    def __init__(self, batches: Batches, progress: Progress, device: torch.device) -> None:
        self.layout, self.device = batches.input.layout, device
        self.labels = batches.labels
        factor, offset = batches.preprocess.affine()
        self._factor, self._offset = (torch.from_numpy(a).to(device) for a in (factor, offset))
        self._file = tempfile.TemporaryFile() if batches.dataset.threaded else None  # noqa: SIM115 (lives as long as self)
        self.pixels = self._read(batches, progress)

    def __len__(self) -> int:
        return len(self.pixels)

    def _read(self, batches: Batches, progress: Progress) -> np.ndarray:
        count, start = len(batches), 0
        store: np.ndarray | None = None
        shown = progress.track(
            batches.batches(_DECODED, pixels=True), f"reading {batches.description}", math.ceil(count / _DECODED)
        )
        for part in shown:
            if store is None:
                shape = (count, *part.shape[1:])
                large = math.prod(shape) * part.itemsize > _IN_MEMORY
                if large and self._file is not None:
                    store = np.memmap(self._file, part.dtype, "w+", shape=shape)
                else:
                    store = np.empty(shape, part.dtype)
            store[start : start + len(part)] = part
            start += len(part)
        assert store is not None
        return store

    @property
    def width_axis(self) -> int:
        """Of the tensors that it gives."""
        return 3 if self.layout == "nchw" else 2

    def plain(self, start: int, stop: int) -> torch.Tensor:
        """Images ``start`` to ``stop`` as they are."""
        return self._numbers(np.asarray(self.pixels[start:stop]))

    def drawn(self, positions: np.ndarray, how: Augmentation, rng: np.random.Generator) -> torch.Tensor:
        """These images, augmented."""
        pixels = np.asarray(self.pixels[positions])
        n, height, width, _ = pixels.shape
        pads = [round(how.shift * size) for size in (height, width)]
        if any(pads):
            wide = np.pad(pixels, ((0, 0), (pads[0],) * 2, (pads[1],) * 2, (0, 0)), mode="reflect")
            tops, lefts = (rng.integers(0, 2 * p + 1, n).tolist() for p in pads)
            pixels = np.stack([w[t : t + height, x : x + width] for w, t, x in zip(wide, tops, lefts, strict=True)])
        if how.flip:
            flipped = rng.random(n) < 0.5
            pixels[flipped] = pixels[flipped, :, ::-1]
        numbers = self._numbers(pixels)
        if how.mixup > 0:
            share = float(rng.beta(how.mixup, how.mixup))
            other = torch.from_numpy(rng.permutation(n)).to(self.device)
            numbers = share * numbers + (1 - share) * numbers[other]
        return numbers

    def _numbers(self, pixels: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).float()
        x = x * self._factor + self._offset
        return x.permute(0, 3, 1, 2) if self.layout == "nchw" else x
