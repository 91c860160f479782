"""What pruning costs: top-1 of each model at fractions of its multiply-accumulates, by criterion.

    python benchmarks/prune_accuracy.py --models MODELS --data DATA [--only NAME ...] [--macs 0.7,0.5]
        [--options multiple=1] [--importance reconstruction,l2] [--images 1024] [--synthetic]

MODELS holds the ONNX files named in the cases of ``quantize_peers.py``, DATA their image folders. Calibration images
are drawn from those of training where there are such, and their labels are not used; there is no training. With
--synthetic, they are made up instead, as where no images are given.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from quantize_peers import CASES, Case, images

from graphopt import Context, load
from graphopt.data.loader import Batches
from graphopt.data.synthetic import synthetic_batches
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.session import ModelSource
from graphopt.runtime.target import get_target


def pruned(case: Case, models: Path, calibration: Batches, spec: str, test: Batches) -> str:
    """The cells of one line: the model pruned as ``spec`` says, its MACs, top-1, and the seconds it took."""
    model = load(models / case.model)
    manager = PassManager(Registry().build(spec))
    began = time.perf_counter()
    manager.run(model, Context(get_target("ort-cpu"), calibration, model.copy()))
    seconds = time.perf_counter() - began
    macs = manager.records[-1].metrics["macs_realised"]
    return f"`{spec}` | {macs:.3f} | {percent(model.to_bytes(), test)} | {seconds:.0f}"


def percent(model: ModelSource, test: Batches) -> str:
    top1 = evaluate(model, test, threads=2).top1
    assert top1 is not None  # the folders are labelled
    return f"{100 * top1:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--macs", default="0.7,0.5")
    parser.add_argument("--options", default="")
    parser.add_argument("--importance", default="reconstruction,l2")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--synthetic", action="store_true")
    args = parser.parse_args()
    print("| model | before | passes | MACs | top-1 | s |\n| --- | ---: | --- | ---: | ---: | ---: |")
    for case in CASES:
        if case.model.startswith("vit") or (args.only and not case.model.startswith(tuple(args.only))):
            continue
        test = images(case, args.models, args.data, "evaluation", None)
        calibration = images(case, args.models, args.data, "calibration", args.images)
        if args.synthetic:
            calibration = synthetic_batches(calibration.input, calibration.preprocess, args.images)
        before = percent(args.models / case.model, test)
        for macs in args.macs.split(","):
            for criterion in args.importance.split(","):
                options = ",".join(filter(None, [f"macs={macs}", f"importance={criterion}", args.options]))
                cells = pruned(case, args.models, calibration, f"prune{{{options}}}", test)
                print(f"| {case.model.removesuffix('.onnx')} | {before} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
