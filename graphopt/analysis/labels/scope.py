"""What a rule sees: one node, the labels on its inputs, and the ways to relate them.

An axis either carries a vector of labels, one per index, or None: nothing can be removed along it. Labels are only
numbers; which of them live or die together is settled at the end, in ``result``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.analysis.cost import Shape, is_constant
from graphopt.analysis.labels.builder import Axes, Axis, Builder, RawContraction, Slot
from graphopt.analysis.labels.registry import Unsupported


class NodeScope:
    """One node, for its rule."""

    def __init__(self, builder: Builder, index: int, node: gs.Node) -> None:
        self.builder, self.index, self.node = builder, index, node
        self.op, self.opset = node.op, builder.opset

    # --- reading ----------------------------------------------------------------------------------------

    def has(self, slot: int) -> bool:
        """Whether the optional input ``slot`` is given."""
        return slot < len(self.node.inputs) and bool(self.node.inputs[slot].name)

    def attr(self, name: str, default: Any = None) -> Any:
        value = self.node.attrs.get(name, default)
        return value.values if isinstance(value, gs.Constant) else value

    def is_const(self, slot: int) -> bool:
        return isinstance(self.node.inputs[slot], gs.Constant)

    def is_weight(self, slot: int) -> bool:
        """Whether an input is the same at every run: a constant, or one dequantized."""
        return is_constant(self.node.inputs[slot], self.builder.producers)

    def shape(self, slot: int) -> Shape:
        """Sizes of an input (None where unknown). Raises Unsupported when not even the rank is known."""
        return self._shape(self.node.inputs[slot])

    def out_shape(self, k: int = 0) -> Shape:
        return self._shape(self.node.outputs[k])

    def sizes(self, tensor: gs.Tensor, many: bool = False) -> Shape:
        """Sizes of a tensor of this node for one image (or for several), None where unknown."""
        shape = (self.builder.many if many else self.builder.one).get(tensor.name)
        return list(shape) if shape is not None else self._shape(tensor)

    def _shape(self, tensor: gs.Tensor) -> Shape:
        if isinstance(tensor, gs.Constant):
            return [int(d) for d in tensor.shape]
        shape = self.builder.shapes.get(tensor.name)
        if shape is None:
            raise Unsupported(f"the shape of {tensor.name!r} is not known")
        return shape

    def axes(self, slot: int = 0) -> Axes:
        """Labels of an input, by axis. A constant has none until a rule attaches some."""
        tensor = self.node.inputs[slot]
        found = self.builder.axes.get(tensor.name)
        if isinstance(tensor, gs.Constant) or not found:
            return [None] * len(self._shape(tensor))
        return list(found)

    def ints(self, slot: int, attr: str | None = None) -> list[int] | None:
        """Constant integers given as an input, or in older opsets as an attribute; None if not given.

        Raises Unsupported when they are computed at run time.
        """
        if attr is not None and attr in self.node.attrs:
            value = self.attr(attr)
            return [int(v) for v in np.asarray(value).ravel()]
        if not self.has(slot):
            return None
        values = self.values(slot)
        if values is None:
            raise Unsupported(
                f"its input {self.node.inputs[slot].name!r} is computed at run time; fold constants first"
            )
        return [int(v) for v in values.ravel()]

    def values(self, slot: int) -> np.ndarray | None:
        """Values of a constant input: an initializer, or what a Constant node gives."""
        tensor = self.node.inputs[slot]
        if isinstance(tensor, gs.Constant):
            return np.asarray(tensor.values)
        source = self.builder.producers.get(tensor.name)
        if source is not None and source.op == "Constant" and len(source.attrs) == 1:
            value = next(iter(source.attrs.values()))
            return np.asarray(value.values if isinstance(value, gs.Constant) else value)
        return None

    def axis(self, value: int, rank: int) -> int:
        """A possibly negative axis number as a position."""
        position = value + rank if value < 0 else value
        if not 0 <= position < rank:
            raise Unsupported(f"axis {value} is outside rank {rank}")
        return position

    # --- relating ---------------------------------------------------------------------------------------

    def fresh(self, size: int | None) -> np.ndarray:
        """Labels of channels that this node makes."""
        if size is None:
            raise Unsupported("its number of channels is not known")
        return self.builder.fresh(size, self.index)

    def hidden(self, size: int) -> np.ndarray:
        """Labels that reports do not speak of: those of a constant, or of padding."""
        return self.builder.fresh(size, None)

    def tie(self, a: Axis, b: Axis, why: str) -> Axis:
        """Couple two axes index by index; where one carries no labels, the other is locked. Returns either."""
        if a is None or b is None:
            self.lock(b if a is None else a, why)
            return b if a is None else a
        self.builder.tie(a, b)
        return a

    def attach(self, slot: int, axis: int, labels: Axis, why: str = "its parameter is not a constant") -> None:
        """Say that a parameter's axis is indexed by ``labels`` (None: it stays as it is)."""
        tensor = self.node.inputs[slot]
        if not isinstance(tensor, gs.Constant):
            self.tie(self.axes(slot)[axis], labels, why)
        elif labels is not None:
            size = int(tensor.shape[axis])
            if size != labels.size:
                raise Unsupported(f"input {tensor.name!r} has {size} entries on axis {axis} for {labels.size} channels")
            place = Slot(self.index, slot, axis)
            known = self.builder.slots.get(place)
            if known is None:
                self.builder.slots[place] = labels
            else:
                self.builder.tie(known, labels)

    def batch(self, a: Axis, b: Axis) -> None:
        """Say that a product of two activations repeats over an axis that both have."""
        if self.builder.probes is not None and a is not None and b is not None:
            self.builder.probes.batched.append(a)

    def lock(self, labels: Axis, why: str) -> None:
        self.builder.lock(labels, self.index, why)

    def lock_axes(self, axes: Axes, why: str) -> None:
        for labels in axes:
            self.lock(labels, why)

    def out(self, axes: Axes, k: int = 0) -> None:
        """Set the labels of output ``k``."""
        if k < len(self.node.outputs) and self.node.outputs[k].name:
            self.builder.axes[self.node.outputs[k].name] = list(axes)

    def contraction(
        self, scale: int, axes: list[Axis], inputs: list[tuple[int, int, Axis]], sizes: list[int | None]
    ) -> None:
        """Record a sum over channels: ``axes`` multiply its MACs (``sizes`` stand in for those without labels)."""
        for labels, size in zip(axes, sizes, strict=True):
            if labels is None:
                scale *= size or 1
        masked = tuple((s, a, v) for s, a, v in inputs if v is not None and not self.is_weight(s))
        self.builder.contractions.append(
            RawContraction(self.index, scale, tuple(v for v in axes if v is not None), masked)
        )
