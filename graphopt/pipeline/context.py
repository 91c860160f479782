"""What a pass may use besides the model."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from graphopt.analysis.base import Analysis, Cache
from graphopt.progress import Progress, Silent
from graphopt.runtime.latency_table import LatencyTable

if TYPE_CHECKING:
    from graphopt.data.loader import Batches
    from graphopt.ir.model import Model
    from graphopt.runtime.target import Target

T = TypeVar("T")


@dataclass
class Context:
    """Calibration images, the target, the seed, progress, and cached analyses. There are no globals.

    ``calibration`` is never empty: without images it holds synthetic ones and says so (``calibration.synthetic``).
    ``reference`` is the model as it was loaded. ``latency_table`` is None for the one of this machine. ``held_out`` are
    images that neither calibrate nor evaluate, for passes that ask for them (``needs_held_out``); None where there are
    none to spare. Their labels may be used. ``training`` are all images that passes may train on, for those that ask
    (``needs_training``); calibration images are among them. ``int8_follows``: a later pass takes the model to int8.
    """

    target: Target
    calibration: Batches
    reference: Model
    seed: int = 0
    threads: int = 1
    progress: Progress = field(default_factory=Silent)
    latency_table: LatencyTable | None = None
    held_out: Batches | None = None
    training: Batches | None = None
    int8_follows: bool = False
    _cache: Cache = field(default_factory=Cache, repr=False)

    @property
    def latencies(self) -> LatencyTable:
        """Measured times. Whatever depends on time asks this, so that the same table gives the same result."""
        if self.latency_table is None:
            self.latency_table = LatencyTable(threads=self.threads)
        return self.latency_table

    def analysis(self, question: Analysis[T], model: Model) -> T:
        """The cached answer to ``question`` about the present revision of ``model``."""
        return self._cache.get(question, model, self)

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that depends on the seed and the purpose alone, not on what ran before."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])

    def forget(self, model: Model) -> None:
        """Free cached answers about earlier revisions of ``model``."""
        self._cache.drop_stale(model)
