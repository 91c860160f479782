"""The pass ``prune``."""

from __future__ import annotations

from graphopt.passes.prune.importance import Channels, criterion
from graphopt.passes.prune.prune import Prune

__all__ = ["Channels", "Prune", "criterion"]
