"""Real models on real images, where they are at hand."""

import numpy as np
import pytest

from graphopt.data.checks import near_chance, suspicions
from graphopt.data.loader import Batches
from graphopt.data.preprocess import Preprocess
from graphopt.data.sources import open_dataset
from graphopt.data.split import choose
from graphopt.data.synthetic import synthetic_batches
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.session import open_session, session_input


def batches_for(shared, model, data, spec, n):
    dataset = open_dataset(shared / "data" / data)
    target = session_input(open_session(shared / "models" / model))
    return Batches(dataset, choose(len(dataset), n, seed=1), Preprocess.parse(spec), target)


@pytest.mark.parametrize(
    ("model", "data", "spec", "n", "top1"),
    [
        ("resnet20-cifar10.onnx", "cifar10/test", "imagenet", 500, 0.8046),
        ("seed-cnn-cifar10.onnx", "cifar10/test", "unit", 500, 0.6632),
        ("efficientnet-lite0.onnx", "imagenet-sample", "efficientnet-lite", 60, 0.886),
    ],
)
def test_published_accuracy(shared, model, data, spec, n, top1):
    batches = batches_for(shared, model, data, spec, n)
    assert suspicions(batches, batches.input.classes) == []
    got = evaluate(shared / "models" / model, batches, threads=2, batch_size=32)
    assert got.n == n and got.non_finite == 0
    assert got.ci95[0] <= top1 <= got.ci95[1]
    assert near_chance(got.top1, got.classes, n) is None


@pytest.mark.parametrize("spec", ["raw", "imagenet{order=bgr,scale=0.001}"])
def test_wrong_preprocessing_shows(shared, spec):
    batches = batches_for(shared, "resnet20-cifar10.onnx", "cifar10/test", spec, 300)
    got = evaluate(shared / "models" / "resnet20-cifar10.onnx", batches, threads=2)
    assert got.top1 < 0.6


def test_synthetic_images_exercise_a_network_as_photographs_do(shared):
    """The range of the logits, which is what calibration looks at, is of the same order."""
    model = shared / "models" / "resnet20-cifar10.onnx"
    real = batches_for(shared, "resnet20-cifar10.onnx", "cifar10/test", "imagenet", 200)
    made = synthetic_batches(real.input, real.preprocess, 200)
    session = open_session(model, threads=2)
    spread = [np.std(np.concatenate([session.run(None, {"input": x})[0] for x in b.batches(50)])) for b in (real, made)]
    assert 0.4 < spread[1] / spread[0] < 2.0
    assert evaluate(model, made, threads=2).synthetic
