"""The pass: targets, options, errors, reports, determinism, and what happens when a rule is wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

from graphopt import Model, PassError, UsageError, load
from graphopt.analysis.labels import NodeScope, registry, rule
from graphopt.ir import Snapshot, verify
from graphopt.passes.prune import Prune

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,10] y) '


def network(middle: str = "b = Relu(a)", width: int = 32) -> Model:
    """Two 3x3 convolutions, with something in between, and a classifier."""
    rng = np.random.default_rng(0)
    shapes = {
        "w": (width, 3, 3, 3),
        "v": (width, width, 3, 3),
        "u": (width, width, 1, 1),
        "wf": (10, width),
        "bf": (10,),
    }
    weights = ", ".join(
        f"float[{','.join(map(str, s))}] {k} = {{{','.join(f'{v:.4f}' for v in rng.standard_normal(int(np.prod(s))))}}}"
        for k, s in shapes.items()
    )
    body = f"a = Conv(x, w) {middle} c = Conv(b, v) d = Relu(c) e = Conv(d, u) z = Relu(e) "
    body += "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB=1>(f, wf, bf)"
    return Model.from_text(f"{HEADER} <{weights}> {{ {body} }}")


@pytest.mark.parametrize("macs", [0.9, 0.7, 0.5])
def test_target_is_met_with_round_counts(context, macs):
    model = network()
    before = Snapshot.of(model)
    result = Prune(macs=macs).run(model, context(model))
    verify(model, before)
    onnx.checker.check_model(model.to_proto(), full_check=True)
    assert result.changed and result.metrics["macs_realised"] == pytest.approx(macs, abs=0.12)
    assert result.metrics["macs_planned"] == pytest.approx(result.metrics["macs_realised"], abs=1e-6)
    assert all(n.inputs[1].shape[0] % 8 == 0 for n in model.graph.nodes if n.op == "Conv")
    assert result.metrics["proof_max_rel_error"] < 1e-4


def test_fine_steps_hit_the_target(context):
    model = network()
    result = Prune(macs=0.63, multiple=1).run(model, context(model))
    assert result.metrics["macs_realised"] == pytest.approx(0.63, abs=0.01)


def test_keeping_all_changes_nothing(context):
    model = network()
    before = model.to_bytes()
    result = Prune(macs=1.0).run(model, context(model))
    assert not result.changed and model.to_bytes() == before


def test_min_keep_is_a_floor(context):
    model = network()
    Prune(macs=0.05, min_keep=0.5).run(model, context(model))
    assert [n.inputs[1].shape[0] for n in model.graph.nodes if n.op == "Conv"] == [16, 16, 16]


def test_keep_leaves_nodes_alone_and_says_so(context):
    model = network()
    names = [n.name for n in model.graph.nodes if n.op == "Conv"]
    result = Prune(macs=0.7, keep=(names[1],)).run(model, context(model))
    assert [n.inputs[1].shape[0] for n in model.graph.nodes if n.op == "Conv"][:2] == [32, 32]
    assert any("option keep" in s.reason for s in result.skipped)


def test_a_keep_pattern_that_matches_nothing_is_an_error(context):
    model = network()
    with pytest.raises(UsageError, match="no node is named"):
        Prune(keep=("nothing*",)).run(model, context(model))


def test_nothing_to_prune_is_an_error_with_reasons(context):
    model = network("b = Mystery(a)")
    small = Model.from_text(HEADER.replace("N,10", "N,3,8,8") + "{ y = Relu(x) }")
    with pytest.raises(PassError, match="nothing could be pruned"):
        Prune().run(small, context(small))
    narrow = network(width=8)
    with pytest.raises(PassError, match="not more than the channel multiple 8"):
        Prune().run(narrow, context(narrow))
    assert model is not None


def test_locked_nodes_are_reported_once(context):
    model = network("b0 = Softmax<axis=1>(a) b = Softmax<axis=1>(b0)")
    result = Prune(macs=0.8).run(model, context(model))
    said = [s for s in result.skipped if "Softmax" in s.reason]
    assert len(said) == 1 and said[0].op == "Conv"
    assert len(set(result.skipped)) == len(result.skipped)


@pytest.fixture
def wrong_rule(monkeypatch):
    """Softmax over channels does not pass labels through, but its rule says so."""
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    @rule("Softmax")
    def wrong(scope: NodeScope) -> None:
        scope.out(scope.axes(0))


@pytest.mark.usefixtures("wrong_rule")
def test_a_wrong_rule_is_caught_and_its_channels_are_left_alone(context):
    """The proof finds out which family was wrong."""
    model = network("b = Softmax<axis=1>(a)")
    result = Prune(macs=0.6, min_keep=0.1).run(model, context(model))
    assert result.changed and result.metrics["proof_max_rel_error"] < 1e-4
    assert any("not exact" in s.reason for s in result.skipped)
    assert next(n.inputs[1].shape[0] for n in model.graph.nodes if n.op == "Conv") == 32


def test_criteria_differ_and_options_round_trip(context):
    assert Prune(macs=0.5, importance="l1").spec == "prune{macs=0.5,importance=l1}"
    with pytest.raises(UsageError):
        Prune(macs=0.0)
    with pytest.raises(UsageError):
        Prune(importance="magic")
    model = network()
    assert Prune(importance="l1").run(model, context(model)).changed


_SCRIPT = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import importlib.util
spec = importlib.util.spec_from_file_location("t", sys.argv[1] + "/test_prune.py")
t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)
spec = importlib.util.spec_from_file_location("c", sys.argv[1] + "/conftest.py")
c = importlib.util.module_from_spec(spec); sys.modules["c"] = c; spec.loader.exec_module(c)
from graphopt import Context
from graphopt.runtime.target import get_target
model = t.network()
t.Prune(macs=0.6).run(model, Context(get_target("ort-cpu"), c.FakeBatches((3, 8, 8)), model.copy()))
print(hashlib.sha256(model.to_bytes()).hexdigest())
"""


