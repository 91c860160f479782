"""How long-running work reports where it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What work may say while it runs. The console implementation lives in ``graphopt.cli``."""

    def track(self, items: Iterable[T], description: str | Callable[[], str], total: int | None = None) -> Iterator[T]:
        """Yield from ``items``, showing how many of ``total`` are done. A function describes what is new each time."""
        ...

    def log(self, message: str) -> None:
        """Say one line that explains what is going on (shown with ``-v``)."""
        ...

    def warn(self, message: str) -> None:
        """Say one line that the user should act on (always shown unless ``-q``)."""
        ...


class Silent:
    """Progress that goes nowhere."""

    def track(self, items: Iterable[T], description: str | Callable[[], str], total: int | None = None) -> Iterator[T]:
        yield from items

    def log(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        pass
