"""Writing reports, in one step or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import atomic
from graphopt.errors import UsageError


def to_json(report: dict[str, Any]) -> str:
    """JSON text of a report: no NaN (null instead), numpy numbers as numbers."""
    return json.dumps(_plain(report), indent=2, allow_nan=False)


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Write a report atomically. Raises UsageError when the place cannot be written."""
    text = to_json(report) + "\n"
    try:
        with atomic.temporary(path) as draft:
            draft.write_text(text, encoding="utf-8")
            atomic.replace(draft, path)
    except OSError as error:
        raise UsageError(f"cannot write the report {path}: {error.strerror}", "give another --report") from None


def sha256(path: Path) -> str:
    """Hash of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
