"""Which initializers train: by what their readers do with them, not by their names."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.model import Model
from graphopt.ir.values import peek
from graphopt.ir.view import is_standard, subgraphs
from graphopt.training.matching import HEAVY
from graphopt.training.ops.quantization import LIMITS

# Inputs that hold weights. Any other constant is part of the operator: a bound, a shape, a statistic.
_WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
}
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")  # a constant of one element is a formula's; of more, a bias or a gain
# Integers pass through these unchanged: the scales on both sides must stay equal for a runtime to skip the pair.
_MOVES = frozenset("MaxPool Reshape Transpose Flatten Squeeze Unsqueeze Slice Gather Identity Split Resize".split())
FLOATS = ("float32", "float16")


@dataclass(frozen=True)
class TiedBias:
    """An int32 bias, whose scale is the product of two others (``input``, ``weight``: initializer names)."""

    scale: str
    input: str
    weight: str


@dataclass
class Roles:
    """``weights``: float initializers. ``integers``: weights kept as integers, with the DequantizeLinear that reads
    them. ``scales``: each learnable scale, with the one that it is kept equal to (itself, or another of the same
    values). ``biases``: by the name of the integers."""

    weights: list[str] = field(default_factory=list)
    integers: dict[str, gs.Node] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    biases: dict[str, TiedBias] = field(default_factory=dict)


def find_roles(model: Model) -> Roles:
    """Read the roles off the main graph. What a subgraph reads, or is a graph output, does not train."""
    readers: dict[str, list[tuple[gs.Node, int]]] = defaultdict(list)
    constants: dict[str, gs.Constant] = {}
    for node in model.graph.nodes:
        for k, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant):
                constants[tensor.name] = tensor
                readers[tensor.name].append((node, k))
    fixed = set(model.captured()) | {t.name for t in model.outputs}
    roles = Roles()
    for name, constant in constants.items():
        if name in fixed or any(subgraphs(n) for n, _ in readers[name]):
            continue
        kind = str(np.dtype(constant.dtype)) if constant.dtype is not None else ""
        uses = readers[name]
        if kind in FLOATS and all(_is_weight(n, k, constant) for n, k in uses):
            roles.weights.append(name)
        elif kind in LIMITS and len(uses) == 1 and (reader := _dequantizer(*uses[0])) is not None:
            roles.integers[name] = reader
        elif kind in FLOATS and all(n.op in ("QuantizeLinear", "DequantizeLinear") and k == 1 for n, k in uses):
            roles.scales[name] = name
    _tie_biases(model, roles, constants, {name: len(uses) for name, uses in readers.items()})
    _tie_scales(model, roles, constants)
    return roles


def _is_weight(node: gs.Node, position: int, constant: gs.Constant) -> bool:
    if not is_standard(node):
        return False
    if node.op in _ELEMENTWISE:
        return int(np.prod(constant.shape)) > 1
    return position in _WEIGHTS.get(node.op, ())


def _dequantizer(node: gs.Node, position: int) -> gs.Node | None:
    """The DequantizeLinear that reads integers, at once or widened by a Cast: int4 is stored so for int8 kernels."""
    if node.op == "Cast" and len(node.outputs[0].outputs) == 1 and str(np.dtype(node.outputs[0].dtype)) in LIMITS:
        node = node.outputs[0].outputs[0]
    alone = [t for t in node.inputs[1:] if any(t is x for x in node.inputs[:1])]
    return node if position == 0 and node.op == "DequantizeLinear" and not alone else None


def _source(node: gs.Node, position: int) -> gs.Node | None:
    """The DequantizeLinear that writes an input of a node."""
    if len(node.inputs) <= position or not node.inputs[position].inputs:
        return None
    producer = node.inputs[position].inputs[0]
    return producer if producer.op == "DequantizeLinear" else None


def _tie_biases(model: Model, roles: Roles, constants: dict[str, gs.Constant], readers: dict[str, int]) -> None:
    """A bias's scale follows the two that it is the product of; where it cannot, all three stay as they are."""
    for user in model.graph.nodes:
        sources = [_source(user, k) for k in range(3)]
        bias = sources[2]
        if user.op not in ("Conv", "ConvTranspose", "Gemm") or bias is None or str(bias.inputs[0].dtype) != "int32":
            continue
        x, w, b = (n.inputs[1].name if n is not None and n.inputs[1].name in constants else None for n in sources)
        roles.scales.pop(b or "", None)
        name = bias.inputs[0].name
        if (
            x
            and w
            and b
            and name in roles.integers
            and readers[b] == 1
            and _is_product(*(constants[n] for n in (x, w, b)))
        ):
            roles.biases[name] = TiedBias(b, x, w)
            continue
        for scale in filter(None, (x, w)):
            roles.scales.pop(scale, None)


def _is_product(x: gs.Constant, w: gs.Constant, b: gs.Constant) -> bool:
    product, scale = (peek(x) * peek(w)).reshape(-1), peek(b).reshape(-1)
    return product.size in (1, scale.size) and np.allclose(product, scale, rtol=1e-4, atol=0)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b)


def _tie_scales(model: Model, roles: Roles, constants: dict[str, gs.Constant]) -> None:
    """Scales on both sides of an operator that only moves values, equal now, stay equal."""

    def root(name: str) -> str:
        while roles.scales[name] != name:
            name = roles.scales[name]
        return name

    for node in model.graph.nodes:
        if node.op not in _MOVES:
            continue
        before = _source(node, 0)
        after = [n for t in node.outputs for n in t.outputs if n.op == "QuantizeLinear"]
        for other in after if before is not None else []:
            assert before is not None
            names = [n.inputs[1].name for n in (before, other)]
            if all(n in roles.scales for n in names) and _same(*(peek(constants[n]) for n in names)):
                roles.scales[root(names[1])] = root(names[0])
    for name in roles.scales:
        roles.scales[name] = root(name)


def depth(model: Model) -> int:
    """The most layers with weights of their own that lie one behind the other. Linear."""
    deep: dict[str, int] = {}
    for node in model.graph.nodes:  # in topological order
        before = max((deep.get(t.name, 0) for t in node.inputs), default=0)
        layer = node.op in HEAVY and any(_constant(t) for t in node.inputs[1:2])
        deep.update(dict.fromkeys((t.name for t in node.outputs), before + layer))
    return max((deep.get(t.name, 0) for t in model.outputs), default=0)


def _constant(tensor: gs.Tensor) -> bool:
    """Whether a tensor is constant, perhaps dequantized."""
    while isinstance(tensor, gs.Variable):
        if len(tensor.inputs) != 1 or tensor.inputs[0].op not in ("DequantizeLinear", "Cast", "Identity"):
            return False
        tensor = tensor.inputs[0].inputs[0]
    return True
