"""Everything graphopt raises on purpose: one base class and four kinds, each with its exit code."""

from __future__ import annotations

import re

_LONGEST = 2000  # characters of a message; names in a model can have millions


def printable(text: str) -> str:
    """``text`` on one line, fit for a terminal: names in a model may hold what would move its cursor or forge a line.

    Line breaks become spaces, other characters that do not print are written as escapes, and the middle of what is
    endless is left out.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} [{len(text) - _LONGEST:,} characters left out] {text[-_LONGEST // 2 :]}"
    line = re.sub(r"\s*[\r\n\v\f\x85\u2028\u2029]\s*", " ", text).strip()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _printable_line(line: str) -> str:
    indent = len(line) - len(line.lstrip(" "))
    return " " * min(indent, _LONGEST) + printable(line)


class GraphoptError(Exception):
    """An error that a user can act on.

    ``message`` says what is wrong and where; ``hint``, when there is one, says what to do about it; ``quote`` are
    lines to be shown below the message as they are laid out. All are made ``printable``.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "", quote: tuple[str, ...] = ()) -> None:
        self.message = "\n    ".join([printable(message), *(_printable_line(line) for line in quote)])
        self.hint = printable(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(GraphoptError):
    """A wrong option, specification, configuration or output path."""

    exit_code = 2


class ModelError(GraphoptError):
    """The input model cannot be read, is malformed, or is not an image classifier."""

    exit_code = 2


class DataError(GraphoptError):
    """The images or labels cannot be read, or do not fit the model."""

    exit_code = 2


class PassError(GraphoptError):
    """A pass could not do what it was asked to."""

    exit_code = 3


class ContractError(PassError):
    """A pass broke a promise (as opposed to an error that it raises on purpose): a bug, worth a reproducer."""
