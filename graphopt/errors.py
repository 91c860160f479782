"""Everything graphopt raises on purpose: one base class and four kinds, each with its exit code."""

from __future__ import annotations


class GraphoptError(Exception):
    """An error that a user can act on.

    ``message`` says what is wrong and where; ``hint``, when there is one, says what to do about it.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

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
