"""``graphopt compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli import options


@click.command()
@click.argument("a", type=options.PATH)
@click.argument("b", type=options.PATH)
@options.data
@options.images
@options.preprocess
@options.config
@options.seed
@options.threads
@options.output_format
def command(a: Path, b: Path, config: Path | None, format_: str, quiet: bool, verbose: bool, **given: Any) -> int:
    """Put models A (before) and B (after) side by side.

    With images: accuracy, a paired test, agreement. Always: size, cost, latency, and how far the outputs differ.
    """
    from graphopt.driver.measure import compare
    from graphopt.report import console, files

    settings = options.settings_for(a, config, **given)
    found = compare(a, b, settings, options.terminal(quiet, verbose))
    if format_ == "json":
        click.echo(files.to_json(found))
    else:
        console.print_compare(found)
    return 0
