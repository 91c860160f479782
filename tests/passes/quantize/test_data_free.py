"""Without images: synthetic ones calibrate, chosen for the model where its batch normalizations tell of training."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Context, Model
from graphopt.data.model_io import image_input
from graphopt.data.preprocess import Preprocess
from graphopt.data.synthetic import synthetic_batches
from graphopt.passes.quantize import Quantize

BODY = "a = Conv<pads=[1,1,1,1]>(x, w) n = BatchNormalization(a, s, b, m, v) r = Relu(n) y = Conv<pads=[1,1,1,1]>(r, u)"
PLAIN = "a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, u)"
ONES = "float[8] {} = {{1,1,1,1,1,1,1,1}}"
NORM = {name: ONES.format(name) for name in "sbmv"}


@pytest.fixture
def run_free(graph, eager_target):
    def go(body: str, norm: dict[str, str], **options):
        text = graph(body, "[N,3,16,16]", "[N,8,16,16]", w=(1, 8, 3, 3, 3), u=(2, 8, 8, 3, 3), **norm)
        loaded = Model.from_text(text)
        folded = Model.from_text(graph(PLAIN, "[N,3,16,16]", "[N,8,16,16]", w=(1, 8, 3, 3, 3), u=(2, 8, 8, 3, 3)))
        port = image_input("x", ("N", 3, 16, 16), np.dtype(np.float32))
        batches = synthetic_batches(port, Preprocess.parse("imagenet{size=16}"), 24)
        return Quantize(**options).run(folded, Context(eager_target, batches, loaded))

    return go


def test_images_are_chosen_by_the_statistics_of_training(run_free):
    metrics = run_free(BODY, NORM).metrics
    assert metrics["synthetic_calibration"] and metrics["int8_operators"] == {"Conv": 2}
    assert metrics["synthetic_images"] == "24 of 144 synthetic images, chosen by batch statistics"


def test_without_batch_normalizations_they_are_taken_as_they_are(run_free):
    assert run_free(PLAIN, {}).metrics["synthetic_images"] == "24 synthetic images (seed 0)"


def test_reconstruction_works_on_them_too(run_free):
    metrics = run_free(BODY, NORM, weights="int4").metrics
    assert metrics["reconstruction"]["relative_error_after"] < metrics["reconstruction"]["relative_error_before"]
