"""Whatever is wrong with what the user gave: one clear message, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

Case = Callable[[Path, Path, Path], "list[object]"]
CASES: dict[str, tuple[Case, str]] = {}


def case(message: str) -> Callable[[Case], Case]:
    """Register a case: a function of (folder, good model, good images) that returns arguments of ``run``."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = (function, message)
        return function

    return register


def change(model: Path, edit: Callable[[onnx.ModelProto], None]) -> list[object]:
    proto = onnx.load(model)
    edit(proto)
    model.write_bytes(proto.SerializeToString())
    return [model, "--passes", "fold"]


@case("truncated")
def truncated_file(folder: Path, model: Path, images: Path) -> list[object]:
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    return [model, "--passes", "fold"]


@case("not a")
def not_onnx(folder: Path, model: Path, images: Path) -> list[object]:
    model.write_text("This is a text file.\n" * 10)
    return [model, "--passes", "fold"]


@case("empty")
def empty_file(folder: Path, model: Path, images: Path) -> list[object]:
    model.write_bytes(b"")
    return [model, "--passes", "fold"]


@case("no such file")
def missing_file(folder: Path, model: Path, images: Path) -> list[object]:
    return [folder / "none.onnx", "--passes", "fold", "-o", model.with_suffix(".opt.onnx")]


@case("is a folder")
def model_is_a_folder(folder: Path, model: Path, images: Path) -> list[object]:
    (folder / "d.onnx").mkdir()
    return [folder / "d.onnx", "--passes", "fold", "-o", model.with_suffix(".opt.onnx")]


@case("holds no images")
def empty_folder(folder: Path, model: Path, images: Path) -> list[object]:
    (folder / "none").mkdir()
    return [model, "--passes", "fold", "--data", folder / "none"]


@case("broken.jpg")
def corrupt_jpeg(folder: Path, model: Path, images: Path) -> list[object]:
    for name in ("a", "b"):
        (folder / "data" / name).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(np.full((12, 12, 3), 40 * k, np.uint8)).save(folder / "data" / name / f"{k}.png")
    (folder / "data" / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no JPEG")
    return [model, "--passes", "fold", "--data", folder / "data"]


@case("has 3 dimensions")
def wrong_shape(folder: Path, model: Path, images: Path) -> list[object]:
    def edit(proto: onnx.ModelProto) -> None:
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 8])],
        )
        proto.graph.CopyFrom(graph)

    return change(model, edit)


@case("outside the model's 4 classes")
def labels_out_of_range(folder: Path, model: Path, images: Path) -> list[object]:
    x = np.load(images)["x"]
    np.savez(folder / "bad.npz", x=x, y=np.full(len(x), 9))
    return [model, "--passes", "fold", "--data", folder / "bad.npz"]


@case("did you mean 'prune'")
def unknown_pass(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "prunne"]


@case("did you mean 'macs'")
def unknown_option(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "prune{mac=0.5}"]


@case("from 0.05 to 1")
def option_out_of_range(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "prune{macs=7}"]


@case("expected")
def malformed_spec(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "prune{macs=0.5"]


@case("outside the model's folder")
def external_data_outside(folder: Path, model: Path, images: Path) -> list[object]:
    (folder / "secret.bin").write_bytes(bytes(4096))
    inner = folder / "inner"
    inner.mkdir()

    def edit(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret.bin")

    change(model, edit)
    moved = model.rename(inner / "model.onnx")
    return [moved, "--passes", "fold", "-o", folder / "model.opt.onnx"]


@case("does not exist")
def output_folder_missing(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "fold", "-o", folder / "none" / "out.onnx"]


@case("is a folder")
def output_is_a_folder(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "fold", "-o", folder]


@case("cannot write")
def output_not_writable(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "fold", "-o", "/proc/out.onnx"]  # refused to root as well


@case("overwrite the input")
def output_is_the_input(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "fold", "-o", model]


@case("opset 99")
def unsupported_opset(folder: Path, model: Path, images: Path) -> list[object]:
    def edit(proto: onnx.ModelProto) -> None:
        proto.opset_import[0].version = 99

    return change(model, edit)


@case("cycle")
def cyclic_graph(folder: Path, model: Path, images: Path) -> list[object]:
    def edit(proto: onnx.ModelProto) -> None:
        next(n for n in proto.graph.node if n.name == "relu2").input[0] = "a3"

    return change(model, edit)


@case("conv2")
def duplicate_names(folder: Path, model: Path, images: Path) -> list[object]:
    def edit(proto: onnx.ModelProto) -> None:
        next(n for n in proto.graph.node if n.name == "relu2").name = "conv2"

    return change(model, edit)


@case("c2")
def tensor_written_twice(folder: Path, model: Path, images: Path) -> list[object]:
    def edit(proto: onnx.ModelProto) -> None:
        next(n for n in proto.graph.node if n.name == "conv3").output[0] = "c2"

    return change(model, edit)


@case("has 2 inputs")
def two_inputs(folder: Path, model: Path, images: Path) -> list[object]:
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 3, 12, 12]))
        node = next(n for n in proto.graph.node if n.name == "conv1")
        node.input[0] = "masked"
        proto.graph.node.insert(0, helper.make_node("Mul", ["input", "mask"], ["masked"], name="mul"))

    return change(model, edit)


