"""``graphopt run``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli import options


@click.command()
@click.argument("model", type=options.PATH)
@click.option("--passes", metavar="SPEC", help='Passes in order: "prune{macs=0.5},quantize". See: graphopt passes.')
@click.option("-o", "--output", type=options.PATH, metavar="FILE", help="Where to write (default: MODEL.opt.onnx).")
@options.data
@click.option(
    "--calibration-data",
    type=options.PATH,
    metavar="PATH",
    help="Images to calibrate on; labels are not used.",
)
@click.option("--calibration-images", type=click.IntRange(1), metavar="N", help="How many of them (default: 512).")
@options.images
@options.preprocess
@options.config
@click.option("--max-drop", type=float, metavar="POINTS", help="Gate: most points of top-1 that may be lost.")
@click.option("--min-accuracy", type=float, metavar="PERCENT", help="Gate: least top-1 of the result.")
@click.option("--min-speedup", type=float, metavar="FACTOR", help="Gate: least speedup over the input model.")
@click.option("--max-bytes", type=click.IntRange(1), metavar="N", help="Gate: largest size of the output file.")
@click.option("--target", metavar="NAME", help="What the model will run on (default: ort-cpu).")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Fix the batch size of the model's input.")
@click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="NAME:1,3,224,224",
    help="Fix the shape of an input.",
)
@options.seed
@options.threads
@click.option(
    "--latency-table",
    type=options.PATH,
    metavar="FILE",
    help="Measured times to decide by, completed where it lacks some (default: this machine's, in the user's cache).",
)
@click.option(
    "--report",
    type=options.PATH,
    metavar="FILE",
    help="Where to write the report (default: beside the output).",
)
@options.load_passes
@click.option("--dump-ir", type=options.PATH, metavar="DIR", help="Save the model after every pass that changed it.")
@click.option("--verify-each", is_flag=True, help="After each pass, also run onnx.checker and load in ONNX Runtime.")
@click.option("--no-eval", is_flag=True, help="Do not measure accuracy and latency.")
@options.output_format
def command(
    model: Path,
    config: Path | None,
    report: Path | None,
    load_passes: tuple[Path, ...],
    dump_ir: Path | None,
    verify_each: bool,
    no_eval: bool,
    format_: str,
    quiet: bool,
    verbose: bool,
    input_shapes: tuple[str, ...],
    **given: Any,
) -> int:
    """Optimize MODEL, check the result on images, and write it with a report.

    The output is renamed into place only when all gates hold; a failed run leaves it as it was.
    """
    from graphopt.driver.run import Options, optimize
    from graphopt.ir.interface import parse_shape
    from graphopt.report import console, files

    shapes = {name: list(dims) for name, dims in map(parse_shape, input_shapes)} or None
    settings = options.settings_for(model, config, input_shapes=shapes, **given)
    terminal = options.terminal(quiet, verbose)
    outcome = optimize(model, settings, Options(report, dump_ir, verify_each, no_eval, load_passes), terminal)
    if outcome.error is not None:
        click.echo(f"graphopt: error: {outcome.error}", err=True)
    if format_ == "json":
        click.echo(files.to_json(outcome.report))
    elif outcome.error is None:
        console.print_run(outcome.report, outcome.report_path)
    return outcome.exit_code
