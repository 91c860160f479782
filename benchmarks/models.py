"""One pipeline over a folder of models: accuracy, size, cost and speed, before and after.

    python benchmarks/models.py "prune{macs=0.7}" TABLE.csv [--images N] [--threads N]

TABLE.csv has a line for each model: ``model,data,calibration,preprocess`` (paths relative to the table; an empty
calibration takes the evaluation images). Each run is a process of its own. Prints a markdown table.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(row: dict[str, str], folder: Path, passes: str, extra: list[str], out: Path) -> dict[str, Any]:
    """The report of one run, or an error with its message."""
    model = folder / row["model"]
    command = [sys.executable, "-c", "from graphopt.cli import main; main()", "run", str(model), "-q"]
    command += ["--passes", passes, "--format", "json", "-o", str(out), "--preprocess", row["preprocess"]]
    command += ["--data", str(folder / row["data"])]
    command += ["--calibration-data", str(folder / (row["calibration"] or row["data"])), *extra]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[0] if done.stderr else f"exit {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def line(name: str, report: dict[str, Any]) -> str:
    if "error" in report:
        return f"| {name} | {report['error']} |"
    before, after, delta = report["before"], report["after"], report["delta"]
    low, high = delta["ci95"] or (float("nan"),) * 2
    seconds = sum(p["seconds"] for p in report["passes"])
    return (
        f"| {name} | {100 * before['top1']:.2f} | {100 * after['top1']:.2f} "
        f"| {delta['top1_points']:+.2f} [{low:+.2f}, {high:+.2f}] | {delta['macs']:.3f} | {delta['bytes']:.3f} "
        f"| {delta['speedup']:.2f}x | {seconds:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("passes")
    parser.add_argument("table", type=Path)
    parser.add_argument("--images", type=int, help="evaluate on this many images only")
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    extra = ["--threads", str(options.threads), "--calibration-images", str(options.calibration_images)]
    if options.images:
        extra += ["--images", str(options.images)]
    print("| model | top-1 before | after | points | MACs | bytes | speed | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    with options.table.open(newline="") as file, tempfile.TemporaryDirectory() as folder:
        for row in csv.DictReader(file):
            report = run(row, options.table.parent, options.passes, extra, Path(folder) / "out.onnx")
            print(line(Path(row["model"]).stem, report), flush=True)


if __name__ == "__main__":
    main()
