"""graphopt's quantize beside other quantizers, each in its own environment: accuracy and speed in ONNX Runtime.

    python benchmarks/quantize_field.py --models MODELS --data DATA --nncf ENV --aimet ENV --openvino ENV [--only NAME]

ENV is a virtual environment with the tool of that name (``pip install nncf``, ``aimet-onnx``, ``openvino``); a tool
without one is left out. All get the same model and the same preprocessed images. Prints a Markdown table: top-1 of
the written files, and their speed as a factor of the float model's, interleaved in one process, one thread, batch 1.
With OpenVINO, a model made for it (``--target openvino``) is evaluated there, too, on a part of the images.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from quantize_peers import CASES, Case, images

from graphopt import Context, load, save
from graphopt.data.loader import Batches
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.latency import measure, speedup
from graphopt.runtime.target import get_target

TOOLS = Path(__file__).with_name("quantize_tools.py")
ELSEWHERE = 500  # images that OpenVINO is asked about


def ours(source: Path, target: Path, batches: Batches, name: str) -> None:
    model = load(source)
    PassManager(Registry().build("quantize")).run(model, Context(get_target(name), batches, model.copy()))
    save(model, target)


def run(python: str, tool: str, source: Path, target: Path, data: Path) -> dict[str, object]:
    command = [python, str(TOOLS), tool, str(source), str(target), "--images", str(data)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
    return json.loads(lines[-1])


def row(case: Case, options: argparse.Namespace, tools: dict[str, str], folder: Path) -> list[list[str]]:
    source = options.models / case.model
    batches = images(case, options.models, options.data, "calibration", options.images)
    test = images(case, options.models, options.data, "evaluation", options.evaluation_images)
    data = folder / "images.npy"
    np.save(data, np.concatenate(list(batches.batches(32))))
    files: dict[str, Path] = {"float": source, "graphopt": folder / "graphopt.onnx"}
    errors: dict[str, str] = {}
    ours(source, files["graphopt"], batches, "ort-cpu")
    for tool, python in tools.items():
        target = folder / f"{tool}.onnx"
        found = run(python, tool, source, target, data)
        if "error" in found:
            errors[tool] = str(found["error"])
        else:
            files[f"{tool} {found['version']}"] = target
    top1 = {name: 100 * (evaluate(file, test).top1 or 0.0) for name, file in files.items()}
    times = measure(list(files.values()), seconds=options.seconds)
    model = case.model.removesuffix(".onnx")
    lines = [
        [model, name, f"{top1[name]:.2f}", f"{speedup(times[0], time):.2f}x", f"{file.stat().st_size / 1e6:.2f} MB"]
        for (name, file), time in zip(files.items(), times, strict=True)
    ]
    lines += [[model, tool, error, "", ""] for tool, error in errors.items()]
    if options.openvino is not None:
        lines.append(elsewhere(case, options, source, batches, folder))
    return lines


def elsewhere(case: Case, options: argparse.Namespace, source: Path, batches: Batches, folder: Path) -> list[str]:
    """Accuracy in OpenVINO, of the float model and of what is made for it."""
    test = images(case, options.models, options.data, "evaluation", ELSEWHERE)
    data, target, labels = folder / "test.npy", folder / "openvino.onnx", test.labels
    np.save(data, np.concatenate(list(test.batches(32))))
    ours(source, target, batches, "openvino")
    said = []
    for file in (source, target):
        found = run(str(options.openvino / "bin" / "python"), "openvino-run", file, folder / "classes.npy", data)
        if "error" in found:
            return [case.model.removesuffix(".onnx"), "in OpenVINO", str(found["error"]), "", ""]
        said.append(100 * float(np.mean(np.load(folder / "classes.npy") == labels)))
    text = f"{said[1]:.2f} (float there {said[0]:.2f}, {len(test)} images)"
    size = f"{target.stat().st_size / 1e6:.2f} MB"
    return [case.model.removesuffix(".onnx"), f"graphopt in OpenVINO {found['version']}", text, "", size]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nncf", type=Path, help="environment with nncf")
    parser.add_argument("--aimet", type=Path, help="environment with aimet-onnx")
    parser.add_argument("--openvino", type=Path, help="environment with openvino")
    parser.add_argument("--only", nargs="*", default=None, help="parts of model names")
    parser.add_argument("--images", type=int, default=256, help="calibration images")
    parser.add_argument("--evaluation-images", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=3.0, help="timing of each model")
    options = parser.parse_args()
    tools = {"onnxruntime": sys.executable}
    tools |= {n: str(e / "bin" / "python") for n in ("nncf", "aimet") if (e := getattr(options, n)) is not None}
    print("| model | quantizer | top-1 | speed | file |\n|---|---|---|---|---|", flush=True)
    for case in CASES:
        if options.only is None or any(part in case.model for part in options.only):
            with tempfile.TemporaryDirectory() as folder:
                for cells in row(case, options, tools, Path(folder)):
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
