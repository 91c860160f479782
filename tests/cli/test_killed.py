"""A run killed at any moment leaves the old file or the new one, whole."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx

MOMENTS = 20


def start(classifier: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from graphopt.cli import main; main()", "run", str(classifier), "-q"]
    command += ["--passes", "quantize", "--no-eval", "--calibration-images", "8", "-o", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=output.parent)


def test_killed_at_random_moments(classifier: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    began = time.monotonic()
    assert start(classifier, output).wait() == 0
    seconds = time.monotonic() - began
    new = output.read_bytes()
    onnx.checker.check_model(onnx.load_from_string(new))
    old = b"what was there before"
    moments = random.Random(0)
    seen: set[bytes] = set()
    for k in range(MOMENTS):
        output.write_bytes(old)
        process = start(classifier, output)
        # Spread over the run, and denser at its end, where the file is written.
        share = moments.uniform(0, 1.1) if k % 2 else moments.uniform(0.8, 1.1)
        time.sleep(share * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = output.read_bytes()
        assert found in (old, new), f"half-written after {share:.2f} of the run"
        seen.add(found)
    assert old in seen, "no kill came before the end: the test proves nothing"
