"""``max_drop``: the layers that harm most get their precision back, until the drop on held-out images holds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from graphopt.analysis.judge import Drop, Judge
from graphopt.passes.quantize.assemble import Assembler, Built
from graphopt.passes.quantize.sensitivity import Sensitivity, sensitivities
from graphopt.pipeline import Skipped


@dataclass
class _Try:
    restored: list[str]
    built: Built | None  # of the best try alone: models are large
    drop: Drop


@dataclass
class Search:
    """The fewest layers, of those that harm most, whose restoring holds the drop within ``points``.

    Always ends with a model: the best one that it came to. With a ``deadline`` in seconds that may depend on how fast
    the machine is, which ``metrics`` then says.
    """

    assembler: Assembler
    judge: Judge
    points: float
    deadline: float | None = None
    ranked: list[Sensitivity] = field(default_factory=list)
    _tries: dict[int, _Try] = field(default_factory=dict)
    _late: bool = False
    _until: float = float("inf")

    def run(self) -> Built:
        """Search: from none to all by doubling, then by halving between the last two."""
        if self.deadline is not None:
            self._until = time.monotonic() + self.deadline
        if not self._holds(0):
            self.ranked = sensitivities(self.assembler, self._built().model, self.judge.images, self._until)
            self._expired()
            low, high = 0, 1
            while high < len(self.ranked) and not self._expired() and not self._holds(high):
                low, high = high, min(2 * high, len(self.ranked))
            if high >= len(self.ranked) and self.ranked and not self._expired():
                self._holds(high := len(self.ranked))
            while high - low > 1 and not self._expired():
                middle = (low + high) // 2
                low, high = (low, middle) if self._holds(middle) else (middle, high)
        return self._built()

    def _built(self) -> Built:
        built = self._best().built
        assert built is not None
        return built

    def metrics(self) -> dict[str, Any]:
        """For the report."""
        best = self._best()
        return {
            "points": self.points,
            "met": best.drop.points <= self.points,
            "drop_points": round(best.drop.points, 4),
            "drop_points_upper95": round(best.drop.high, 4),
            "held_out_images": best.drop.n,
            "held_out_labels": self.judge.labels,
            "restored": best.restored,
            "tries": len(self._tries),
            "deadline_reached": self._late,
        }

    def notes(self) -> list[str]:
        """What a user should hear at once."""
        best, said = self._best(), []
        if best.drop.points > self.points:
            said.append(
                f"no model within {self.points:g} points was found; the best loses {best.drop.points:.2f} on "
                f"{best.drop.n} held-out images"
            )
        if self._late:
            said.append("the deadline ended the search: on another machine, or at another time, it may end elsewhere")
        return said

    def skipped(self) -> list[Skipped]:
        """The layers that were restored, and why."""
        operators = {n.name: n.op for n in self.assembler.original.graph.nodes}
        kind = "8 bits" if self.assembler.recipe.four_bits else "float"
        first = self._tries[0].drop.points
        reason = (
            f"given {kind} back, since the drop on held-out images was {first:.2f} points with all layers quantized: "
            f"a larger max_drop leaves it quantized"
        )
        return [Skipped(name, operators[name], reason) for name in self._best().restored]

    def _expired(self) -> bool:
        self._late = self._late or time.monotonic() >= self._until
        return self._late

    def _holds(self, count: int) -> bool:
        if count not in self._tries:
            restored = [s.node for s in self.ranked[:count]]
            built = self.assembler.build(frozenset(restored))
            drop = self.judge.drop(built.model, self.points)
            self._tries[count] = _Try(restored, built, drop)
            self.assembler.ctx.progress.log(
                f"quantize: {count} layers restored lose {drop.points:.2f} points on {drop.n} held-out images"
            )
            best = self._best()
            for tried in self._tries.values():
                tried.built = tried.built if tried is best else None
        return self._tries[count].drop.points <= self.points

    def _best(self) -> _Try:
        held = [t for t in self._tries.values() if t.drop.points <= self.points]
        if held:
            return min(held, key=lambda t: len(t.restored))
        return min(self._tries.values(), key=lambda t: (t.drop.points, len(t.restored)))
