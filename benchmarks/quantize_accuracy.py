"""What each of quantize's accuracy tools and formats does alone and together, on real models and all test images.

    python benchmarks/quantize_accuracy.py --models MODELS --data DATA [--only NAME ...] [--rows NAME ...] [--images N]

Models, images and preprocessing are those of ``quantize_peers.py``. Drops are points of top-1 against the float model,
agreement is the percentage of images on which both predict the same, mnats the mean Kullback-Leibler divergence of the
predicted distributions in thousandths, dB the signal to noise ratio of the scores; file is the share of the float
file's bytes.
Placement is by estimate, so that nothing here depends on time but the seconds; ``default`` is the pass as it comes.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
from quantize_peers import CASES, Case, images

from graphopt import Context, load, save
from graphopt.data.loader import Batches
from graphopt.data.preprocess import Preprocess
from graphopt.data.synthetic import synthetic_batches
from graphopt.passes.prune.curves import divergence
from graphopt.passes.quantize.sensitivity import decibels
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.evaluate import as_scores
from graphopt.runtime.session import open_session, run_session, session_input
from graphopt.runtime.target import get_target

_PLAIN = "rounding=nearest,bias_correction=none"
# Name of the row, pipeline, how it is run.
ROWS = (
    ("default", "quantize", ""),
    ("no tool", f"quantize{{place=estimated,{_PLAIN}}}", ""),
    ("rounding=compensate", "quantize{place=estimated,rounding=compensate,bias_correction=none}", ""),
    ("bias_correction=fast", "quantize{place=estimated,rounding=nearest,bias_correction=fast}", ""),
    ("bias_correction=full", "quantize{place=estimated,rounding=nearest,bias_correction=full}", ""),
    ("equalize", f"quantize{{place=estimated,equalize=true,{_PLAIN}}}", ""),
    ("rounding=reconstruct", "quantize{place=estimated,rounding=reconstruct,bias_correction=none}", ""),
    ("all tools", "quantize{place=estimated,equalize=true,rounding=reconstruct,bias_correction=full}", ""),
    ("int4, no tool", f"quantize{{place=estimated,weights=int4,{_PLAIN}}}", ""),
    ("int4, full bias correction", "quantize{place=estimated,weights=int4,rounding=nearest,bias_correction=full}", ""),
    ("int4", "quantize{place=estimated,weights=int4}", ""),
    ("int4, equalize", "quantize{place=estimated,weights=int4,equalize=true}", ""),
    ("int4, float activations", "quantize{weights=int4,activations=float}", ""),
    ("int8, float activations", "quantize{activations=float}", ""),
    ("no images", "quantize{place=estimated}", "synthetic"),
    ("without VNNI", "quantize{place=estimated}", "reduced"),
    ("prune 0.6, quantize", "prune{macs=0.6},quantize", ""),
)


def scores(path: Path, evaluation: Batches) -> np.ndarray:
    """What a model gives for each image [images, classes]."""
    session = open_session(path)
    return np.concatenate([as_scores(run_session(session, x)[0], path.name) for x in evaluation.batches(64)])


def row(case: Case, spec: str, how: str, before: np.ndarray, evaluation: Batches, options: argparse.Namespace) -> str:
    source, target = options.models / case.model, get_target("ort-cpu")
    if how == "reduced":
        target = dataclasses.replace(target, reduce_range=True)
    if how == "synthetic":
        entry = session_input(open_session(source))
        calibration = synthetic_batches(entry, Preprocess.parse(case.preprocess), options.calibration)
    else:
        calibration = images(case, options.models, options.data, "calibration", options.calibration)
    model = load(source)
    context = Context(target, calibration, model.copy())
    start = time.perf_counter()
    PassManager(Registry().build(spec)).run(model, context)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        save(model, path)
        after = scores(path, evaluation)
        share = path.stat().st_size / source.stat().st_size
    was, now, labels = before.argmax(axis=1), after.argmax(axis=1), np.asarray(evaluation.labels)
    drop = 100 * ((was == labels).mean() - (now == labels).mean())
    agreement, apart = 100 * (was == now).mean(), 1000 * divergence(before, after)
    cells = (f"{drop:+.2f}", f"{agreement:.2f}", f"{apart:.2f}", f"{decibels(before, after):.1f}", f"{share:.3f}")
    return " | ".join((*cells, f"{seconds:.1f}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=None, help="parts of model names")
    parser.add_argument("--rows", nargs="*", default=None, help="names of rows")
    parser.add_argument("--calibration", type=int, default=512, help="calibration images")
    parser.add_argument("--images", type=int, default=None, help="images of the accuracy (default: all)")
    options = parser.parse_args()
    print("| model | tools | drop | agreement | mnats | dB | file | s |\n|---|---|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        if options.only is not None and not any(part in case.model for part in options.only):
            continue
        evaluation = images(case, options.models, options.data, "evaluation", options.images)
        before = scores(options.models / case.model, evaluation)
        for name, spec, how in ROWS:
            if options.rows is None or name in options.rows:
                cells = row(case, spec, how, before, evaluation, options)
                print(f"| {case.model.removesuffix('.onnx')} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