def test_same_input_same_bytes_whatever_the_hash_seed():
    here = os.path.dirname(__file__)  # noqa: PTH120
    digests = {
        subprocess.run(
            [sys.executable, "-c", _SCRIPT, here],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_what_is_left_alone_says_what_it_holds_back(context):
    """By rule, by the option, by the multiple: the worst first, and a total that counts nothing twice."""
    model = network("b = Softmax<axis=1>(a)")
    convs = [n.name for n in model.graph.nodes if n.op == "Conv"]
    result = Prune(macs=1.0, keep=(convs[2],)).run(model, context(model))
    held = [s.macs_held_back for s in result.skipped]
    assert None not in held and held == sorted(held, reverse=True)
    by_reason = {s.reason: s.macs_held_back for s in result.skipped}
    plane, width = 6 * 6, 32
    first, second, third = 27 * width * plane, 9 * width * width * 16, width * width * 16
    assert next(v for k, v in by_reason.items() if "Softmax" in k) == first + second
    kept = [s.macs_held_back for s in result.skipped if "option keep" in s.reason]
    assert sorted(kept) == [third + 10 * width, second + third]
    assert next(v for k, v in by_reason.items() if "output of the model" in k) == 10 * width
    # Every layer makes or reads channels that must stay.
    assert result.metrics["macs_held_back"] == first + second + third + 10 * width


def test_channels_below_the_multiple_hold_back_theirs(context):
    model = network(width=32)
    with pytest.raises(PassError) as caught:
        Prune(macs=0.7, multiple=64).run(model, context(model))
    assert "not more than the channel multiple 64" in str(caught.value)
    small = network(width=32)
    result = Prune(macs=1.0, multiple=64).run(small, context(small))
    assert not result.changed and result.metrics["macs_held_back"] == result.metrics["macs_before"]


@pytest.mark.usefixtures("wrong_rule")
def test_channels_that_break_the_proof_hold_back_theirs(context):
    model = network("b = Softmax<axis=1>(a)")
    result = Prune(macs=0.6, min_keep=0.1).run(model, context(model))
    (entry,) = (s for s in result.skipped if "not exact" in s.reason)
    assert entry.macs_held_back == 27 * 32 * 36 + 9 * 32 * 32 * 16


def test_a_file_that_nothing_changed_since_it_was_read(context, tmp_path):
    """Tensors inside of it are wanted, where running the file itself gives its outputs."""
    path = tmp_path / "model.onnx"
    path.write_bytes(network().to_bytes())
    model = load(path)
    assert model.unchanged_file == path
    result = Prune(macs=0.7).run(model, context(model, 64))
    assert result.metrics["refitted"] > 0


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_images_are_said_to_be_that(context, synthetic):
    said: list[str] = []
    model = network()
    ctx = context(model)
    ctx.calibration.synthetic = synthetic
    ctx.progress.warn = said.append
    result = Prune(macs=0.7).run(model, ctx)
    assert result.metrics["synthetic_calibration"] is synthetic
    assert any("synthetic" in text for text in said) is synthetic


def test_weights_alone_need_no_images_and_speak_of_none(context):
    said: list[str] = []
    model = network()
    ctx = context(model)
    ctx.progress.warn = said.append
    result = Prune(macs=0.7, importance="l2", recover=False).run(model, ctx)
    assert "synthetic_calibration" not in result.metrics and not said
