"""``graphopt run``: its files, streams, exit codes, gates and report."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

KEYS = ["schema", "status", "model", "output", "pipeline", "target", "validated", "before", "after", "delta"]


def test_a_run_writes_model_and_report(graphopt, classifier: Path, images: Path) -> None:
    before = classifier.read_bytes()
    done = graphopt("run", classifier, "--passes", "simplify,quantize", "--data", images)
    assert done.returncode == 0, done.stderr
    output, report = classifier.with_suffix(".opt.onnx"), classifier.with_suffix(".opt.report.json")
    assert str(output) in done.stdout and "top-1" in done.stdout
    found = json.loads(report.read_text())
    assert list(found)[: len(KEYS)] == KEYS
    assert found["schema"] == "graphopt.report/1" and found["status"] == "ok" and found["validated"]
    assert found["model"]["sha256"] == hashlib.sha256(before).hexdigest()
    assert found["output"] == {
        "path": str(output),
        "sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
        "written": True,
    }
    assert found["dataset"]["calibration"] == 24 and found["dataset"]["evaluation"] == 72
    assert found["before"]["top1"] == 1.0 and found["before"]["bytes"] == len(before)
    assert found["after"]["bytes"] == output.stat().st_size
    assert [found["passes"][k]["spec"] for k in (0, -1)] == ["fold", "quantize"]
    assert classifier.read_bytes() == before, "the input file was written"


def test_the_output_carries_its_origin_and_nothing_volatile(graphopt, classifier: Path, images: Path) -> None:
    done = graphopt("run", classifier, "--passes", "fold", "--data", images)
    assert done.returncode == 0, done.stderr
    written = onnx.load(classifier.with_suffix(".opt.onnx"))
    metadata = {p.key: p.value for p in written.metadata_props}
    assert set(metadata) == {"graphopt.version", "graphopt.pipeline", "graphopt.source_sha256"}
    assert metadata["graphopt.pipeline"] == "fold"
    assert metadata["graphopt.source_sha256"] == hashlib.sha256(classifier.read_bytes()).hexdigest()


def test_json_on_stdout_is_the_report(graphopt, classifier: Path, images: Path) -> None:
    done = graphopt("run", classifier, "--passes", "fold", "--data", images, "--format", "json", "-v")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed == json.loads(classifier.with_suffix(".opt.report.json").read_text())
    assert next(iter(printed)) == "schema"
    assert "pass fold" in done.stderr


def test_required_passes_are_inserted_and_shown(graphopt, classifier: Path, images: Path) -> None:
    done = graphopt("run", classifier, "--passes", "quantize", "--data", images, "--format", "json")
    assert json.loads(done.stdout)["pipeline"] == "simplify,quantize"


@pytest.mark.parametrize(
    ("gate", "code"),
    [
        (("--max-drop", "0"), 1),
        (("--max-drop", "100"), 0),
        (("--min-accuracy", "99"), 1),
        (("--min-accuracy", "0"), 0),
        (("--max-bytes", "10"), 1),
        (("--max-bytes", "1000000"), 0),
        (("--min-speedup", "1000"), 1),
        (("--min-speedup", "0.001"), 0),
    ],
)
def test_gates_decide_the_exit_code_and_the_output(
    graphopt, classifier: Path, images: Path, pass_file: Path, gate: tuple[str, str], code: int
) -> None:
    output = classifier.with_suffix(".opt.onnx")
    output.write_bytes(b"what was there before")
    done = graphopt("run", classifier, "--load-pass", pass_file, "--passes", "ruin{how=shift}", "--data", images, *gate)
    assert done.returncode == code, done.stderr
    assert (output.read_bytes() == b"what was there before") == (code == 1)
    found = json.loads(classifier.with_suffix(".opt.report.json").read_text())
    assert found["status"] == ("ok" if code == 0 else "gate-failed")
    assert found["output"]["written"] is (code == 0)
    (entry,) = found["gates"]
    assert entry["name"] == gate[0][2:] and entry["limit"] == float(gate[1]) and entry["passed"] is (code == 0)
    assert ("FAILED" in done.stdout) == (code == 1)
    assert not list(classifier.parent.glob(".*")), "a temporary file was left behind"


@pytest.mark.parametrize(
    ("how", "words"),
    [("crash", "the pass 'ruin' failed: KeyError"), ("refuse", "nothing to ruin"), ("nan", "NaN or infinity")],
)
def test_a_failing_pass_exits_3_with_a_report_and_no_output(
    graphopt, classifier: Path, images: Path, pass_file: Path, how: str, words: str
) -> None:
    output = classifier.with_suffix(".opt.onnx")
    done = graphopt(
        "run", classifier, "--load-pass", pass_file, "--passes", f"idle,ruin{{how={how}}}", "--data", images
    )
    assert done.returncode == 3
    assert words in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not output.exists()
    found = json.loads(classifier.with_suffix(".opt.report.json").read_text())
    assert found["status"] == "failed" and words in found["error"]["message"]
    assert found["passes"][0]["spec"] == "idle"
    assert (classifier.parent / "model.opt.crash").exists() == (how == "crash")


def test_the_reproducer_reproduces(graphopt, classifier: Path, images: Path, pass_file: Path) -> None:
    import shlex

    graphopt("run", classifier, "--load-pass", pass_file, "--passes", "idle,ruin{how=crash}", "--data", images)
    command = (classifier.parent / "model.opt.crash" / "command.sh").read_text()
    again = graphopt(*shlex.split(command)[1:])
    assert again.returncode == 3
    assert "the pass 'ruin' failed: KeyError" in again.stderr


def test_without_labels_agreement_takes_the_place_of_accuracy(
    graphopt, classifier: Path, images: Path, tmp_path: Path, pass_file: Path
) -> None:
    unlabelled = tmp_path / "x.npz"
    np.savez(unlabelled, x=np.load(images)["x"])
    arguments = (
        "run",
        classifier,
        "--load-pass",
        pass_file,
        "--data",
        unlabelled,
        "--max-drop",
        "1",
        "--format",
        "json",
    )
    same = graphopt(*arguments, "--passes", "idle")
    assert same.returncode == 0, same.stderr
    found = json.loads(same.stdout)
    assert found["before"]["top1"] is None and found["delta"]["agreement"] == 1.0
    assert found["dataset"]["labels"] is False and found["validated"] is True
    other = graphopt(*arguments, "--passes", "ruin{how=shift}")
    assert other.returncode == 1
    assert "no labels" in json.loads(other.stdout)["gates"][0]["note"]


def test_without_data_the_result_is_marked_not_validated(graphopt, classifier: Path) -> None:
    done = graphopt("run", classifier, "--passes", "quantize", "--calibration-images", "16")
    assert done.returncode == 0, done.stderr
    assert "synthetic" in done.stderr and "NOT VALIDATED" in done.stdout
    found = json.loads(classifier.with_suffix(".opt.report.json").read_text())
    assert found["validated"] is False and found["dataset"]["synthetic"] is True
    assert found["after"]["top1"] is None and found["delta"]["agreement"] is None


def test_no_eval_measures_nothing(graphopt, classifier: Path, images: Path) -> None:
    done = graphopt("run", classifier, "--passes", "fold", "--data", images, "--no-eval", "--format", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["validated"] is False
    assert found["before"]["latency_ms"] is None and found["before"]["top1"] is None
    assert found["dataset"]["calibration"] == 24


def test_pruning_without_data_works_on_synthetic_images_and_says_so(graphopt, classifier: Path) -> None:
    done = graphopt("run", classifier, "--passes", "prune{macs=0.8,multiple=4}")
    assert done.returncode == 0, done.stderr
    assert "refitted on synthetic ones" in " ".join(done.stderr.split()) and "NOT VALIDATED" in done.stdout
    found = json.loads(classifier.with_suffix(".opt.report.json").read_text())
    assert not found["validated"] and found["after"]["top1"] is None and found["dataset"]["synthetic"]
    metrics = found["passes"][-1]["metrics"]
    assert metrics["synthetic_calibration"] and metrics["macs_realised"] < 0.9 and metrics["refitted"] > 0


def test_separate_calibration_data(graphopt, classifier: Path, images: Path) -> None:
    done = graphopt(
        *("run", classifier, "--passes", "quantize", "--data", images, "--calibration-data", images),
        *("--calibration-images", "10", "--format", "json"),
    )
    found = json.loads(done.stdout)
    assert (found["dataset"]["calibration"], found["dataset"]["evaluation"]) == (10, 96)
    assert "10 images both calibrate and evaluate" in done.stderr


def test_the_models_toml_is_all_it_needs(graphopt, classifier: Path, images: Path) -> None:
    (classifier.parent / "data.npz").write_bytes(images.read_bytes())
    classifier.with_suffix(".toml").write_text(
        'passes = "fold"\n[data]\nevaluation = "data.npz"\n[preprocess]\npreset = "unit"\n[gates]\nmax_drop = 0.0\n'
    )
    done = graphopt("run", "model.onnx")
    assert done.returncode == 0, done.stderr
    assert "gate max-drop: 0 points, limit 0: holds" in done.stdout
    assert "no preprocessing was given" not in done.stderr


def test_dump_ir_and_verify_each(graphopt, classifier: Path, images: Path, tmp_path: Path) -> None:
    done = graphopt(
        *("run", classifier, "--passes", "simplify,quantize{place=smaller}", "--data", images),
        *("--dump-ir", tmp_path / "ir", "--verify-each", "-o", tmp_path / "out.onnx", "--report", tmp_path / "r.json"),
    )
    assert done.returncode == 0, done.stderr
    dumped = [p.stem for p in sorted((tmp_path / "ir").iterdir())]
    assert dumped[0].endswith("-fuse-affine") and dumped[-1].endswith("-quantize")
    assert (tmp_path / "out.onnx").exists() and (tmp_path / "r.json").exists()


def test_same_input_same_bytes_whatever_the_hash_seed(graphopt, classifier: Path, images: Path) -> None:
    hashes = set()
    for seed in ("0", "1", "4242"):
        done = graphopt(
            *("run", classifier, "--passes", "prune{macs=0.8},quantize", "--data", images, "-o", f"out{seed}.onnx"),
            PYTHONHASHSEED=seed,
        )
        assert done.returncode == 0, done.stderr
        hashes.add(hashlib.sha256((classifier.parent / f"out{seed}.onnx").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_quiet_says_nothing_but_the_result(graphopt, classifier: Path, images: Path) -> None:
    done = graphopt("run", classifier, "--passes", "fold", "--data", images, "-q")
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout, "colour codes in a pipe"


def test_the_input_shape_can_be_fixed(graphopt, classifier: Path, images: Path) -> None:
    for words in (("--batch", "2"), ("--input-shape", "input:2,3,12,12")):
        done = graphopt("run", classifier, "--passes", "simplify", "--data", images, "--format", "json", *words)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["notes"][0] == "the shape of input 'input' is fixed to [2, 3, 12, 12]"
        assert report["after"]["top1"] == report["before"]["top1"]
        written = onnx.load(classifier.with_suffix(".opt.onnx")).graph
        shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (written.input[0], written.output[0])]
        assert shapes == [[2, 3, 12, 12], [2, 4]]


def test_the_input_shape_in_toml(graphopt, classifier: Path, images: Path) -> None:
    classifier.with_suffix(".toml").write_text("batch = 2\n[input_shapes]\ninput = [2, 3, 12, 12]\n")
    done = graphopt("run", classifier, "--data", images)
    assert done.returncode == 0, done.stderr
    written = onnx.load(classifier.with_suffix(".opt.onnx")).graph
    assert written.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_a_shape_that_contradicts_the_model(graphopt, classifier: Path, images: Path) -> None:
    done = graphopt("run", classifier, "--data", images, "--input-shape", "input:1,3,13,12")
    assert done.returncode == 2 and "contradicts" in done.stderr and "Traceback" not in done.stderr
    assert not classifier.with_suffix(".opt.onnx").exists()


def test_the_same_latency_table_gives_the_same_bytes(graphopt, classifier: Path, images: Path, tmp_path: Path) -> None:
    table = tmp_path / "times.json"
    spec = "prune{latency=0.8,multiple=1,min_keep=0.1,importance=l2,recover=false}"
    words = ("run", classifier, "--passes", spec, "--data", images, "--latency-table", table, "--format", "json")
    hashes, measured = set(), []
    for number in range(2):
        done = graphopt(*words, "-o", f"out{number}.onnx")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["latency_table"]["sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
        measured.append(found["latency_table"]["measured"])
        hashes.add(found["output"]["sha256"])
    assert len(hashes) == 1 and measured[0] > 0 and measured[1] == 0
    assert json.loads(graphopt(*words[:2], "--passes", "fold", "--format", "json").stdout)["latency_table"] is None
    done = graphopt(*words[:6], "--latency-table", classifier)
    assert done.returncode == 2 and "no latency table" in done.stderr and "Traceback" not in done.stderr


def test_accuracy_is_measured_on_images_apart(graphopt, classifier: Path, images: Path) -> None:
    spec = "prune{max_drop=60,multiple=1,min_keep=0.1,importance=l2,recover=false}"
    done = graphopt("run", classifier, "--passes", spec, "--data", images, "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["dataset"]["calibration"], found["dataset"]["evaluation"], found["dataset"]["held_out"]) == (
        24,
        36,
        36,
    )
    metrics = found["passes"][-1]["metrics"]
    assert metrics["held_out_images"] == 36 and metrics["drop_points_upper95"] <= 60
    done = graphopt("run", classifier, "--passes", "prune{max_drop=1}")
    assert done.returncode == 3 and "max_drop needs images" in done.stderr and "Traceback" not in done.stderr
