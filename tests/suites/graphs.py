"""Random graphs in the manner of exported classifiers, drawn by hypothesis.

A graph is a number of blocks (``blocks.py``), each a few nodes over tensors that are there already. Shapes come from
ONNX's own inference, with a prime number in the place of an open batch: where it divides a size, the size is open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import assume
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt import Model
from graphopt.ir import infer_shapes

T = TypeVar("T")
OPSETS = {11: 6, 13: 7, 17: 8, 21: 10}  # each with the IR version of its time
BATCH = 1009  # stands for the open batch
_LARGEST = 4096  # elements of an image of a tensor


class Misfit(Exception):
    """A block has no tensor that it can work on."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that nodes may read. ``exact``: no rewrite can bring float noise into it, so it may be rounded."""

    name: str
    shape: tuple[int, ...]
    dtype: int = TensorProto.FLOAT
    exact: bool = False

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def type(self) -> onnx.TypeProto:
        return helper.make_tensor_type_proto(self.dtype, self.shape)


@dataclass
class Builder:
    """The graph so far, and what blocks need to add to it."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    opset: int
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, TensorProto] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)  # of the weights, and of some dropped with their block
    tensors: dict[str, Tensor] = field(default_factory=dict)
    data: list[Tensor] = field(default_factory=list)  # float tensors, for blocks to read
    _serial: int = 0

    # --- choices --------------------------------------------------------------------------------------------

    def choice(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(options))

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def pick(self, fits: Callable[[Tensor], bool] = lambda t: True) -> Tensor:
        """A tensor for a block to read, rather a late one."""
        found = [t for t in self.data if fits(t)]
        if not found:
            raise Misfit
        return found[-1] if self.number(0, 2) else self.choice(found)

    def image(self, least: int = 1) -> Tensor:
        """A tensor [batch, channels, height, width] of at least ``least`` rows and columns."""
        return self.pick(lambda t: t.rank == 4 and all(d % BATCH for d in t.shape[1:]) and min(t.shape[2:]) >= least)

    # --- tensors and nodes ----------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        self._serial += 1
        return f"{stem}{self._serial}"

    def constant(self, array: np.ndarray) -> Tensor:
        """An initializer, new or one with the same values, or at times a Constant node or a computed one."""
        if any(d % BATCH == 0 for d in array.shape):
            raise Misfit
        form = self.number(0, 9)
        same = [k for k, w in self.weights.items() if form < 5 and _equal(self.values[k], array)]
        if same:
            return self.tensors[same[0]]
        tensor = Tensor(self.name("w"), array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))
        self.tensors[tensor.name] = tensor
        if form == 9:
            node = helper.make_node("Constant", [], [tensor.name], self.name("n"), value=numpy_helper.from_array(array))
            self.nodes.append(node)
            return tensor
        self.values[tensor.name] = array
        self.weights[tensor.name] = numpy_helper.from_array(array, tensor.name)
        return self.node("Identity", tensor) if form == 8 else tensor

    def floats(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        """A constant with random values; at times one that another layer has as well."""
        if self.number(0, 3) == 0:
            alike = [
                k
                for k in self.weights
                if self.values[k].shape == shape and self.values[k].dtype == np.float32 and self.values[k].min() >= low
            ]
            if alike:
                return self.tensors[alike[-1]]
        return self.constant(self.rng.uniform(low, high, shape).astype(np.float32))

    def scalar(self, value: float, shape: tuple[int, ...] = ()) -> Tensor:
        return self.constant(np.full(shape, value, np.float32))

    def ints(self, *values: int) -> Tensor:
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, *inputs: Tensor | None, outputs: int = 1, **attrs: Any) -> Tensor:
        """Append a node and return its first output, not yet among ``data``."""
        return self.split(op, *inputs, outputs=outputs, **attrs)[0]

    def split(self, op: str, *inputs: Tensor | None, outputs: int, **attrs: Any) -> list[Tensor]:
        """Append a node and return its outputs. Raises Misfit where inference finds it wrong, or its result large."""
        names = [self.name("t") for _ in range(outputs)]
        read = [t.name if t else "" for t in inputs]
        node = helper.make_node(op, read, names, self.name(op.lower()), **attrs)
        given = [t for t in inputs if t]
        try:
            found = onnx.shape_inference.infer_node_outputs(
                onnx.defs.get_schema(op, self.opset, ""),
                node,
                {t.name: t.type for t in given},
                {t.name: self.weights[t.name] for t in given if t.name in self.weights},
                opset_imports=[helper.make_opsetid("", self.opset)],
            )
        except onnx.shape_inference.InferenceError as error:
            raise Misfit from error
        made = []
        for name in names:
            kind = found[name].tensor_type if name in found else None
            if kind is None or not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
                raise Misfit
            shape = tuple(d.dim_value for d in kind.shape.dim)
            if 0 in shape or real(int(np.prod(shape)), 1) > _LARGEST:
                raise Misfit
            made.append(Tensor(name, shape, kind.elem_type))
        self.nodes.append(node)
        self.tensors.update({t.name: t for t in made})
        return made

    def reshaped(self, source: Tensor, target: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A Reshape to a target that inference cannot read."""
        output = Tensor(self.name("t"), shape, source.dtype)
        self.nodes.append(helper.make_node("Reshape", [source.name, target.name], [output.name], self.name("reshape")))
        self.tensors[output.name] = output
        return output

    def axes(self, op: str, source: Tensor, axes: Sequence[int], since: int = 13, **attrs: Any) -> Tensor:
        """An operator whose axes are an attribute, and since an opset an input."""
        if self.opset >= since:
            return self.node(op, source, self.ints(*axes), **attrs)
        return self.node(op, source, axes=list(axes), **attrs)

    def add(self, tensor: Tensor, exact: bool = False) -> None:
        """Let later blocks read a tensor."""
        self.data.append(Tensor(tensor.name, tensor.shape, tensor.dtype, exact))

    def attempt(self, block: Callable[[Builder], None]) -> None:
        """Append a block, or nothing if it does not fit."""
        kept = len(self.nodes), dict(self.weights), dict(self.tensors), len(self.data)
        try:
            block(self)
        except Misfit:
            del self.nodes[kept[0] :], self.data[kept[3] :]
            self.weights, self.tensors = kept[1], kept[2]

    # --- the model ------------------------------------------------------------------------------------------

    def model(self) -> Model:
        """The graph with most of what nothing reads as outputs."""
        read = {k for n in self.nodes for k in _reads(n)}
        made = [t for n in self.nodes for t in map(self.tensors.get, n.output) if t]
        chosen = {t.name: t for t in made if t.name not in read and self.number(0, 5)}  # else it is dead
        for _ in range(self.number(0, 2) // 2 if chosen else 1):  # one that nodes read as well
            extra = self.choice(made)
            chosen.setdefault(extra.name, extra)
        kept = [w for k, w in self.weights.items() if k in read]
        inputs = [value_info(t) for k, t in self.tensors.items() if k.startswith("x")]
        # Another exponent makes NaN of negative values, and other scales of a Resize do not fit.
        fixed = {k for n in self.nodes if n.op_type in ("Pow", "Resize") for k in n.input}
        if (free := [w for w in kept if w.name not in fixed]) and self.number(0, 9) == 0:
            weight = self.choice(free)  # a weight that the caller may replace is no constant
            inputs.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
        outputs = [value_info(t, known=self.number(0, 3) > 0) for t in chosen.values()]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, kept)
        imports = [helper.make_opsetid("", self.opset)]
        model = Model.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=OPSETS[self.opset]))
        infer_shapes(model)
        return model


