"""Giving numbers to dimensions that a model leaves open: its batch, the size of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs

from graphopt import spec
from graphopt.errors import ModelError, UsageError
from graphopt.ir.model import Model
from graphopt.ir.shapes import infer_from_inputs
from graphopt.ir.view import tensors

Dim = int | str | None


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``name:1,3,224,224``. Raises UsageError."""
    name, _, numbers = text.rpartition(":")  # names may hold colons
    try:
        dims = tuple(int(n) for n in numbers.split(","))
    except ValueError:
        dims = ()
    if not name or not dims or min(dims) < 1:
        raise UsageError(f"malformed input shape {text!r}", "write it as name:1,3,224,224, all numbers at least 1")
    return name, dims


def fix_shapes(model: Model, shapes: Mapping[str, Sequence[int]], batch: int | None = None) -> dict[str, list[Dim]]:
    """Set the shapes of inputs by name, and the first dimension of all inputs to ``batch``, and infer the rest anew.

    A dimension's name stands for one number, so giving it in one place gives it everywhere. Returns the shapes of the
    inputs that changed. Raises UsageError for an unknown input, another rank, or numbers that contradict the model's
    or each other, and ModelError if the model's operators do not take such shapes.
    """
    inputs = {t.name: t for t in model.inputs}
    wanted: dict[str, list[Dim]] = {n: list(t.shape) for n, t in inputs.items() if t.shape is not None}
    for name, dims in shapes.items():
        if name not in inputs:
            raise spec.unknown("input", name, inputs, " of the model")
        old = inputs[name].shape
        if old is not None and len(old) != len(dims):
            raise UsageError(f"input {name!r} has {len(old)} dimensions {list(old)}, and {len(dims)} were given")
        for was, now in zip(old or (), dims, strict=False):
            if isinstance(was, int) and was > 0 and was != now:
                raise UsageError(
                    f"input {name!r} has shape {list(old)}, which {list(dims)} contradicts",
                    "only open dimensions can be fixed; export the model again for another size",
                )
        wanted[name] = list(dims)
    if batch is not None:
        for name, shape in wanted.items():
            if not shape or (isinstance(shape[0], int) and shape[0] > 0 and shape[0] != batch):
                what = f"has batch {shape[0]}" if shape else "has no batch"
                raise UsageError(f"input {name!r} {what}, so batch {batch} cannot be set")
            shape[0] = batch
    named = _named(inputs, wanted)
    changed: dict[str, list[Dim]] = {}
    for name, shape in wanted.items():
        final = [named.get(d, d) if isinstance(d, str) else d for d in shape]
        if final != list(inputs[name].shape or ()):
            inputs[name].shape = final
            changed[name] = final
    if changed:
        _propagate(model, named)
    return changed


def _named(inputs: Mapping[str, gs.Variable], wanted: Mapping[str, list[Dim]]) -> dict[str, int]:
    """The number of each dimension name."""
    named: dict[str, int] = {}
    for name, dims in wanted.items():
        for old, new in zip(inputs[name].shape or (), dims, strict=False):
            if isinstance(old, str) and old and isinstance(new, int) and named.setdefault(old, new) != new:
                raise UsageError(f"the dimension {old!r} of the model's inputs cannot be both {named[old]} and {new}")
    return named


def _propagate(model: Model, named: Mapping[str, int]) -> None:
    for graph in model.graphs():
        for tensor in tensors(graph).values():
            if isinstance(tensor, gs.Variable) and tensor.shape is not None:
                tensor.shape = [named.get(d, d) if isinstance(d, str) else d for d in tensor.shape]
    try:
        inferred = infer_from_inputs(model)
    except onnx.shape_inference.InferenceError as error:
        words = str(error).strip().splitlines()[-1][:300]
        raise ModelError(f"the model does not take inputs of this shape: {words}") from error
    for tensor, found in zip(model.graph.outputs, inferred, strict=True):
        if found is not None and tensor.shape is not None and len(found) == len(tensor.shape):
            tensor.shape = [
                new if isinstance(new, int) and not isinstance(old, int) else old
                for old, new in zip(tensor.shape, found, strict=True)
            ]
    model.touch()
