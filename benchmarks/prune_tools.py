"""One tool that removes channels, applied to one model, in the environment that this is run in.

    ENV/bin/python prune_tools.py TOOL SOURCE TARGET --ratio R

SOURCE is an ONNX file of ``export_torchvision.py``; torch-pruning builds the same network anew, prunes that, and
exports it. Prints a line of JSON: seconds of pruning, and what the tool says of itself, or its error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def graphopt(source: Path, target: Path, ratio: float) -> Found:
    """Every family of channels loses the same part, by the energy of weights; the proof is part of the time."""
    from graphopt import Context, load, save
    from graphopt.driver.config import Settings
    from graphopt.driver.inputs import prepare
    from graphopt.pipeline import Registry
    from graphopt.pipeline.manager import PassManager
    from graphopt.runtime.target import get_target

    model = load(source)
    manager = PassManager(
        Registry().build(
            f"simplify,prune{{ratio={ratio},importance=l2,multiple=1,min_keep=0,norms=true,recover=false}}"
        )
    )
    images = prepare(model, Settings(calibration_images=4)).calibration
    manager.run(model, Context(get_target("ort-cpu"), images, model.copy()))
    record = manager.records[-1]
    save(model, target)
    failed = [s for s in record.skipped if "not exact" in s.reason]
    return {
        "seconds": record.seconds,
        "proof": record.metrics["proof_max_rel_error"],
        "failed": [f"{s.node}: {s.reason}" for s in failed],
        "locked": Counter(f"{s.op}: {s.reason.rpartition('; ')[2]}" for s in record.skipped).most_common(),
    }


def onnxsim(source: Path, target: Path, ratio: float) -> Found:
    import onnx
    import onnxsim as tool

    simple, _ = tool.simplify(onnx.load(source))
    began = time.perf_counter()
    pruned = tool.apply_structured_pruning_cpp(simple, sparsity=ratio)
    seconds = time.perf_counter() - began
    onnx.save(pruned, target)
    return {"seconds": seconds}


def torch_pruning(source: Path, target: Path, ratio: float) -> Found:
    """As its documentation has it for classifiers: group norms of order 2, the last layer left alone."""
    import torch
    import torch_pruning as tool
    from export_torchvision import build, export

    name, exporter = source.name.split(".")[:2]
    side = side_of(source)
    model = build(name)
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)}
    last = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 1000]
    began = time.perf_counter()
    pruner = tool.pruner.BasePruner(
        model,
        torch.randn(1, 3, side, side),
        importance=tool.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=last,
        num_heads=heads,
    )
    pruner.step()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        model(torch.randn(2, 3, side, side))
    export(model, side, exporter, target)
    return {"seconds": seconds}


def side_of(source: Path) -> int:
    import onnx

    shape = onnx.load(source, load_external_data=False).graph.input[0].type.tensor_type.shape
    return int(shape.dim[3].dim_value)


TOOLS: dict[str, Callable[[Path, Path, float], Found]] = {
    "graphopt": graphopt,
    "onnxsim": onnxsim,
    "torch-pruning": torch_pruning,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--ratio", type=float, default=0.3)
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # tools talk
        try:
            found = TOOLS[options.tool](options.source, options.target, options.ratio)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
