"""The pass ``fold``: exact simplification of a graph."""

from graphopt.passes.fold.fold import Fold

__all__ = ["Fold"]
