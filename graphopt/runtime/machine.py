"""What measured times depend on besides the model."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def cpu_name() -> str:
    """The processor, as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(threads: int) -> dict[str, Any]:
    """Times of two runs can be compared where these facts are the same."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "onnxruntime": version("onnxruntime"),
        "threads": threads,
    }
