"""graphopt's quantize against ONNX Runtime's quantize_static: accuracy, speed, calibration time and memory.

    python benchmarks/quantize_peers.py --models MODELS --data DATA [--only NAME ...] [--markdown]

MODELS holds the ONNX files named in CASES, DATA their image folders. The peer quantizes what ``quant_pre_process``
makes of the model, with uint8 activations, int8 weights per channel and MinMax calibration, on the same images.
Both quantize in a process of their own, whose peak memory is shown. Speeds are ratios to the float model under ONNX
Runtime's full optimization: medians of interleaved runs in one process, batch 1, one thread.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphopt import Context, load, save
from graphopt.data.loader import Batches
from graphopt.data.preprocess import Preprocess
from graphopt.data.sources import open_dataset
from graphopt.data.split import choose
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.evaluate import evaluate
from graphopt.runtime.latency import measure, speedup
from graphopt.runtime.session import open_session, session_input
from graphopt.runtime.target import get_target


@dataclass(frozen=True)
class Case:
    model: str
    preprocess: str
    calibration: str
    evaluation: str


CASES = (
    Case("resnet20-cifar10.onnx", "imagenet", "cifar10/train", "cifar10/test"),
    Case("resnet56-cifar10.onnx", "imagenet", "cifar10/train", "cifar10/test"),
    Case("mbv3-cifar10.onnx", "imagenet", "cifar10/train", "cifar10/test"),
    Case("vit-cifar10.onnx", "imagenet", "cifar10/train", "cifar10/test"),
    Case("seed-cnn-cifar10.onnx", "unit", "cifar10/train", "cifar10/test"),
    Case("efficientnet-lite0.onnx", "efficientnet-lite", "imagenet-sample", "imagenet-sample"),
)


HEADER = tuple(
    "model/top-1 float/top-1 peer/top-1 ours/speed peer/speed ours/ours to peer/s peer/s ours/MB peer/MB ours".split(
        "/"
    )
)


def images(case: Case, models: Path, data: Path, part: str, count: int | None) -> Batches:
    dataset = open_dataset(data / getattr(case, part))
    indices = None if count is None else choose(len(dataset), count)
    entry = session_input(open_session(models / case.model))
    return Batches(dataset, indices, Preprocess.parse(case.preprocess), entry)


def ours(case: Case, models: Path, data: Path, count: int, passes: str, out: Path) -> None:
    batches = images(case, models, data, "calibration", count)
    model = load(models / case.model)
    context = Context(get_target("ort-cpu"), batches, model.copy())
    PassManager(Registry().build(passes)).run(model, context)
    save(model, out)


def peer(case: Case, models: Path, data: Path, count: int, passes: str, out: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batches = images(case, models, data, "calibration", count)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = batches.batches(1)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {batches.input.name: batch}

    prepared = out.with_suffix(".pre.onnx")
    # Its symbolic shape inference needs one more package, and changes nothing for models of known shapes.
    quant_pre_process(str(models / case.model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def timed(queue: multiprocessing.Queue, work: Callable[..., None], *args: object) -> None:
    start = time.perf_counter()
    work(*args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((time.perf_counter() - start, peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)))


def apart(work: Callable[..., None], *args: object) -> tuple[float, float]:
    """Run ``work`` in a fresh process; seconds and peak megabytes."""
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    process = spawn.Process(target=timed, args=(queue, work, *args))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} failed")
    seconds, peak = queue.get()
    return float(seconds), float(peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=None, help="parts of model names")
    parser.add_argument("--images", type=int, default=512, help="calibration images")
    parser.add_argument("--passes", default="quantize", help="graphopt's pipeline")
    parser.add_argument("--seconds", type=float, default=3.0, help="timing of each model")
    parser.add_argument("--evaluation-images", type=int, default=None, help="images of the accuracy (default: all)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args()
    line(HEADER, options.markdown)
    if options.markdown:
        line(("---",) * len(HEADER), True)
    for case in CASES:
        if options.only is None or any(part in case.model for part in options.only):
            line(row(case, options), options.markdown)


def line(cells: Sequence[str], markdown: bool) -> None:
    text = f"| {' | '.join(cells)} |" if markdown else cells[0].ljust(20) + "".join(c.rjust(13) for c in cells[1:])
    print(text, flush=True)


def row(case: Case, options: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        theirs, mine = Path(folder) / "peer.onnx", Path(folder) / "graphopt.onnx"
        common = (case, options.models, options.data, options.images, options.passes)
        peer_s, peer_mb = apart(peer, *common, theirs)
        our_s, our_mb = apart(ours, *common, mine)
        trio = [options.models / case.model, theirs, mine]
        batches = images(case, options.models, options.data, "evaluation", options.evaluation_images)
        top1 = [100 * (evaluate(m, batches).top1 or 0.0) for m in trio]
        times = measure(trio, seconds=options.seconds)
    ratios = (speedup(times[0], times[1]), speedup(times[0], times[2]), speedup(times[1], times[2]))
    return [
        case.model.removesuffix(".onnx"),
        *(f"{t:.2f}" for t in top1),
        *(f"{r:.2f}x" for r in ratios),
        *(f"{peer_s:.1f}", f"{our_s:.1f}", f"{peer_mb:.0f}", f"{our_mb:.0f}"),
    ]


if __name__ == "__main__":
    main()
