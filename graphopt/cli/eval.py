"""``graphopt eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli import options


@click.command()
@click.argument("model", type=options.PATH)
@options.data
@options.images
@options.preprocess
@options.config
@options.seed
@options.threads
@options.output_format
def command(model: Path, config: Path | None, format_: str, quiet: bool, verbose: bool, **given: Any) -> int:
    """Measure MODEL's top-1 and top-5 with a 95 % confidence interval, and its throughput."""
    from graphopt.driver.measure import evaluate_model
    from graphopt.report import console, files

    settings = options.settings_for(model, config, **given)
    found = evaluate_model(model, settings, options.terminal(quiet, verbose))
    if format_ == "json":
        click.echo(files.to_json(found))
    else:
        console.print_eval(found)
    return 0
