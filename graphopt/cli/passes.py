"""``graphopt passes``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from graphopt.cli import options
from graphopt.errors import GraphoptError

T = TypeVar("T")


@click.command()
@click.argument("name", required=False)
@options.load_passes
@options.format_
def command(name: str | None, load_passes: tuple[Path, ...], format_: str) -> int:
    """List the passes and pipelines found, or show one pass's help and options."""
    from graphopt.pipeline import Registry
    from graphopt.report import console, describe, files

    registry = Registry()
    for file in load_passes:
        registry.load_file(file)
    pipelines = [n for n in registry.pipelines() if name in (n, None)]
    names = registry.names() if name is None else [] if name in pipelines else [name]
    broken: list[str] = []

    def usable(get: Callable[[str], T], names: list[str]) -> list[T]:
        """Those that can be loaded. One that was asked for must; in a list, others are not held back by it."""
        loaded = []
        for each in names:
            try:
                loaded.append(get(each))
            except GraphoptError as error:
                if name is not None:
                    raise
                broken.append(error.message)
        return loaded

    found = [describe.pass_entry(cls) for cls in usable(registry.get, names)]
    lists = [describe.pipeline_entry(pipeline) for pipeline in usable(registry.pipeline, pipelines)]
    for reason in broken:
        click.echo(f"graphopt: warning: {reason}", err=True)
    if format_ == "json":
        listed = {"schema": "graphopt.passes/1", "passes": found, "pipelines": lists, "broken": broken}
        click.echo(files.to_json(listed))
    elif name and found:
        console.print_pass(found[0])
    else:
        console.print_passes(found, lists)
    return 0
