"""Which images calibrate, which evaluate, and which are held out for passes that measure accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt import load
from graphopt.driver.config import Settings
from graphopt.driver.inputs import Inputs, prepare


def positions(inputs: Inputs) -> list[set[str]]:
    """Where the images of each part come from."""
    parts = [inputs.calibration, inputs.evaluation, inputs.held_out]
    return [set() if b is None else {b.dataset.locate(int(i)) for i in b.indices} for b in parts]


def settings(**given) -> Settings:
    return Settings(preprocess="unit", **given)


@pytest.fixture
def other(images: Path, tmp_path: Path) -> Path:
    path = tmp_path / "other.npz"
    found = np.load(images)
    np.savez(path, x=found["x"][::-1], y=found["y"][::-1])
    return path


def test_nothing_is_held_out_unless_a_pass_asks(classifier: Path, images: Path):
    inputs = prepare(load(classifier), settings(data=images))
    assert inputs.held_out is None and inputs.describe()["held_out"] == 0
    assert len(inputs.calibration) + len(inputs.evaluation) == 96


def test_one_source_serves_three_purposes(classifier: Path, images: Path):
    inputs = prepare(load(classifier), settings(data=images), hold_out=True)
    calibration, evaluation, held_out = positions(inputs)
    assert (len(calibration), len(evaluation), len(held_out)) == (24, 36, 36)
    assert len(calibration | evaluation | held_out) == 96
    assert inputs.describe()["held_out"] == 36 and inputs.held_out.labels is not None


def test_calibration_data_spares_its_others(classifier: Path, images: Path, other: Path):
    given = settings(data=images, calibration_data=other, calibration_images=30)
    inputs = prepare(load(classifier), given, hold_out=True)
    calibration, evaluation, held_out = positions(inputs)
    assert (len(calibration), len(evaluation), len(held_out)) == (30, 96, 66)
    assert not calibration & held_out
    assert len(prepare(load(classifier), given, evaluate=False, hold_out=True).held_out) == 66


def test_what_evaluates_is_not_held_out(classifier: Path, images: Path):
    given = settings(data=images, calibration_data=images, calibration_images=30)
    assert prepare(load(classifier), given, hold_out=True).held_out is None


def test_without_images_there_are_none_to_spare(classifier: Path):
    assert prepare(load(classifier), settings(), hold_out=True).held_out is None


def trained_on(inputs: Inputs) -> set[str]:
    assert inputs.training is not None
    return {inputs.training.dataset.locate(int(i)) for i in inputs.training.indices}


def test_nothing_trains_unless_a_pass_asks(classifier: Path, images: Path):
    inputs = prepare(load(classifier), settings(data=images), hold_out=True)
    assert inputs.training is None and inputs.describe()["training"] == 0


def test_training_takes_all_of_its_source_but_a_tenth(classifier: Path, images: Path, other: Path):
    given = settings(data=images, calibration_data=other, calibration_images=30)
    inputs = prepare(load(classifier), given, hold_out=True, train=True)
    calibration, evaluation, held_out = positions(inputs)
    assert (len(calibration), len(evaluation), len(held_out)) == (30, 96, 6)
    assert len(trained_on(inputs)) == 90 and calibration < trained_on(inputs)
    assert not trained_on(inputs) & (held_out | evaluation)


def test_one_source_serves_training_too(classifier: Path, images: Path):
    inputs = prepare(load(classifier), settings(data=images), hold_out=True, train=True)
    calibration, evaluation, held_out = positions(inputs)
    training = trained_on(inputs)
    assert (len(calibration), len(training), len(held_out), len(evaluation)) == (24, 60, 3, 33)
    assert calibration < training and len(training | evaluation | held_out) == 96


def test_what_evaluates_does_not_train(classifier: Path, images: Path):
    given = settings(data=images, calibration_data=images, calibration_images=30)
    inputs = prepare(load(classifier), given, hold_out=True, train=True)
    assert trained_on(inputs) == positions(inputs)[0], "calibration images alone, which a note is about"


def test_training_without_held_out_images_takes_all(classifier: Path, images: Path, other: Path):
    inputs = prepare(load(classifier), settings(data=images, calibration_data=other), train=True)
    assert inputs.held_out is None and len(trained_on(inputs)) == 96
