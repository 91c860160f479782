"""Facts computed from a model, cached for as long as the model stays as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from graphopt.ir.model import Model

T = TypeVar("T")


class Analysis(ABC, Generic[T]):
    """A question about a model. Make subclasses frozen dataclasses: equal questions share one answer."""

    @abstractmethod
    def compute(self, model: Model, ctx: Any) -> T:
        """Answer it. ``ctx`` is the pipeline's Context. Must not change the model."""


class Cache:
    """Answers by question, dropped when the revision of their model moves."""

    def __init__(self) -> None:
        self._answers: dict[tuple[int, Analysis[Any]], tuple[int, Any]] = {}

    def get(self, analysis: Analysis[T], model: Model, ctx: Any) -> T:
        key = (model.uid, analysis)
        found = self._answers.get(key)
        if found is None or found[0] != model.revision:
            found = (model.revision, analysis.compute(model, ctx))
            self._answers[key] = found
        return found[1]

    def drop_stale(self, model: Model) -> None:
        """Free the answers about earlier revisions of ``model``."""
        for key in [k for k, v in self._answers.items() if k[0] == model.uid and v[0] != model.revision]:
            del self._answers[key]
