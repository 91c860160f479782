"""Real classifiers on real images."""

from __future__ import annotations

import pytest

import graphopt
from graphopt import Context
from graphopt.data.loader import Batches
from graphopt.data.preprocess import Preprocess
from graphopt.data.sources import open_dataset
from graphopt.data.split import choose
from graphopt.ir import save
from graphopt.passes.quantize import Quantize
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.session import open_session, session_input
from graphopt.runtime.target import get_target


@pytest.mark.parametrize(
    ("name", "convs"),
    [("resnet20-cifar10", 18), ("mbv3-cifar10", 20)],
)
def test_accuracy_stays_within_a_few_points(shared, tmp_path, name, convs):
    path = shared / "models" / f"{name}.onnx"
    entry = session_input(open_session(path))

    def images(part: str, n: int) -> Batches:
        dataset = open_dataset(shared / "data" / "cifar10" / part)
        return Batches(dataset, choose(len(dataset), n, seed=1), Preprocess.parse("imagenet"), entry)

    model = graphopt.load(path)
    ctx = Context(get_target("ort-cpu"), images("train", 100), model.copy(), threads=2)
    PassManager(Registry().build("simplify")).run(model, ctx)
    result = Quantize(place="estimated").run(model, ctx)
    save(model, tmp_path / "int8.onnx")
    test = images("test", 300)
    before, after = (evaluate(p, test, threads=2, batch_size=50) for p in (path, tmp_path / "int8.onnx"))
    assert after.top1 >= before.top1 - 0.03
    assert result.metrics["int8_operators"]["Conv"] >= convs
    assert "not_fused" not in result.metrics
    assert not result.metrics["synthetic_calibration"]
    assert all(s.reason for s in result.skipped)
