"""``graphopt passes``."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli import options


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
    found = [describe.pass_entry(registry.get(n)) for n in names]
    lists = [describe.pipeline_entry(registry.pipeline(n)) for n in pipelines]
    if format_ == "json":
        click.echo(files.to_json({"schema": "graphopt.passes/1", "passes": found, "pipelines": lists}))
    elif name and found:
        console.print_pass(found[0])
    else:
        console.print_passes(found, lists)
    return 0
