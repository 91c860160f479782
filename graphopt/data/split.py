"""Which images calibrate and which evaluate: seeded, disjoint, stated."""

from __future__ import annotations

import numpy as np

from graphopt.data.dataset import Dataset
from graphopt.errors import DataError

CALIBRATION = 512
# With little data most of it must judge the result: calibration never takes more than this share of one
# source.
CALIBRATION_SHARE = 0.25
HELD_OUT = 4096
HELD_OUT_SHARE = 0.5  # of what calibration leaves of one source
# Where a pass trains: it needs the images more than those need to be held out, and as many as judge it.
TRAINING_SHARE = 0.5
HELD_OUT_OF_TRAINING = 0.1


def choose(available: int, count: int = CALIBRATION, seed: int = 0) -> np.ndarray:
    """``count`` of ``available`` indices, or all if there are fewer: drawn by ``seed``, ascending, int64."""
    if count >= available:
        return np.arange(available, dtype=np.int64)
    rng = np.random.default_rng([seed, available])
    return np.sort(rng.permutation(available)[:count]).astype(np.int64)


def split(
    dataset: Dataset, calibration: int = CALIBRATION, seed: int = 0, share: float = CALIBRATION_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """Split one source into (calibration indices, evaluation indices), disjoint and together all of it.

    Calibration gets ``calibration`` images, but at most ``share`` of the source and at least one. Raises
    DataError when there are fewer than two images.
    """
    n = len(dataset)
    if n < 2:
        raise DataError(
            f"{dataset.name} has one image, too few to both calibrate and evaluate",
            "give more images, or separate calibration data",
        )
    count = max(1, min(calibration, int(n * share)))
    chosen = choose(n, count, seed)
    rest = np.ones(n, dtype=bool)
    rest[chosen] = False
    return chosen, np.flatnonzero(rest).astype(np.int64)


def hold_out(rest: np.ndarray, seed: int = 0, share: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Split indices that do not calibrate into (those that passes may measure accuracy on, the others).

    At most ``share`` of them are held out, and no more than ``HELD_OUT``.
    """
    return _divide(rest, min(HELD_OUT, int(share * len(rest))), seed)


def split_off(rest: np.ndarray, seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into (a share of them, drawn by ``seed``, the others)."""
    return _divide(rest, int(share * len(rest)), seed)


def _divide(rest: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = choose(len(rest), count, seed)
    others = np.ones(len(rest), dtype=bool)
    others[chosen] = False
    return rest[chosen], rest[others]


def describe(dataset: Dataset, calibration: np.ndarray, evaluation: np.ndarray, seed: int) -> str:
    """One sentence on how a source was split, for the log and the report."""
    return (
        f"{dataset.name}: {len(calibration)} images calibrate, {len(evaluation)} others evaluate (drawn by seed {seed})"
    )


def overlap(first: Dataset, first_indices: np.ndarray, second: Dataset, second_indices: np.ndarray) -> int:
    """How many images both selections hold, by where they come from (the same file twice is one image)."""
    return len(second_indices) - len(without(second, second_indices, first, first_indices))


def without(dataset: Dataset, indices: np.ndarray, other: Dataset, other_indices: np.ndarray) -> np.ndarray:
    """The indices of images that the other selection does not hold, by where they come from."""
    gone = {other.locate(int(i)) for i in other_indices}
    return np.array([i for i in indices if dataset.locate(int(i)) not in gone], dtype=np.int64)
