"""From settings to the images of a run: what calibrates, what evaluates, and what is said about both."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.data.checks import suspicions
from graphopt.data.loader import Batches
from graphopt.data.model_io import ImageInput, image_input
from graphopt.data.preprocess import Preprocess
from graphopt.data.sources import open_dataset
from graphopt.data.split import (
    CALIBRATION,
    HELD_OUT_OF_TRAINING,
    HELD_OUT_SHARE,
    TRAINING_SHARE,
    choose,
    overlap,
    split,
    split_off,
    without,
)
from graphopt.data.split import hold_out as set_apart
from graphopt.data.synthetic import synthetic_batches
from graphopt.driver.config import Settings
from graphopt.errors import DataError, ModelError, UsageError
from graphopt.ir import Model

_NO_PREPROCESSING = "no preprocessing was given: pixels are divided by 255 (say --preprocess to change it)"


@dataclass
class Inputs:
    """The images of a run. ``evaluation`` is None when there are none to evaluate on."""

    input: ImageInput
    preprocess: Preprocess
    calibration: Batches
    evaluation: Batches | None
    held_out: Batches | None = None
    training: Batches | None = None
    notes: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        """The report's ``dataset`` entry."""
        evaluation = self.evaluation
        return {
            "calibration": len(self.calibration),
            "evaluation": len(evaluation) if evaluation is not None else 0,
            "labels": evaluation is not None and evaluation.labels is not None,
            "synthetic": self.calibration.synthetic,
            "preprocess": self.preprocess.spec,
            "calibration_source": self.calibration.description,
            "held_out": len(self.held_out) if self.held_out is not None else 0,
            "held_out_source": self.held_out.description if self.held_out is not None else None,
            "training": len(self.training) if self.training is not None else 0,
            "training_source": self.training.description if self.training is not None else None,
            "evaluation_source": evaluation.description if evaluation is not None else None,
        }


def read_preprocess(setting: str | dict[str, Any] | None) -> Preprocess:
    """The preprocessing that was asked for; ``unit`` when nothing was said, which is said."""
    if setting is None:
        return Preprocess.parse("unit")
    return Preprocess.parse(setting) if isinstance(setting, str) else Preprocess.from_table(setting)


def model_input(model: Model, layout: Any = None) -> ImageInput:
    """The one image input of a classifier. Raises ModelError when the model has another interface."""
    inputs = [t for t in model.bare.inputs if t.name not in model.header.input_defaults]
    if len(inputs) != 1:
        names = ", ".join(repr(t.name) for t in inputs) or "none"
        raise ModelError(
            f"the model has {len(inputs)} inputs ({names}); an image classifier has one",
            "graphopt optimizes models that take one batch of images",
        )
    tensor = inputs[0]
    if tensor.shape is None or tensor.dtype is None or isinstance(tensor.dtype, int):
        raise ModelError(f"the model's input {tensor.name!r} has no known shape or dtype")
    return image_input(tensor.name, list(tensor.shape), tensor.dtype, layout=layout, classes=classes(model))


def classes(model: Model) -> int | None:
    """Number of classes, from the first output's shape [N, classes] (trailing 1s allowed); None if unknown."""
    shape = model.bare.outputs[0].shape
    if shape is None or len(shape) < 2 or any(d != 1 for d in shape[2:]):
        return None
    return shape[1] if isinstance(shape[1], int) and shape[1] > 0 else None


