"""Real classifiers, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

import graphopt
from graphopt.analysis.cost import cost
from graphopt.ir import Snapshot, verify
from graphopt.passes.prune import Prune
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not here")


@pytest.mark.parametrize(
    "name", ["resnet20-cifar10", "resnet56-cifar10", "mbv3-cifar10", "seed-cnn-cifar10", "efficientnet-lite0"]
)
def test_thirty_percent_fewer_macs(name, context):
    model = graphopt.load(SHARED / "models" / f"{name}.onnx")
    ctx = context(model, 8)
    PassManager(Registry().build("simplify")).run(model, ctx)
    before, snapshot = cost(model), Snapshot.of(model)
    result = Prune(macs=0.7).run(model, ctx)
    verify(model, snapshot)
    after = cost(model)
    assert result.metrics["macs_realised"] == pytest.approx(after.macs / before.macs, abs=1e-6)
    assert result.metrics["macs_realised"] == pytest.approx(0.7, abs=0.03)
    assert after.params < before.params and result.metrics["proof_max_rel_error"] < 1e-4
    assert all("output" in s.reason or "channel multiple" in s.reason for s in result.skipped)


def test_transformer_loses_hidden_units_and_head_dimensions(context):
    model = graphopt.load(SHARED / "models" / "vit-cifar10.onnx")
    ctx = context(model, 8)
    PassManager(Registry().build("simplify")).run(model, ctx)
    result = Prune(macs=0.7).run(model, ctx)
    assert result.metrics["macs_realised"] == pytest.approx(0.7, abs=0.03)
    assert any("LayerNormalization" in s.reason for s in result.skipped)
