"""``graphopt bench``."""

from __future__ import annotations

from pathlib import Path

import click

from graphopt.cli import options


@click.command()
@click.argument("models", type=options.PATH, nargs=-1, required=True)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Images at a time.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1),
    default=3.0,
    show_default=True,
    metavar="S",
    help="How long to time each model.",
)
@click.option("--size", type=click.IntRange(1), metavar="N", help="Height and width, where a model leaves them open.")
@options.threads
@options.seed
@options.output_format
def command(
    models: tuple[Path, ...],
    batch: int,
    seconds: float,
    size: int | None,
    threads: int | None,
    seed: int | None,
    format_: str,
    quiet: bool,
    verbose: bool,
) -> int:
    """Time one or more MODELS in one process, taking turns, so that noise hits all alike.

    Prints the median and quartiles of each, and its speedup over the first.
    """
    from graphopt.driver.measure import bench
    from graphopt.report import console, files

    found = bench(
        list(models),
        batch=batch,
        seconds=seconds,
        size=size,
        threads=threads or 1,
        seed=seed or 0,
        progress=options.terminal(quiet, verbose),
    )
    if format_ == "json":
        click.echo(files.to_json(found))
    else:
        console.print_bench(found)
    return 0
