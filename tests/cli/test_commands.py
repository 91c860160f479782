"""eval, compare, bench, inspect, passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_eval(graphopt, classifier: Path, images: Path) -> None:
    done = graphopt("eval", classifier, "--data", images)
    assert done.returncode == 0 and "top-1       100.00 %  95 % interval 96.15 .. 100.00" in done.stdout
    found = json.loads(graphopt("eval", classifier, "--data", images, "--format", "json", "--images", "50").stdout)
    assert found["schema"] == "graphopt.eval/1"
    assert found["top1"] == 1.0 and found["dataset"]["images"] == 50


def test_eval_needs_images(graphopt, classifier: Path) -> None:
    done = graphopt("eval", classifier)
    assert done.returncode == 2 and "give --data" in done.stderr


def test_compare(graphopt, classifier: Path, images: Path, pass_file: Path) -> None:
    graphopt("run", classifier, "--load-pass", pass_file, "--passes", "ruin{how=shift}", "--no-eval", "-o", "b.onnx")
    done = graphopt("compare", classifier, "b.onnx", "--data", images, "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["a"]["top1"] == 1.0 and found["b"]["top1"] < 0.9
    assert found["delta"]["top1_points"] == pytest.approx(100 * (found["b"]["top1"] - 1))
    assert found["delta"]["mcnemar_p"] < 0.05
    assert found["outputs"]["max_abs"] > 0
    assert "McNemar" in graphopt("compare", classifier, "b.onnx", "--data", images).stdout


def test_compare_without_images_uses_random_inputs(graphopt, classifier: Path) -> None:
    done = graphopt("compare", classifier, classifier)
    assert done.returncode == 0, done.stderr
    assert "random inputs differ by at most 0 " in done.stdout


def test_bench(graphopt, classifier: Path) -> None:
    done = graphopt("bench", classifier, classifier, "--seconds", "0.2", "--format", "json")
    found = json.loads(done.stdout)
    assert [m["path"] for m in found["models"]] == [str(classifier)] * 2
    assert found["models"][0]["speedup"] == 1.0 and found["models"][1]["latency_ms"] > 0


def test_inspect(graphopt, classifier: Path) -> None:
    done = graphopt("inspect", classifier)
    assert done.returncode == 0, done.stderr
    assert "3 Conv" in done.stdout and "simplify would:" in done.stdout and "conv2" in done.stdout
    found = json.loads(graphopt("inspect", classifier, "--format", "json").stdout)
    assert found["ops"]["Conv"] == 3
    assert found["params"] == 16 * 27 + 4 * 16 + 32 * 144 + 32 + 16 * 288 + 16 + 4 * 16 + 4
    assert found["macs"] == 144 * (16 * 27 + 32 * 144 + 16 * 288) + 64
    assert {"simplify", "simplify,prune", "simplify,quantize"} <= {p["pipeline"] for p in found["passes"]}
    assert not classifier.with_suffix(".opt.onnx").exists()
    assert "multiply-accumulates involve channels that must stay" in done.stdout
    assert "(holds back 64 multiply-accumulates)" in " ".join(done.stdout.split())
    (output,) = found["channels"]["locked"]
    assert (output["node"], output["channels"], output["macs_held_back"]) == ("fc", 4, 64)
    assert found["channels"]["macs_held_back"] == 64 and found["channels"]["macs"] == found["macs"]
    pruned = next(p for p in found["passes"] if p["pipeline"] == "simplify,prune")
    assert all("macs_held_back" in s for s in pruned["passes"][-1]["skipped"])


def test_passes_lists_and_describes(graphopt, pass_file: Path) -> None:
    listing = graphopt("passes").stdout
    assert all(name in listing for name in ("fold", "prune", "quantize"))
    one = graphopt("passes", "prune").stdout
    assert "macs" in one and "from 0.05 to 1" in one and "0.7" in one
    loaded = json.loads(graphopt("passes", "--load-pass", pass_file, "--format", "json").stdout)
    assert {"idle", "ruin"} <= {p["name"] for p in loaded["passes"]}


def test_passes_of_an_unknown_name(graphopt) -> None:
    done = graphopt("passes", "fodl")
    assert done.returncode == 2 and "did you mean 'fold'" in done.stderr


def test_version_and_help(graphopt) -> None:
    assert graphopt("--version").stdout.startswith("graphopt, version 0.1.0")
    for command in ("run", "eval", "compare", "inspect", "passes", "bench"):
        done = graphopt(command, "--help")
        assert done.returncode == 0 and done.stdout.startswith("Usage: graphopt " + command)


def test_pipelines_are_listed(graphopt) -> None:
    done = graphopt("passes", "simplify")
    assert done.returncode == 0 and "simplify" in done.stdout and "fold, branches" in done.stdout
    found = json.loads(graphopt("passes", "--format", "json").stdout)
    (simplify,) = [p for p in found["pipelines"] if p["name"] == "simplify"]
    assert simplify["passes"][0] == "fold" and {"cse", "dedupe"} <= set(simplify["passes"])
    assert all(entry["summary"].endswith(".") for entry in found["passes"])


def test_passes_lists_the_others_where_one_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from click.testing import CliRunner

    from graphopt.cli.passes import command
    from graphopt.pipeline import registry

    real = registry._installed
    broken = EntryPoint("broken", "no_such_module:Pass", registry.GROUP)
    monkeypatch.setattr(registry, "_installed", lambda g: (*real(g), *[broken] * (g == registry.GROUP)))
    done = CliRunner().invoke(command, [])
    assert done.exit_code == 0 and "fuse-affine" in done.stdout
    assert "warning: the pass 'broken' of no_such_module:Pass cannot be imported" in done.stderr
    found = json.loads(CliRunner().invoke(command, ["--format", "json"]).stdout)
    assert len(found["broken"]) == 1 and "fold" in {p["name"] for p in found["passes"]}
    assert not CliRunner().invoke(command, ["fold"]).stderr
    assert CliRunner().invoke(command, ["broken"]).exit_code != 0
