"""Made-up images for when there are none: enough like photographs to calibrate activations on.

Photographs have amplitude spectra that fall as about 1/f (Field, 1987), strongly correlated colours, and
edges of occluding objects. Each synthetic image is 1/f noise of a random exponent in luminance and, weaker,
in colour, with a few shapes drawn over it, at a random brightness and contrast. Nothing measured on them says
anything about accuracy: batches of them are marked ``synthetic``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from graphopt.data.dataset import Dataset
from graphopt.data.loader import Batches
from graphopt.data.model_io import ImageInput
from graphopt.data.preprocess import Preprocess
from graphopt.errors import DataError


class SyntheticDataset(Dataset):
    """``count`` images of ``size`` (height, width), uint8 [H,W,3]; image ``i`` is the seed's."""

    def __init__(self, count: int, size: tuple[int, int], seed: int = 0) -> None:
        self.name = "synthetic images"
        self.path = Path("synthetic")
        self.count, self.size, self.seed = count, size, seed
        self.fingerprint = hashlib.sha256(f"synthetic/1 {count} {size} {seed}".encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return synthetic_image(*self.size, np.random.default_rng([self.seed, index]))

    def locate(self, index: int) -> str:
        return f"synthetic image {index} of seed {self.seed}"


def synthetic_batches(input: ImageInput, preprocess: Preprocess, count: int = 512, seed: int = 0) -> Batches:
    """``count`` synthetic images through the same preprocessing as real ones, marked ``synthetic``.

    Raises DataError when neither the model nor the preprocessing fixes the image size.
    """
    size = preprocess.target_size(preprocess.resolve(input))
    if size is None:
        raise DataError(
            f"synthetic images need a size, and input {input.name!r} fixes none",
            "add size= to the preprocessing, for example size=224",
        )
    dataset = SyntheticDataset(count, size, seed)
    return Batches(
        dataset,
        None,
        preprocess,
        input,
        synthetic=True,
        description=f"{count} synthetic images (seed {seed})",
    )


def synthetic_image(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """One synthetic image, uint8 [H,W,3]."""
    luminance = _noise(height, width, rng.uniform(0.9, 1.6), rng)
    picture = np.repeat(luminance[..., None], 3, axis=2)
    colour = rng.uniform(0.1, 0.5)
    for channel in range(3):
        picture[..., channel] += colour * _noise(height, width, rng.uniform(1.0, 1.8), rng)
    for _ in range(rng.integers(1, 7)):
        mask = _shape(height, width, rng)
        fill = rng.normal(0, 1.2) + 0.5 * rng.normal(0, 1, 3)
        texture = rng.uniform(0, 0.6) * _noise(height, width, rng.uniform(0.5, 1.5), rng)
        picture = np.where(mask[..., None], fill + texture[..., None], picture)
    brightness, contrast = rng.normal(118, 28), rng.uniform(35, 70)
    picture = (picture - picture.mean()) / (picture.std() + 1e-6) * contrast + brightness
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _noise(height: int, width: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Zero-mean, unit-variance noise [H,W] whose amplitude falls as 1/f^exponent."""
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf  # no constant part
    shape = frequency.shape
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / frequency**exponent
    field = np.fft.irfft2(spectrum, s=(height, width))
    return np.asarray((field - field.mean()) / (field.std() + 1e-12))


def _shape(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A random half-plane, ellipse or tilted rectangle as a bool mask [H,W]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    y, x = y / height - rng.uniform(), x / width - rng.uniform()
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    a, b = rng.uniform(0.06, 0.4, size=2)
    kind = rng.integers(3)
    if kind == 0:
        return np.asarray(u > 0.3 * rng.normal())
    if kind == 1:
        return np.asarray((u / a) ** 2 + (v / b) ** 2 < 1)
    return np.asarray((np.abs(u) < a) & (np.abs(v) < b))
