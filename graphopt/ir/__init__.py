"""The graph IR: a model, its file format, its shapes, and the checks that it is well formed."""

from graphopt.ir.io import load, save
from graphopt.ir.model import Model
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.verify import Snapshot, verify

__all__ = ["Model", "Snapshot", "infer_shapes", "load", "save", "verify"]
