"""Reshape targets that a model computes from its batch size, written as constants with 0 and -1."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.passes.fold.shape_values import Element, ShapeValues, dims
from graphopt.rewrite import Workbench


def constant_target(values: ShapeValues, bench: Workbench, node: gs.Node) -> str | None:
    """Give a Reshape a constant target if that is provably the computed one."""
    if len(node.inputs) < 2 or isinstance(node.inputs[1], gs.Constant):
        return None
    value = values.of(bench, node.inputs[1])
    target = None
    if value is not None and not value.scalar:
        target = solve(value.elements, dims(node.inputs[0]), bool(node.attrs.get("allowzero", 0)))
    if target is None:
        return "its target shape is computed, and not provably one that a constant could express"
    new = bench.model.constant(f"{node.name}_shape", np.array(target, np.int64))
    bench.put_input(node, 1, new)
    return None


def solve(elements: tuple[Element, ...], source: tuple[Element, ...] | None, allow_zero: bool) -> list[int] | None:
    """The constant target equal to ``elements`` for an input of shape ``source``, or None if there is no proof.

    An unknown element is written as 0 where it is the input's own dimension at that position, and one more as -1:
    the other elements and the number of values then leave it no other size.
    """
    target: list[int] = []
    inferred = [i for i, e in enumerate(elements) if isinstance(e, int) and e < 0]
    for i, element in enumerate(elements):
        if isinstance(element, int):
            target.append(element)
        elif element is not None and source is not None and not allow_zero and element == _at(source, i):
            target.append(0)
        else:
            inferred.append(i)
            target.append(-1)
    if len(inferred) > 1:
        return None
    if inferred and any(isinstance(e, int) and e == 0 for e in elements) and allow_zero:
        return None  # nothing can be inferred from zero values
    return target


def _at(source: tuple[Element, ...], index: int) -> Element:
    return source[index] if index < len(source) else None
