"""Every group of channels of six convolutional classifiers, zeroed and removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from every_group import compared, simplified

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT.parent / "shared" / "models"
# How many groups there are. In the largest model, one of each family goes at a time.
CASES = {
    MODELS / "resnet20-cifar10.onnx": 400,
    MODELS / "resnet56-cifar10.onnx": 1072,
    MODELS / "mbv3-cifar10.onnx": 2578,
    MODELS / "seed-cnn-cifar10.onnx": 160,
    MODELS / "efficientnet-lite0.onnx": 11024,
    ROOT / "models" / "fashion-resnet.onnx": 520,
}


def test_one_in_eight_groups_of_a_small_model() -> None:
    found = compared(simplified(ROOT / "models" / "fashion-resnet.onnx"), 0, 8)
    assert not found.mismatches and found.groups == 65 and found.felt > 32


@pytest.mark.suite
@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_every_group(path: Path) -> None:
    if not path.exists():
        pytest.skip("the shared models are not here")
    found = compared(simplified(path), together=CASES[path] > 5000)
    assert not found.mismatches and found.groups == CASES[path] and found.felt > 0.4 * found.removals
