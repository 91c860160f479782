"""One tool that simplifies ONNX models, applied to files, in the environment that this is run in.

    ENV/bin/python simplify_tools.py TOOL --out DIR --results FILE [--repeat N] [--passes P] MODEL ...

Appends a line of JSON to FILE for each model: its name, the seconds of loading, simplifying and saving (the median of
N times, without imports), those of graphopt's equality check, or the error; and the seconds of processor time (the
least of the N times after the first, which still imports and checks). ``simplify_peers.py`` starts it again with
the models that are left when a tool takes the whole process down. It imports nothing of its own, so that one file
serves all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Loads, simplifies and saves; what it returns is added to the results.
Tool = Callable[[Path, Path], dict[str, Any]]
# After these many seconds for one model the process ends: nothing else stops native code.
PATIENCE = 300


def onnxsim(_: str) -> Tool:
    import onnx
    import onnxsim

    def run(source: Path, target: Path) -> dict[str, Any]:
        onnx.save(onnxsim.simplify(onnx.load(source))[0], target)
        return {}

    return run


def onnxslim(_: str) -> Tool:
    import onnx
    import onnxslim

    def run(source: Path, target: Path) -> dict[str, Any]:
        onnx.save(onnxslim.slim(onnx.load(source)), target)
        return {}

    return run


def onnxoptimizer(_: str) -> Tool:
    import onnx
    import onnxoptimizer

    def run(source: Path, target: Path) -> dict[str, Any]:
        passes = onnxoptimizer.get_fuse_and_elimination_passes()
        onnx.save(onnxoptimizer.optimize(onnx.load(source), passes, fixed_point=True), target)
        return {}

    return run


def onnxscript(_: str) -> Tool:
    import onnx
    import onnxscript.optimizer

    def run(source: Path, target: Path) -> dict[str, Any]:
        onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)
        return {}

    return run


def graphsurgeon(_: str) -> Tool:
    import onnx
    import onnx_graphsurgeon as gs

    def run(source: Path, target: Path) -> dict[str, Any]:
        graph = gs.import_onnx(onnx.load(source))
        onnx.save(gs.export_onnx(graph.fold_constants().cleanup()), target)
        return {}

    return run


def onnxruntime(_: str) -> Tool:
    import onnxruntime as ort

    def run(source: Path, target: Path) -> dict[str, Any]:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return {}

    return run


def graphopt(passes: str) -> Tool:
    from graphopt import Context, load, save
    from graphopt.data.preprocess import Preprocess
    from graphopt.data.synthetic import synthetic_batches
    from graphopt.driver.inputs import model_input
    from graphopt.errors import ModelError
    from graphopt.pipeline import Registry, exactness
    from graphopt.pipeline.manager import PassManager
    from graphopt.runtime.target import get_target

    check, spent, done = exactness.check, list[float](), set[Path]()

    def timed_check(*args: Any) -> dict[str, Any]:
        """The manager's check, once a model and with its time taken; none for what is no image classifier."""
        if args[-1].calibration is None or Path(args[0].source.path) in done:
            return {}
        began = time.perf_counter()
        try:
            return check(*args)
        finally:
            spent.append(time.perf_counter() - began)

    exactness.check = timed_check  # type: ignore[assignment]

    def run(source: Path, target: Path) -> dict[str, Any]:
        model = load(source)
        try:
            described = model_input(model)
            images = synthetic_batches(described, Preprocess.parse("unit"), 3, 0)
        except ModelError:
            images = None
        spent.clear()
        context = Context(get_target("ort-cpu"), images, model.copy())  # type: ignore[arg-type]
        PassManager(Registry().build(passes)).run(model, context)
        save(model, target)
        if images is None or source in done:
            return {}
        done.add(source)
        return {"check": sum(spent)}  # none where no pass changed anything

    return run


TOOLS = {f.__name__: f for f in (graphopt, onnxsim, onnxslim, onnxoptimizer, onnxscript, graphsurgeon, onnxruntime)}


def measure(tool: Tool, source: Path, target: Path, repeat: int) -> dict[str, Any]:
    """The results of one model: the median time, or the first error."""
    found: dict[str, Any] = {"model": source.name}
    times, spent = [], []
    signal.alarm(PATIENCE)
    try:
        for _ in range(repeat):
            began, before = time.perf_counter(), time.process_time()
            more = tool(source, target)
            spent.append(time.process_time() - before)
            times.append(time.perf_counter() - began - more.get("check", 0.0))
            found.update(more)
    except BaseException as error:  # some tools leave by SystemExit
        lines = str(error).strip().splitlines() or [""]
        return {**found, "error": f"{type(error).__name__}: {lines[0][:200]}"}
    finally:
        signal.alarm(0)
    return {**found, "seconds": statistics.median(times), "cpu": min(spent[1:] or spent)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--passes", default="simplify")
    options = parser.parse_args()
    # The names of tools are those of modules beside which this file must not stand.
    sys.path = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent.resolve()]
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        tool = TOOLS[options.tool](options.passes)
        for source in options.models:
            line = json.dumps(measure(tool, source, options.out / source.name, options.repeat))
            with options.results.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
