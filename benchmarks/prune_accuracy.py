"""What pruning costs: top-1 of each model at fractions of its multiply-accumulates, by criterion.

    python benchmarks/prune_accuracy.py --models MODELS --data DATA [--only NAME ...] [--macs 0.7,0.5]
        [--options multiple=1] [--importance reconstruction,l2] [--images 1024]

MODELS holds the ONNX files named in the cases of ``quantize_peers.py``, DATA their image folders. Calibration images
are drawn from those of training where there are such, and their labels are not used; there is no training.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from quantize_peers import CASES, Case, images

from graphopt import Context, load
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.target import get_target


def row(case: Case, models: Path, data: Path, spec: str, count: int) -> str:
    """One line of the table: the model pruned as ``spec`` says."""
    calibration, test = (
        images(case, models, data, "calibration", count),
        images(case, models, data, "evaluation", None),
    )
    model = load(models / case.model)
    before = evaluate(models / case.model, test, threads=2).top1
    manager = PassManager(Registry().build(spec))
    began = time.perf_counter()
    manager.run(model, Context(get_target("ort-cpu"), calibration, model.copy()))
    seconds = time.perf_counter() - began
    after = evaluate(model.to_bytes(), test, threads=2).top1
    assert before is not None and after is not None  # the folders are labelled
    macs = manager.records[-1].metrics["macs_realised"]
    name = case.model.removesuffix(".onnx")
    return f"| {name} | `{spec}` | {macs:.3f} | {100 * before:.2f} | {100 * after:.2f} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--macs", default="0.7,0.5")
    parser.add_argument("--options", default="")
    parser.add_argument("--importance", default="reconstruction,l2")
    parser.add_argument("--images", type=int, default=1024)
    args = parser.parse_args()
    print("| model | passes | MACs | top-1 before | top-1 after | s |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for case in CASES:
        if case.model.startswith("vit") or (args.only and not case.model.startswith(tuple(args.only))):
            continue
        for macs in args.macs.split(","):
            for criterion in args.importance.split(","):
                options = ",".join(filter(None, [f"macs={macs}", f"importance={criterion}", args.options]))
                print(row(case, args.models, args.data, f"prune{{{options}}}", args.images), flush=True)


if __name__ == "__main__":
    main()
