"""What can be pruned of torchvision's classifiers: all channels at one ratio, beside other structured pruners.

    python benchmarks/export_torchvision.py --out MODELS --all --side 224 --exporter script   (where torch is installed)
    python benchmarks/prune_coverage.py --models MODELS --out DIR [--ratio 0.3] [--only NAME ...]
        [--peer onnxsim=PYTHON] [--peer torch-pruning=PYTHON]

Each model is pruned by each tool in a process of its own, PYTHON being an interpreter that has the tool. MACs and
parameters are counted alike for all, on the file that comes out; a file counts as valid if onnx.checker takes it and
ONNX Runtime runs it on batches of 1 and 3, with its optimizations and without. For graphopt, the pruned model must
also equal the original with the removed channels masked to zero: the largest difference relative to the largest
output is given. Prints a Markdown table; DIR/results.json holds the rest, such as times, what stays and why. A model
that is in there already is not pruned again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt import Context, load
from graphopt.analysis.cost import cost
from graphopt.driver.config import Settings
from graphopt.driver.inputs import prepare
from graphopt.errors import GraphoptError
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.feeds import random_feeds
from graphopt.runtime.session import open_session, run_feeds
from graphopt.runtime.target import get_target

OURS = "graphopt"
_PATIENCE = 1200  # seconds for one model
Found = dict[str, Any]


def pruned(tool: str, python: str, source: Path, target: Path, ratio: float) -> Found:
    """Run a tool on a model: what it says, or its error."""
    script = Path(__file__).with_name("prune_tools.py")
    command = [python, str(script), tool, str(source), str(target), "--ratio", str(ratio)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {_PATIENCE} s"}
    lines = done.stdout.splitlines()
    if not lines:
        tail = (done.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"the process ended with {done.returncode}: {tail}"}
    found: Found = json.loads(lines[-1])
    return found


def counted(path: Path) -> tuple[int, int]:
    """MACs and parameters of a file, with its constants folded: sizes that are computed at run time count too."""
    model = load(path)
    images = prepare(model, Settings(calibration_images=1)).calibration
    PassManager(Registry().build("fold")).run(model, Context(get_target("ort-cpu"), images, model.copy()))
    whole = cost(model)
    return whole.macs, whole.params


def judged(before: tuple[int, int], target: Path) -> Found:
    """Whether a pruned file is valid, and what part of MACs and parameters is gone."""
    try:
        onnx.checker.check_model(str(target))
        for optimize in (False, True):
            session = open_session(target, optimize=optimize)
            for feed in random_feeds(target, (1, 3)):
                if not all(np.isfinite(values).all() for values in run_feeds(session, feed)):
                    return {"invalid": "its outputs are not finite"}
        after = counted(target)
    except (GraphoptError, onnx.checker.ValidationError) as error:
        return {"invalid": (str(error).splitlines() or [""])[0]}
    return {"macs": 1 - after[0] / before[0], "params": 1 - after[1] / before[1]}


def measured(tools: dict[str, str], source: Path, out: Path, ratio: float) -> dict[str, Found]:
    """What each tool makes of one model."""
    whole = counted(source)
    results = {}
    for tool, python in tools.items():
        target = out / f"{tool}.onnx"
        target.unlink(missing_ok=True)
        found = pruned(tool, python, source, target, ratio)
        if "error" not in found:
            found |= judged(whole, target)
        target.unlink(missing_ok=True)
        results[tool] = found
    return results


def cell(found: Found) -> str:
    """MACs removed, or why there is no such figure, in few words."""
    if "error" in found:
        return "error: " + short(found["error"])
    if "invalid" in found:
        return "invalid: " + short(found["invalid"])
    return f"{100 * found['macs']:.1f} %"


def short(text: str, most: int = 60) -> str:
    text = text.replace("|", "/")
    return text if len(text) <= most else text[: most - 1] + "…"


def table(results: dict[str, dict[str, Found]], tools: dict[str, str]) -> None:
    peers = [t for t in tools if t != OURS]
    print("| model | " + " | ".join(["MACs removed", "parameters removed", "proof", *peers]) + " |")
    print("| --- |" + " ---: |" * 3 + " --- |" * len(peers))
    for name, row in results.items():
        ours = row[OURS]
        figures = [cell(ours), "", ""]
        if "macs" in ours:
            figures[1:] = [f"{100 * ours['params']:.1f} %", f"{ours['proof']:.0e}"]
        print(f"| {name} | " + " | ".join([*figures, *(cell(row[p]) if p in row else "" for p in peers)]) + " |")
    for tool in tools:
        rows = [row[tool] for row in results.values() if tool in row]
        good = [r["macs"] for r in rows if "macs" in r]
        mean = f"{100 * sum(good) / len(good):.1f} % of MACs removed on average" if good else "nothing removed"
        print(f"\n{tool}: {len(good)} of {len(rows)} valid, {mean}", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="beginnings of file names")
    parser.add_argument("--peer", action="append", default=[], metavar="TOOL=PYTHON")
    options = parser.parse_args()
    tools = {OURS: sys.executable, **dict(p.split("=", 1) for p in options.peer)}
    options.out.mkdir(parents=True, exist_ok=True)
    book = options.out / "results.json"
    results = json.loads(book.read_text()) if book.exists() else {}
    wanted = [
        p for p in sorted(options.models.glob("*.onnx")) if not options.only or p.name.startswith(tuple(options.only))
    ]
    for source in wanted:
        row = results.setdefault(source.stem, {})
        left = {tool: python for tool, python in tools.items() if tool not in row}
        if left:
            row |= measured(left, source, options.out, options.ratio)
            book.write_text(json.dumps(results, indent=1))
            print(source.stem, *(f"{tool}: {cell(row[tool])}" for tool in left), sep="; ", file=sys.stderr, flush=True)
    table({p.stem: results[p.stem] for p in wanted}, tools)


if __name__ == "__main__":
    main()
