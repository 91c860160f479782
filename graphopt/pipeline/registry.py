"""Which passes exist. Built-in and third-party passes are found alike: by the entry-point group ``graphopt.passes``."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from graphopt import extension, spec
from graphopt.errors import PassError, UsageError
from graphopt.pipeline.base import Pass, Pipeline

GROUP = "graphopt.passes"
PIPELINES = "graphopt.pipelines"


@functools.cache
def _installed(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Finding them reads the metadata of all installed packages, which do not change while a process runs."""
    return tuple(importlib.metadata.entry_points(group=group))


class Registry:
    """Passes by name: those installed, plus those loaded from files."""

    def __init__(self) -> None:
        self._points = {p.name: p for p in _installed(GROUP)}
        self._classes: dict[str, type[Pass]] = {}
        self._pipelines = {p.name: p for p in _installed(PIPELINES)}

    def pipelines(self) -> list[str]:
        """Names of pipelines: lists of passes that repeat until nothing changes."""
        return sorted(self._pipelines)

    def pipeline(self, name: str) -> Pipeline:
        """The pipeline called ``name``, of passes with their default options."""
        point = self._pipelines[name]
        try:
            names: tuple[str, ...] = tuple(point.load())
        except Exception as error:
            raise PassError(
                f"the pipeline {name!r} of {point.value} cannot be imported: {error}",
                "reinstall the package it comes from",
            ) from error
        return Pipeline(name, tuple(self.get(n)() for n in names))

    def names(self) -> list[str]:
        """Names of passes."""
        return sorted({*self._points, *self._classes})

    def get(self, name: str) -> type[Pass]:
        """The pass class called ``name``. Raises UsageError with the nearest match, PassError if it cannot load."""
        if name in self._classes:
            return self._classes[name]
        if name not in self._points:
            raise spec.unknown("pass", name, [*self.names(), *self.pipelines()])
        point = self._points[name]
        try:
            cls = point.load()
        except Exception as error:
            raise PassError(
                f"the pass {name!r} of {point.value} cannot be imported: {error}",
                "reinstall the package it comes from",
            ) from error
        return self.add(cls)

    def add(self, cls: type[Pass]) -> type[Pass]:
        """Register a class. Raises UsageError for one that is not a usable pass."""
        if not (isinstance(cls, type) and issubclass(cls, Pass)) or not hasattr(cls, "kind"):
            raise UsageError(f"{cls!r} is not a pass: derive it from graphopt.Pass and set name and kind")
        if not isinstance(getattr(cls, "name", None), str):
            raise UsageError(f"the pass class {cls.__name__} has no name")
        if not spec.is_name(cls.name):
            raise UsageError(
                f"the name {cls.name!r} of the pass class {cls.__name__} cannot be written in a pipeline",
                "use letters, digits, '_', '-' and '.'",
            )
        if inspect.isabstract(cls):
            raise UsageError(f"the pass {cls.name!r} does not implement " + ", ".join(sorted(cls.__abstractmethods__)))
        if any(isinstance(value, dataclasses.Field) for base in cls.__mro__ for value in vars(base).values()):
            raise UsageError(
                f"the options of {cls.__name__} are not in effect",
                "write @dataclass(frozen=True) above the class",
            )
        self._classes[cls.name] = cls
        return cls

    def load_file(self, path: str | Path) -> list[type[Pass]]:
        """Register the passes that a Python file defines (imported ones do not count).

        There may be none where it registers something else: a rule of an operator, a criterion of pruning.
        """
        path = Path(path)
        if not path.is_file():
            raise UsageError(f"no such pass file: {path}")
        # Files of the same name in different folders must not take each other's place in sys.modules.
        name = f"graphopt_loaded_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
        module_spec = importlib.util.spec_from_file_location(name, path)
        if module_spec is None or module_spec.loader is None:
            raise UsageError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module
        try:
            module_spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            sys.modules.pop(name, None)
            raise UsageError(f"the pass file {path} fails on import: {type(error).__name__}: {error}") from error
        found = [
            value
            for value in dict.fromkeys(v for v in vars(module).values() if isinstance(v, type))
            if issubclass(value, Pass)
            and value.__module__ == name
            and (hasattr(value, "name") or not inspect.isabstract(value))  # a base class for others is neither
        ]
        if not found and not extension.extends(name):
            raise UsageError(f"{path} defines no pass", "derive a class from graphopt.Pass in it")
        for cls in found:
            self.add(cls)
        return found

    def build(self, passes: str | Iterable[str | dict[str, Any]]) -> list[Pass | Pipeline]:
        """Turn specification text, or a list of texts and ``{name=..., option=...}`` tables, into passes.

        A name may be that of a pipeline.

        Passes named in ``requires`` that have not run by then are inserted before the pass that needs them.
        """
        items: list[spec.Item] = []
        for entry in [passes] if isinstance(passes, str) else passes:
            if isinstance(entry, str):
                items.extend(spec.parse(entry))
            elif isinstance(entry, dict) and isinstance(entry.get("name"), str):
                items.append(spec.Item(entry["name"], {k: v for k, v in entry.items() if k != "name"}))
            else:
                raise UsageError(f"a pass must be text or a table with a name, not {entry!r}")
        built: list[Pass | Pipeline] = []
        for item in items:
            self._append(built, self._make(item), ())
        return built

    def _make(self, item: spec.Item) -> Pass | Pipeline:
        if item.name not in self._pipelines or item.name in self._classes:
            return self.get(item.name).from_options(item.options)
        if item.options:
            names = ", ".join(p.name for p in self.pipeline(item.name).passes)
            raise UsageError(
                f"the pipeline {item.name!r} takes no options", f"give them to its passes, written out: {names}"
            )
        return self.pipeline(item.name)

    def _append(self, built: list[Pass | Pipeline], new: Pass | Pipeline, chain: tuple[str, ...]) -> None:
        if new.name in chain:
            raise PassError("passes require each other: " + " -> ".join((*chain, new.name)))
        needed = new.requires if isinstance(new, Pass) else [r for p in new.passes for r in p.requires]
        own = [] if isinstance(new, Pass) else [p.name for p in new.passes]
        for name in needed:
            if name not in own and not any(name in _provides(p) for p in built):
                self._append(built, self._make(spec.Item(name)), (*chain, new.name))
        built.append(new)


def _provides(step: Pass | Pipeline) -> set[str]:
    """Names that a step answers to when another one requires them."""
    return {step.name, *(p.name for p in step.passes)} if isinstance(step, Pipeline) else {step.name}


def format_pipeline(passes: Iterable[Pass | Pipeline]) -> str:
    """Canonical text of a pipeline; ``Registry.build`` reads it back."""
    return ",".join(p.spec for p in passes)
