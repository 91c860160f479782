"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from graphopt.cli.console import Terminal
    from graphopt.driver.config import Settings

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)

data = click.option(
    "--data",
    type=PATH,
    metavar="PATH",
    help="Images to evaluate on: class folders, .npz (x, y), or a CSV of path,label.",
)
preprocess = click.option(
    "--preprocess",
    metavar="SPEC",
    help="imagenet, inception, efficientnet-lite, unit or raw, with options: imagenet{crop=1.0}.",
)
images = click.option(
    "--images",
    "evaluation_images",
    type=click.IntRange(1),
    metavar="N",
    help="Evaluate on N images only, drawn by the seed.",
)
config = click.option(
    "--config", type=PATH, metavar="FILE", help="TOML file with settings (default: MODEL's own .toml)."
)
threads = click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of ONNX Runtime (default: 1).")
seed = click.option("--seed", type=click.IntRange(0), metavar="N", help="Seed of everything random (default: 0).")
load_passes = click.option(
    "--load-pass",
    "load_passes",
    type=PATH,
    multiple=True,
    metavar="FILE.py",
    help="Also know the passes in this file.",
)
format_ = click.option(
    "--format", "format_", type=click.Choice(["text", "json"]), default="text", help="What to print on stdout."
)


def output_format(function: F) -> F:
    """``--format``, ``-q`` and ``-v``."""
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Say what is being done."),
        click.option("-q", "--quiet", is_flag=True, help="No progress and no warnings."),
        format_,
    ):
        function = option(function)
    return function


def terminal(quiet: bool, verbose: bool) -> Terminal:
    from graphopt.cli.console import Terminal

    return Terminal(quiet=quiet, verbose=verbose)


def settings_for(model: Path, config_file: Path | None, **given: Any) -> Settings:
    """Command-line values over the model's configuration file."""
    from graphopt.driver.config import Settings, find

    return Settings(**given).over(find(model, config_file))
