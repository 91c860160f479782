"""Time and peak memory of calibration, by number of images, against ONNX Runtime's static quantizer.

    python benchmarks/calibration.py MODEL IMAGES --preprocess SPEC [--counts 50,400] [--method percentile]

Each row is a process of its own, from start to exit, decoding included; ONNX Runtime's quantizer gets the same images
through the same loader. Rounds take turns, and medians are printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = """
import sys
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from graphopt.driver.config import Settings
from graphopt.driver.inputs import prepare
from graphopt.ir import load
from pathlib import Path

model, images, preprocess, count, out = sys.argv[1:]
data = prepare(load(model), Settings(calibration_data=Path(images), preprocess=preprocess,
                                     calibration_images=int(count))).calibration


class Reader(CalibrationDataReader):
    def __init__(self):
        self.batches = data.batches(1)

    def get_next(self):
        x = next(self.batches, None)
        return None if x is None else {data.input.name: x}


quantize_static(model, out, Reader(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True)
"""


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of one process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {command}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--preprocess", default="imagenet")
    parser.add_argument("--counts", default="50,400")
    parser.add_argument("--method", default="percentile")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    counts = [int(c) for c in options.counts.split(",")]
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.onnx")
        for _ in range(options.rounds):
            for count in counts:
                ours = [sys.executable, "-c", "from graphopt.cli import main; main()", "run", str(options.model)]
                ours += [
                    "--passes",
                    f"quantize{{calibration={options.method},place=estimated}}",
                    "--no-eval",
                    "-o",
                    out,
                ]
                ours += ["--calibration-data", str(options.images), "--preprocess", options.preprocess]
                ours += ["--calibration-images", str(count), "--threads", str(os.cpu_count() or 1)]
                found.setdefault(f"graphopt {options.method}, {count} images", []).append(measure(ours))
                peer = [sys.executable, "-c", PEER, str(options.model), str(options.images)]
                peer += [options.preprocess, str(count), out]
                found.setdefault(f"quantize_static MinMax, {count} images", []).append(measure(peer))
    print(f"{'':<40} {'seconds':>8} {'peak MiB':>9}")
    for name, runs in found.items():
        seconds, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name:<40} {seconds:>8.2f} {memory:>9.0f}")
    first, last = (found[f"graphopt {options.method}, {c} images"] for c in (counts[0], counts[-1]))
    ratio = statistics.median(m for _, m in last) / statistics.median(m for _, m in first)
    print(f"peak memory, {counts[-1]} images against {counts[0]}: {ratio:.3f}x")
    rivals = found[f"quantize_static MinMax, {counts[-1]} images"]
    pairs = [a[0] / b[0] for a, b in zip(last, rivals, strict=True)]
    print(f"time against quantize_static, {counts[-1]} images: {statistics.median(pairs):.3f}x")


if __name__ == "__main__":
    main()