def real(dim: int, batch: int) -> int:
    """A size with a number in the place of the open batch."""
    while dim % BATCH == 0:
        dim = dim // BATCH * batch
    return dim


def value_info(tensor: Tensor, known: bool = True) -> onnx.ValueInfoProto:
    """The type of a tensor, its open sizes named (the batch) or unknown; all of them unknown if not ``known``."""
    dims = [(("N" if d == BATCH else None) if d % BATCH == 0 else d) if known else None for d in tensor.shape]
    return helper.make_tensor_value_info(tensor.name, tensor.dtype, dims)


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and np.array_equal(one, other)


def _reads(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attr in node.attribute:
        for inner in attr.g.node:
            names |= _reads(inner)
        names |= {o.name for o in attr.g.output}
    return names


@st.composite
def models(draw: Callable[[st.SearchStrategy[Any]], Any], most: int = 15) -> Model:
    """A model of up to ``most`` blocks."""
    from blocks import BLOCKS

    opset = draw(st.sampled_from(list(OPSETS)))
    build = Builder(draw, opset, np.random.default_rng(draw(st.integers(0, 999))))
    batch = draw(st.sampled_from((BATCH, BATCH, BATCH, 1, 2)))
    for k in range(draw(st.sampled_from((1, 1, 2)))):
        shape = (batch, 4, *draw(st.sampled_from(((6, 6), (5, 6), (4, 4)))))
        build.tensors[f"x{k}"] = tensor = Tensor(f"x{k}", shape)
        build.add(tensor, exact=True)
    for _ in range(draw(st.integers(1, most))):
        build.attempt(draw(st.sampled_from(BLOCKS)))
    assume(build.nodes)
    return build.model()
