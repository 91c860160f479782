"""The terminal: progress and messages on stderr, results on stdout, no colour or bars when not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click

T = TypeVar("T")
_PATIENCE = 1.0  # seconds before a bar appears


class Terminal:
    """The Progress of the command line."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self._live = sys.stderr.isatty() and not quiet

    def track(self, items: Iterable[T], description: str | Callable[[], str], total: int | None = None) -> Iterator[T]:
        if not self._live:
            yield from items
            return
        bar: Any = None
        task: Any = None
        began = time.monotonic()
        try:
            for done, item in enumerate(items):
                if bar is None and time.monotonic() - began > _PATIENCE:
                    bar = self._bar()
                    task = bar.add_task(_text(description), total=total, completed=done)
                    bar.start()
                yield item
                if bar is not None:
                    bar.update(task, completed=done + 1, description=_text(description))
        finally:
            if bar is not None:
                bar.stop()

    def log(self, message: str) -> None:
        if self.verbose:
            click.echo(f"graphopt: {message}", err=True)

    def warn(self, message: str) -> None:
        if not self.quiet:
            click.echo(f"graphopt: warning: {message}", err=True)

    @staticmethod
    def _bar() -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )


def _text(description: str | Callable[[], str]) -> str:
    return description if isinstance(description, str) else description()
