"""Small generated images for the tests of datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Writer = Callable[..., Path]


@pytest.fixture
def write_image() -> Writer:
    """Write an image of random pixels; the suffix decides the format."""

    def write(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> Path:
        channels = len(mode)
        shape = size if channels == 1 else (*size, channels)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def image_folder(tmp_path: Path, write_image: Writer) -> Path:
    """Three classes with 3, 2 and 1 images of 8x8, and clutter that is no image."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("ant", "bee", "cow")):
        for i in range(3 - label):
            write_image(root / name / f"{i}.png", seed=10 * label + i)
    (root / "ant" / "notes.txt").write_text("not an image")
    (root / "ant" / ".hidden.png").write_bytes(b"not an image either")
    (root / ".cache").mkdir()
    return root
