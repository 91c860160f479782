"""What training wins back: top-1 of models pruned or quantized, before and after it, each by one command.

    python benchmarks/distill_accuracy.py --models MODELS --data DATA [--only NAME ...] [--minutes 10]
        [--options mixup=1] [--threads 2] [--folder OUT]

MODELS holds the ONNX files named in the cases, DATA their image folders. The images of cifar10/train train, without
their labels but for finetune; those of cifar10/test evaluate. A line with a bound says whether it holds. Speeds are
ratios to the float model, one thread, batch 1, both timed in turns. ``--only`` takes the names of groups.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.driver.config import Settings
from graphopt.driver.run import Options, optimize
from graphopt.progress import Silent


@dataclass(frozen=True)
class Case:
    """``passes`` with TRAIN for the options of the training pass; bounds in points of top-1 and as a speedup."""

    group: str
    model: str
    passes: str
    max_drop: float | None = None
    min_speedup: float | None = None


CASES = (
    Case("resnet56", "resnet56-cifar10", "prune{macs=0.5},distill{TRAIN}", 0.7),
    Case("resnet20", "resnet20-cifar10", "prune{macs=0.5},distill{TRAIN}", 2.0),
    Case("mbv3", "mbv3-cifar10", "prune{macs=0.6},distill{TRAIN}", 2.0),
    Case("seed-cnn", "seed-cnn-cifar10", "prune{macs=0.5},distill{TRAIN}", 0.0),
    Case("int8", "resnet56-cifar10", "prune{macs=0.5},distill{TRAIN},quantize", 1.3, 3.3),
    Case("int4", "resnet20-cifar10", "quantize{weights=int4}"),
    Case("int4", "resnet20-cifar10", "quantize{weights=int4},distill{TRAIN}", 0.7),
    Case("article", "seed-cnn-cifar10", "quantize"),
    Case("article", "seed-cnn-cifar10", "quantize,distill{TRAIN}"),
    Case("article", "seed-cnn-cifar10", "quantize,finetune{TRAIN}"),
    Case("article", "seed-cnn-cifar10", "prune{macs=0.5}"),
    Case("article", "seed-cnn-cifar10", "prune{macs=0.5},distill{TRAIN}"),
    Case("article", "seed-cnn-cifar10", "prune{macs=0.5},finetune{TRAIN}"),
    Case("article", "seed-cnn-cifar10", "prune{macs=0.5},finetune{TRAIN},quantize"),
)
_HEAD = ("model", "passes", "top-1 before", "after", "points", "MACs", "file", "speed", "steps", "epochs", "bound")


def run(case: Case, options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The cells of one line."""
    train = ",".join(filter(None, [f"minutes={options.minutes:g}", f"threads={options.threads}", options.options]))
    settings = Settings(
        passes=case.passes.replace("TRAIN", train),
        output=folder / f"{case.group}-{CASES.index(case)}.onnx",
        data=options.data / "cifar10/test",
        calibration_data=options.data / "cifar10/train",
        preprocess="unit" if case.model.startswith("seed") else "imagenet",
    )
    outcome = optimize(options.models / f"{case.model}.onnx", settings, Options(), Silent())
    if outcome.error is not None:
        raise outcome.error
    report: dict[str, Any] = outcome.report
    before, after, delta = report["before"], report["after"], report["delta"]
    trained = [p["metrics"] for p in report["passes"] if p["spec"].startswith(("distill", "finetune"))]
    yield case.model
    yield f"`{case.passes.replace('{TRAIN}', '')}`"
    yield f"{100 * before['top1']:.2f}"
    yield f"{100 * after['top1']:.2f}"
    yield f"{delta['top1_points']:+.2f}"
    yield f"{100 * delta['macs']:.0f} %" if delta["macs"] else "-"
    yield f"{100 * delta['bytes']:.0f} %"
    yield f"{delta['speedup']:.2f}x"
    yield ", ".join(str(m["steps"]) for m in trained) or "-"
    yield ", ".join(f"{m['epochs']:.1f}" for m in trained) or "-"
    yield _bound(case, delta)


def _bound(case: Case, delta: dict[str, Any]) -> str:
    if case.max_drop is None:
        return "-"
    good = -delta["top1_points"] <= case.max_drop + 1e-9
    text = f"-{case.max_drop:g}"
    if case.min_speedup is not None:
        good &= delta["speedup"] >= case.min_speedup
        text += f", {case.min_speedup:g}x"
    return f"{text} {'holds' if good else 'MISSED'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--options", default="", help="more options of the training pass, such as mixup=1,rate=0.001")
    parser.add_argument("--folder", type=Path, help="where the models and reports stay")
    options = parser.parse_args()
    print("| " + " | ".join(_HEAD) + " |\n|" + "---|" * len(_HEAD), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for case in CASES:
            if not options.only or case.group in options.only:
                print("| " + " | ".join(run(case, options, folder)) + " |", flush=True)


if __name__ == "__main__":
    main()
