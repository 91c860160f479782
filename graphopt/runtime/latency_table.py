"""Measured times as data: a file in which every measurement that a decision depended on can be found again.

What depends on time is not reproducible, unless time is an input. Passes ask the table for a measurement by a key that
says exactly what is measured; the table measures only what it does not hold yet. So the same table gives the same
decisions, whatever the machine does meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphopt import atomic
from graphopt.errors import UsageError
from graphopt.runtime.machine import describe

SCHEMA = "graphopt.latency/1"
_DIGITS = 5


class LatencyTable:
    """Measurements by key, read from a file on first use and completed by what is measured.

    ``path`` None stands for a file in the user's cache folder that belongs to this machine, the version of ONNX Runtime
    and the number of threads. A file that was measured elsewhere serves as long as it lacks nothing.
    """

    def __init__(self, path: Path | None = None, threads: int = 1) -> None:
        self.machine = describe(threads)
        self.given = path is not None
        self.path = path or _cache_file(self.machine)
        self.measured = 0  # in this run
        self.used: set[str] = set()
        self._entries: dict[str, float] | None = None
        self._foreign: dict[str, Any] | None = None  # the machine that the file is from, if it is another

    def lookup(self, key: str, measure: Callable[[], float]) -> float:
        """The number under ``key``; what ``measure`` gives, rounded, where there is none yet.

        Raises UsageError for a file that is no latency table, or from another machine and not complete.
        """
        entries = self.load()
        self.used.add(key)
        if key not in entries:
            if self._foreign is not None:
                raise UsageError(
                    f"the latency table {self.path} lacks a measurement and is from another machine: "
                    f"{_words(self._foreign)}; this one is {_words(self.machine)}",
                    "use it for the model and options that it was made for, or name another file",
                )
            value = float(f"{measure():.{_DIGITS}g}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"measuring {key} gave {value}")
            entries[key] = value
            self.measured += 1
        return entries[key]

    def save(self) -> None:
        """Write what was measured. Raises UsageError if a file that was named cannot be written."""
        if not self.measured:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._stored() if self.path.is_file() else {}  # another run may have added something
            text = _format(self.machine, {**kept, **self.load()})
            with atomic.temporary(self.path) as file:
                file.write_text(text, encoding="utf-8")
                atomic.replace(file, self.path)
        except OSError as error:
            if self.given:
                raise UsageError(f"cannot write the latency table {self.path}: {error.strerror or error}") from error

    @property
    def sha256(self) -> str:
        """Hash of the file's bytes, as they are or would be."""
        return hashlib.sha256(_format(self._foreign or self.machine, self.load()).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """The report's ``latency_table`` entry."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "used": len(self.used),
            "measured": self.measured,
            "machine": self._foreign or self.machine,
        }

    def load(self) -> dict[str, float]:
        """The measurements that there are. Raises UsageError for a file that is no latency table."""
        if self._entries is None:
            self._entries = self._stored() if self.path.is_file() else {}
        return self._entries

    def _stored(self) -> dict[str, float]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read the latency table {self.path}: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{self.path} is no latency table: {error}") from error
        known = isinstance(found, dict) and found.get("schema") == SCHEMA and isinstance(found.get("machine"), dict)
        entries = found.get("entries") if known else None
        if not isinstance(entries, dict) or not all(type(v) in (int, float) and v > 0 for v in entries.values()):
            raise UsageError(f"{self.path} is no latency table of the schema {SCHEMA}")
        if found["machine"] != self.machine:
            self._foreign = found["machine"]
        return dict(entries)


def _cache_file(machine: dict[str, Any]) -> Path:
    from platformdirs import user_cache_path

    mark = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    return user_cache_path("graphopt", appauthor=False) / f"latency-{mark}.json"


def _format(machine: dict[str, Any], entries: dict[str, float]) -> str:
    return json.dumps({"schema": SCHEMA, "machine": machine, "entries": entries}, indent=1, sort_keys=True) + "\n"


def _words(machine: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in machine.items())
