"""Constant operands of operators, read by their meaning and in whatever form the opset gives them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.rewrite.shapes import static
from graphopt.rewrite.workbench import Workbench

# They change a tensor's shape and leave its values in order.
RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def permutation(node: gs.Node) -> list[int] | None:
    """The order of axes of a Transpose; None where it depends on a rank that is unknown."""
    perm = node.attrs.get("perm")
    if perm is not None:
        return [int(p) for p in perm]
    shape = node.inputs[0].shape
    return None if shape is None else list(reversed(range(len(shape))))


def constant_axes(bench: Workbench, node: gs.Node) -> list[int] | None:
    """Axes of an operator, as attribute or as constant second input; None if unknown or left out."""
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        axes = bench.array(node.inputs[1])
    return None if axes is None else [int(a) for a in np.asarray(axes).reshape(-1)]


def is_row(bias: np.ndarray, width: int) -> bool:
    """Whether what a Gemm of ``width`` columns adds is the same in each row."""
    return bias.size == 1 or (bias.size == width and bias.shape[-1] == width)


def constant_slices(bench: Workbench, node: gs.Node) -> dict[int, tuple[int, int, int]] | None:
    """Start, end and step by axis of a Slice with constant bounds; None if unknown."""
    if "starts" in node.attrs:  # before opset 10
        given = [np.asarray(node.attrs[k]) if k in node.attrs else None for k in ("starts", "ends", "axes")]
        return _by_axis(node, given)
    given = [bench.array(t) if t.name else None for t in node.inputs[1:]]
    if len(given) < 2 or any(g is None for g, t in zip(given, node.inputs[1:], strict=True) if t.name):
        return None
    return _by_axis(node, given)


def _by_axis(node: gs.Node, given: list[np.ndarray | None]) -> dict[int, tuple[int, int, int]] | None:
    starts, ends = (np.asarray(g).reshape(-1).tolist() for g in given[:2])
    axes = given[2].reshape(-1).tolist() if len(given) > 2 and given[2] is not None else list(range(len(starts)))
    steps = given[3].reshape(-1).tolist() if len(given) > 3 and given[3] is not None else [1] * len(starts)
    if any(a < 0 for a in axes):
        shape = node.inputs[0].shape
        if shape is None:
            return None
        axes = [a % len(shape) for a in axes]
    return {a: (s, e, p) for a, s, e, p in zip(axes, starts, ends, steps, strict=True)}


def reduced_axes(bench: Workbench, node: gs.Node, rank: int) -> list[int] | str:
    """Axes that a reduction of a tensor of ``rank`` goes over, sorted and not negative; or why they are unknown."""
    found = constant_axes(bench, node)
    if found is None and len(node.inputs) > 1 and node.inputs[1].name:
        return f"the axes of {node.name!r} are not constant"
    if not found:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({a % rank for a in found})


def scalar_bounds(bench: Workbench, node: gs.Node) -> str | None:
    """Give a Range scalars where it reads vectors of one element.

    ONNX Runtime runs the latter, but loads no model where such a bound is an initializer: what makes one of it must
    mend the Range first.
    """
    for index, tensor in enumerate(node.inputs):
        if static(tensor) != (1,):
            continue
        array = bench.array(tensor)
        if array is not None:
            bench.set_input(node, index, bench.model.constant(f"{tensor.name}_scalar", array.reshape(())))
        elif bench.model.opset >= 13:
            axes = bench.model.constant(f"{tensor.name}_axes", np.array([0], np.int64))
            bench.set_input(node, index, bench.emit("Squeeze", [tensor, axes], node))
        else:
            bench.set_input(node, index, bench.emit("Squeeze", [tensor], node, axes=[0]))
    return None
