"""One run's settings, from a TOML file and the command line, which overrides it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphopt.errors import UsageError
from graphopt.spec import unknown

DEFAULT_PASSES = "simplify"


@dataclass(frozen=True)
class Settings:
    """Everything that ``graphopt run`` can be told. None means: not said.

    ``max_drop`` is in points of top-1, ``min_accuracy`` in percent, ``max_bytes`` of the output file,
    ``min_speedup`` a factor of latency.
    """

    passes: str | list[Any] | None = None
    output: Path | None = None
    data: Path | None = None
    calibration_data: Path | None = None
    calibration_images: int | None = None
    evaluation_images: int | None = None
    preprocess: str | dict[str, Any] | None = None
    max_drop: float | None = None
    min_accuracy: float | None = None
    min_speedup: float | None = None
    max_bytes: int | None = None
    target: str | None = None
    seed: int | None = None
    threads: int | None = None
    batch: int | None = None
    input_shapes: dict[str, list[int]] | None = None
    latency_table: Path | None = None
    origin: str | None = None  # the file that settings came from, for error messages

    def over(self, other: Settings) -> Settings:
        """These settings, completed by ``other`` where they say nothing."""
        missing = {k: v for k, v in vars(other).items() if getattr(self, k) is None}
        return replace(self, **missing)


# TOML table and key -> (setting, type, is it a path relative to the file)
_KEYS: dict[str, dict[str, tuple[str, Any, bool]]] = {
    "": {
        "passes": ("passes", (str, list), False),
        "output": ("output", str, True),
        "target": ("target", str, False),
        "seed": ("seed", int, False),
        "threads": ("threads", int, False),
        "batch": ("batch", int, False),
        "latency_table": ("latency_table", str, True),
    },
    "data": {
        "evaluation": ("data", str, True),
        "calibration": ("calibration_data", str, True),
        "calibration_images": ("calibration_images", int, False),
        "evaluation_images": ("evaluation_images", int, False),
    },
    "gates": {
        "max_drop": ("max_drop", (int, float), False),
        "min_accuracy": ("min_accuracy", (int, float), False),
        "min_speedup": ("min_speedup", (int, float), False),
        "max_bytes": ("max_bytes", int, False),
    },
}


def from_table(table: Mapping[str, Any], folder: Path, origin: str) -> Settings:
    """Read a parsed TOML table; paths are relative to ``folder``. Raises UsageError for anything unknown."""
    values: dict[str, Any] = {"origin": origin}
    for key, value in table.items():
        if key == "preprocess":
            if not isinstance(value, str | dict):
                raise UsageError(f"'preprocess' in {origin} must be a text or a table")
            values["preprocess"] = value
        elif key == "input_shapes":
            values[key] = _shapes(value, origin)
        elif key in _KEYS and key:
            if not isinstance(value, dict):
                raise UsageError(f"{key!r} in {origin} must be a table: [{key}]")
            for inner, item in value.items():
                _read(values, key, inner, item, folder, origin)
        else:
            _read(values, "", key, value, folder, origin)
    return Settings(**values)


def _shapes(value: Any, origin: str) -> dict[str, list[int]]:
    good = isinstance(value, dict) and all(
        isinstance(dims, list) and dims and all(type(d) is int and d > 0 for d in dims) for dims in value.values()
    )
    if not good:
        raise UsageError(f"'input_shapes' in {origin} must be a table of lists: input = [1, 3, 224, 224]")
    return dict(value)


def _read(values: dict[str, Any], table: str, key: str, value: Any, folder: Path, origin: str) -> None:
    known = _KEYS[table]
    if key not in known:
        names = [*known, "data", "preprocess", "gates", "input_shapes"] if not table else list(known)
        raise unknown("key", key, names, f" in {f'[{table}] of ' if table else ''}{origin}")
    setting, kind, is_path = known[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UsageError(f"{key!r} in {origin} must be {expected}, not {value!r}")
    values[setting] = folder / value if is_path else value


def read_file(path: Path) -> Settings:
    """Read a TOML file (of a pyproject.toml, its ``[tool.graphopt]``). Raises UsageError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no such configuration file: {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    if path.name == "pyproject.toml":
        table = table.get("tool", {}).get("graphopt", {})
    return from_table(table, path.parent, str(path))


def find(model: Path, config: Path | None) -> Settings:
    """The settings that belong to a model: of ``config``, else of the TOML of the model's own name, else of the
    working folder's pyproject.toml, else none."""
    if config is not None:
        return read_file(config)
    own = model.with_suffix(".toml")
    if own.is_file():
        return read_file(own)
    project = Path("pyproject.toml")
    return read_file(project) if project.is_file() else Settings()
