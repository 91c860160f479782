"""Time of ``graphopt --help`` as a whole process, best of some runs: ``python benchmarks/startup.py [RUNS]``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    command = [str(Path(sys.executable).parent / "graphopt"), "--help"]
    times = []
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    print(f"graphopt --help: best {min(times):.3f} s of {len(times)}")


if __name__ == "__main__":
    main()