@case("no preset")
def unknown_preset(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "fold", "--data", images, "--preprocess", "imagnet"]


@case("no dataset")
def missing_data(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "fold", "--data", folder / "none.npz"]


@case("cannot be checked without images")
def gate_without_images(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "fold", "--max-drop", "1"]


@case("did you mean 'ort-cpu'")
def unknown_target(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--passes", "fold", "--target", "ort-cup"]


@case("defines no pass")
def pass_file_without_a_pass(folder: Path, model: Path, images: Path) -> list[object]:
    (folder / "p.py").write_text("x = 1\n")
    return [model, "--passes", "fold", "--load-pass", folder / "p.py"]


@case("unknown key 'pases'")
def unknown_key_in_the_toml(folder: Path, model: Path, images: Path) -> list[object]:
    model.with_suffix(".toml").write_text('pases = "fold"\n')
    return [model]


@case("imagenet")
def unknown_option_of_the_command(folder: Path, model: Path, images: Path) -> list[object]:
    return [model, "--preproces", "imagenet"]


CASES["unknown_preset"] = (CASES["unknown_preset"][0], "did you mean 'imagenet'")
CASES["unknown_option_of_the_command"] = (CASES["unknown_option_of_the_command"][0], "--preprocess")


@pytest.mark.parametrize("name", sorted(CASES))
def test_one_clear_message_and_nothing_written(
    graphopt, classifier: Path, images: Path, tmp_path: Path, name: str
) -> None:
    function, message = CASES[name]
    output = tmp_path / "model.opt.onnx"
    output.write_bytes(b"what was there before")
    arguments = function(tmp_path, classifier, images)
    before = set(tmp_path.rglob("*"))
    done = graphopt("run", *arguments)
    assert done.returncode == 2, done.stderr + done.stdout
    assert done.stderr.startswith("graphopt: error: ") or "graphopt: error: " in done.stderr
    assert done.stderr.count("graphopt: error: ") == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert output.read_bytes() == b"what was there before"
    assert set(tmp_path.rglob("*")) == before, "something was left behind"


def test_disk_full(graphopt, classifier: Path, tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: the same write fails in the same place."""
    import resource
    import subprocess
    import sys

    output = tmp_path / "model.opt.onnx"
    output.write_bytes(b"what was there before")

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [sys.executable, "-B", "-c", "from graphopt.cli import main; main()", "run", classifier, "--passes", "fold"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        preexec_fn=limit,
        env=os.environ,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("graphopt: error: ") == 1 and "cannot write" in done.stderr
    assert output.read_bytes() == b"what was there before"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("command", ["eval", "inspect", "bench", "compare"])
def test_other_commands_refuse_a_bad_model_alike(graphopt, tmp_path: Path, command: str) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nonsense")
    done = graphopt(command, bad, *([bad] if command == "compare" else []))
    assert done.returncode == 2
    assert done.stderr.count("graphopt: error: ") == 1 and "Traceback" not in done.stderr


def test_an_unknown_command(graphopt) -> None:
    done = graphopt("rnu")
    assert done.returncode == 2 and "did you mean 'run'" in done.stderr
