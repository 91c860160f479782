"""What looks wrong is said early: data that does not fit the preprocessing, the model, or its labels."""

from __future__ import annotations

import math

import numpy as np

from graphopt.data.dataset import Dataset
from graphopt.data.loader import Batches
from graphopt.data.model_io import image_input
from graphopt.errors import DataError, ModelError

_SAMPLE = 16


def suspicions(batches: Batches, classes: int | None = None) -> list[str]:
    """Warnings about the images that ``batches`` will feed, from a look at a few of them.

    Returns one sentence a suspicion, each saying what to check. Raises DataError for what cannot be right:
    labels outside the model's ``classes`` (None: unknown), images that cannot be decoded.
    """
    dataset = batches.dataset
    check_labels(batches, classes)
    warnings = list(dataset.notes)
    if not len(batches):
        return warnings
    warnings += _layout(batches)
    positions = np.unique(np.linspace(0, len(batches) - 1, _SAMPLE).astype(int))
    images = [dataset.image(int(batches.indices[p])) for p in positions]
    arrays = [np.asarray(image) for image in images]
    warnings += _source_range(batches, arrays)
    warnings += _fed_range(batches, positions)
    warnings += _geometry(batches, arrays)
    return warnings


def check_labels(batches: Batches, classes: int | None) -> None:
    """Raise DataError if a label is outside the model's ``classes``."""
    labels = batches.labels
    if classes is None or labels is None or not len(labels) or labels.max() < classes:
        return
    worst = int(labels.argmax())
    where = batches.dataset.locate(int(batches.indices[worst]))
    raise DataError(
        f"label {int(labels[worst])} of {where} is outside the model's {classes} classes (0..{classes - 1})",
        _label_hint(batches.dataset, classes),
    )


def near_chance(top1: float, classes: int, n: int) -> str | None:
    """A warning if ``top1`` (fraction of ``n`` labelled images) is hardly better than guessing, else None.

    Guessing scores 1/classes. Hardly better: within three standard errors of it, or within a small multiple.
    """
    if n < 1 or classes < 2:
        return None
    chance = 1 / classes
    noise = 3 * math.sqrt(chance * (1 - chance) / n)
    if top1 > max(chance + noise, min(2 * chance, chance + 0.1)):
        return None
    return (
        f"top-1 of the input model is {100 * top1:.2f} %, near chance "
        f"({100 * chance:.2g} % for {classes} classes): check the preprocessing "
        "(scale, mean, channel order) and the label order (classes.txt)"
    )


def _label_hint(dataset: Dataset, classes: int) -> str:
    names = dataset.class_names
    if names is not None and len(names) > classes:
        return f"the dataset has {len(names)} classes: is it the one that the model was trained on?"
    return "labels count from 0; check that the dataset is the one that the model was trained on"


def _layout(batches: Batches) -> list[str]:
    asked = batches.preprocess.layout
    if asked is None:
        return []
    given = batches.input
    try:
        natural = image_input(given.name, given.shape, given.dtype).layout
    except ModelError:
        return []  # the shape does not tell, which is what the option is for
    if natural == asked:
        return []
    return [f"input {given.name!r} of shape {list(given.shape)} looks like {natural}, but layout={asked} is asked for"]


def _source_range(batches: Batches, arrays: list[np.ndarray]) -> list[str]:
    """Pixels as stored, against the 0..255 that every preset starts from."""
    low, high = min(float(a.min()) for a in arrays), max(float(a.max()) for a in arrays)
    name, preset = batches.dataset.name, batches.preprocess.preset
    scale = batches.preprocess.scale
    if low == high:
        return [f"every pixel looked at in {name} is {low:g}: are the images blank?"]
    if low < 0:
        return [
            f"pixels of {name} go down to {low:.3g}: they look normalized already, but preprocess "
            f"{preset!r} starts from 0..255; use raw if they are ready for the model"
        ]
    if high <= 1.0 and scale * 255 <= 2.5:
        return [
            f"pixels of {name} are within 0..{high:.3g}, but preprocess {preset!r} starts from 0..255 "
            "and scales them down again; multiply them by 255, or add scale=1"
        ]
    if high > 255:
        return [f"pixels of {name} go up to {high:.4g}, beyond the 0..255 that preprocess {preset!r} starts from"]
    return []


def _fed_range(batches: Batches, positions: np.ndarray) -> list[str]:
    peak = max(float(np.abs(batches.item(int(p)).astype(np.float32)).max()) for p in positions)
    if peak <= 300:
        return []
    return [
        f"preprocessed values go up to {peak:.4g}; no usual preprocessing exceeds 255: "
        "scale multiplies the pixels (write scale=0.00392156862745098 for x/255)"
    ]


def _geometry(batches: Batches, arrays: list[np.ndarray]) -> list[str]:
    warnings = []
    name = batches.dataset.name
    size = batches.preprocess.target_size(batches.input)
    if size is not None:
        sides = [min(a.shape[0] / size[0], a.shape[1] / size[1]) for a in arrays]
        if float(np.median(sides)) <= 0.5:
            small = arrays[int(np.argmin(sides))].shape
            warnings.append(
                f"images of {name} are much smaller than the model's input ({small[1]}x{small[0]} for "
                f"{size[1]}x{size[0]}): is it the data that the model was trained on?"
            )
    if batches.input.channels == 1 and any(a.ndim == 3 and a.shape[2] >= 3 for a in arrays):
        warnings.append(f"colour images of {name} are converted to gray for a model with one channel")
    scrambled = [_looks_scrambled(a) for a in arrays if a.ndim == 3 and a.shape[2] == 3]
    if scrambled and sum(scrambled) > len(scrambled) / 2:
        warnings.append(
            f"images of {name} look like [C,H,W] data reshaped to [H,W,C]: transpose it instead "
            "(x.transpose(0, 2, 3, 1)), or store it as [N,C,H,W]"
        )
    return warnings


def _looks_scrambled(image: np.ndarray) -> bool:
    """Whether an [H,W,C] array is smoother when its memory is read as [C,H,W]."""
    values = image.astype(np.float32)
    height, width, channels = values.shape
    if min(height, width) < 8:
        return False

    def roughness(array: np.ndarray, axes: tuple[int, int]) -> float:
        return float(np.mean([np.abs(np.diff(array, axis=a)).mean() for a in axes]))

    as_read = roughness(values, (0, 1))
    as_planes = roughness(values.reshape(channels, height, width), (1, 2))
    return as_planes < 0.6 * as_read
