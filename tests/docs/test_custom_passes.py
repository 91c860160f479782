"""The pass in docs/custom-passes.md, and its test, work as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper


@pytest.fixture
def files(root: Path, tmp_path: Path) -> Path:
    """Every file that the page shows, written to a folder."""
    text = (root / "docs" / "custom-passes.md").read_text()
    found = re.findall(r"^`([\w.]+\.py)`:\n\n```python\n(.*?)^```", text, re.M | re.S)
    names = ["no_softmax.py", "test_no_softmax.py", "hard_tanh.py", "spread.py", "channel_scale.py"]
    assert [name for name, _ in found] == names
    for name, code in found:
        (tmp_path / name).write_text(code)
    return tmp_path


def test_the_pages_test_passes(files: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_no_softmax.py"],
        capture_output=True,
        text=True,
        cwd=files,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_pages_commands_run(files: Path, classifier: Path, images: Path) -> None:
    model = onnx.load(classifier)
    next(n for n in model.graph.node if n.op_type == "Gemm").output[0] = "scores"
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["logits"], name="softmax"))
    onnx.save(model, files / "model.onnx")
    page = "no-softmax{log_too=false},quantize"
    graphopt = [sys.executable, "-c", "from graphopt.cli import main; main()"]
    done = subprocess.run(
        [*graphopt, "run", "model.onnx", "--load-pass", "no_softmax.py", "--passes", page, "--data", str(images)],
        capture_output=True,
        text=True,
        cwd=files,
    )
    assert done.returncode == 0, done.stderr
    written = onnx.load(files / "model.opt.onnx")
    assert "Softmax" not in {n.op_type for n in written.graph.node}
    assert [o.name for o in written.graph.output] == ["logits"]
    shown = subprocess.run(
        [*graphopt, "passes", "no-softmax", "--load-pass", "no_softmax.py"], capture_output=True, text=True, cwd=files
    )
    assert "log_too" in shown.stdout


def test_the_rewriting_pass_rewrites_and_says_what_it_does_not(files: Path) -> None:
    from graphopt import Model
    from graphopt.pipeline import Registry
    from graphopt.runtime.equivalence import compare_outputs
    from graphopt.runtime.feeds import random_feeds

    (cls,) = Registry().load_file(files / "hard_tanh.py")
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y, float[N,4] z)
        <float one = {1}, float minus = {-1}> {
            a = Min(x, one) y = Max(a, minus)  b = Min(x, one) z = Max(minus, b) }"""
    model = Model.from_text(text)
    before = model.to_bytes()
    assert cls().run(model, None).metrics["clips"] == 2  # type: ignore[arg-type]
    assert [n.op for n in model.graph.nodes] == ["Clip", "Clip"]
    assert compare_outputs(before, model.to_bytes(), random_feeds(before)).equal
    shared = Model.from_text(text.replace("b = Min(x, one) z = Max(minus, b)", "z = Neg(a)"))
    result = cls().run(shared, None)  # type: ignore[arg-type]
    assert not result.changed and "read 'a'" in result.skipped[0].reason


def test_the_criterion_ranks_channels(files: Path, classifier: Path, images: Path) -> None:
    """Another way to rank gives another file, and what it is called is listed."""
    graphopt = [sys.executable, "-c", "from graphopt.cli import main; main()"]
    written = {}
    for name, loaded in (("spread", ["--load-pass", "spread.py"]), ("l2", [])):
        passes = f"prune{{macs=0.7,multiple=4,importance={name}}}"
        command = ["run", str(classifier), *loaded, "--passes", passes, "--data", str(images), "-o", f"{name}.onnx"]
        done = subprocess.run([*graphopt, *command], capture_output=True, text=True, cwd=files)
        assert done.returncode == 0, done.stderr
        written[name] = (files / f"{name}.onnx").read_bytes()
    assert written["spread"] != written["l2"]
    shown = subprocess.run(
        [*graphopt, "passes", "prune", "--load-pass", "spread.py"], capture_output=True, text=True, cwd=files
    )
    assert "spread" in shown.stdout
    unknown = [*graphopt, "run", str(classifier), "--passes", passes.replace("l2", "spread")]
    done = subprocess.run(unknown, capture_output=True, text=True, cwd=files)
    assert done.returncode == 2 and "importance" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("across", [0, 1])
def test_the_rule_prunes_through_a_custom_operator(files: Path, monkeypatch: pytest.MonkeyPatch, across: int) -> None:
    from graphopt import Model
    from graphopt.analysis.labels import propagate, registry
    from graphopt.passes.prune import surgery
    from graphopt.pipeline import Registry

    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(surgery, "_REWRITES", dict(surgery._REWRITES))

    def model() -> Model:
        def numbers(count: int) -> str:
            return "{" + ",".join(["0.5"] * count) + "}"

        return Model.from_text(
            '<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]> g (float[N,3,4,4] x) => (float[N,2] y)\n'
            f"<float[4,3,1,1] w = {numbers(12)}, float[4] s = {numbers(4)}, float[2,4] v = {numbers(8)}, "
            "float[N,4,4,4] b, float[N,4,1,1] p, float[N,4] f>\n"
            f"{{ a = Conv(x, w) b = com.example.ChannelScale<channels=4, across={across}>(a, s) "
            "p = GlobalAveragePool(b) f = Flatten(p) y = Gemm<transB=1>(f, v) }"
        )

    before = propagate(model())
    assert not before.families and any("no pruning rule" in x.reason for x in before.locked)
    Registry().load_file(files / "channel_scale.py")
    here = model()
    labels = propagate(here)
    if across:
        assert not labels.families and any("when across is set" in x.reason for x in labels.locked)
        return
    (family,) = labels.families
    keep = labels.everything()
    keep[family.groups[:1]] = False
    surgery.remove(here, labels, keep)
    scale = next(n for n in here.graph.nodes if n.op == "ChannelScale")
    assert scale.attrs["channels"] == 3 and list(scale.inputs[1].shape) == [3]
