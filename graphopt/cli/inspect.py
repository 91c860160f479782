"""``graphopt inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli import options


@click.command()
@click.argument("model", type=options.PATH)
@click.option("--passes", metavar="SPEC", help="Passes to try on a copy (default: each one installed, by itself).")
@click.option(
    "--layers",
    type=click.IntRange(0),
    default=15,
    show_default=True,
    metavar="N",
    help="Costliest layers to list.",
)
@options.data
@options.images
@options.preprocess
@options.config
@options.load_passes
@options.output_format
def command(
    model: Path,
    passes: str | None,
    layers: int,
    config: Path | None,
    load_passes: tuple[Path, ...],
    format_: str,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> int:
    """Show MODEL's operators, costs and channel groups, what passes would do, and what blocks them."""
    from graphopt.driver.inspect import inspect_model
    from graphopt.report import console, files

    settings = options.settings_for(model, config, **given)
    found = inspect_model(model, passes, settings, load_passes, options.terminal(quiet, verbose))
    if format_ == "json":
        click.echo(files.to_json(found))
    else:
        console.print_inspect(found, layers)
    return 0