def prepare(
    model: Model, settings: Settings, *, evaluate: bool = True, hold_out: bool = False, train: bool = False
) -> Inputs:
    """Open the data and split it. Raises UsageError, DataError or ModelError.

    One source serves both purposes, split by the seed. With calibration data alone, nothing is evaluated; with no
    data at all, calibration uses synthetic images. ``hold_out`` sets images apart that do neither: others of the
    calibration source, or of the one source. ``train`` gives to training all that neither
    evaluates nor is held out, and holds fewer out.
    """
    preprocess = read_preprocess(settings.preprocess)
    described = model_input(model, preprocess.layout)
    seed = settings.seed or 0
    count = settings.calibration_images or CALIBRATION
    notes: list[str] = []
    if settings.preprocess is None and (settings.data or settings.calibration_data):
        notes.append(_NO_PREPROCESSING)

    def batches(dataset: Any, indices: np.ndarray, description: str) -> Batches:
        return Batches(dataset, indices, preprocess, described, description=description)

    evaluation: Batches | None = None
    held_out: Batches | None = None
    training: Batches | None = None
    if settings.calibration_data is not None:
        source = _open(settings.calibration_data)
        chosen = choose(len(source), count, seed)
        calibration = batches(source, chosen, f"{len(chosen)} of {len(source)} images of {source.name}")
        spare = np.setdiff1d(np.arange(len(source), dtype=np.int64), chosen) if hold_out or train else chosen[:0]
        if settings.data is not None:
            judged = _open(settings.data)
            rest = np.arange(len(judged), dtype=np.int64)
            evaluation = batches(judged, rest, f"{len(rest)} images of {judged.name}")
            shared = overlap(source, chosen, judged, rest)
            if shared:
                notes.append(f"{shared} images both calibrate and evaluate: the measured accuracy is flattered by them")
            spare = without(source, spare, judged, rest)
        free = spare
        if spare.size and hold_out:
            apart, free = set_apart(spare, seed, HELD_OUT_OF_TRAINING if train else 1.0)
            held_out = batches(source, apart, f"{len(apart)} other images of {source.name}")
        if train:
            used = np.union1d(chosen, free)
            training = batches(source, used, f"{len(used)} of {len(source)} images of {source.name}")
    elif settings.data is not None:
        source = _open(settings.data)
        chosen, rest = split(source, count, seed)
        used = chosen
        if train and len(rest) > 2:
            extra, rest = split_off(rest, seed, TRAINING_SHARE)
            used = np.union1d(chosen, extra)
        if hold_out and len(rest) > 2:
            apart, rest = set_apart(rest, seed, HELD_OUT_OF_TRAINING if train else HELD_OUT_SHARE)
            held_out = batches(source, apart, f"{len(apart)} other images of {source.name}")
        if train:
            training = batches(source, used, f"{len(used)} of {len(source)} images of {source.name}")
        calibration = batches(source, chosen, f"{len(chosen)} of {len(source)} images of {source.name}")
        evaluation = batches(source, rest, f"the other {len(rest)} images of {source.name}")
    else:
        calibration = synthetic_batches(described, preprocess, count, seed)
        notes.append("no images were given: calibration uses synthetic images, and the result is not validated")
    if evaluation is not None and settings.evaluation_images:
        evaluation = evaluation.subset(settings.evaluation_images, seed)
    if not evaluate:
        evaluation = None
    for given in (evaluation, calibration):
        if given is not None and not given.synthetic:
            notes.extend(note for note in suspicions(given, classes(model)) if note not in notes)
    return Inputs(described, preprocess, calibration, evaluation, held_out, training, notes)


def evaluation_only(model: Model, settings: Settings) -> tuple[Batches, list[str]]:
    """All images of ``settings.data``, for commands that only evaluate. Raises like ``prepare``."""
    if settings.data is None:
        raise UsageError("no images to evaluate on", "give --data with an image folder, an .npz or a manifest")
    preprocess = read_preprocess(settings.preprocess)
    described = model_input(model, preprocess.layout)
    source = _open(settings.data)
    found = Batches(source, None, preprocess, described)
    if settings.evaluation_images:
        found = found.subset(settings.evaluation_images, settings.seed or 0)
    notes = suspicions(found, classes(model))
    if settings.preprocess is None:
        notes.insert(0, _NO_PREPROCESSING)
    return found, notes


def _open(path: Path) -> Any:
    dataset = open_dataset(path)
    if not len(dataset):
        raise DataError(f"{path} holds no images")
    return dataset
