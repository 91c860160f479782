"""Which initializers train: by what their readers do with them, not by their names."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.ir.model import Model
from graphopt.ir.values import peek
from graphopt.ir.view import is_standard, subgraphs
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
        elif kind in LIMITS and all(n.op == "DequantizeLinear" and k == 0 for n, k in uses) and len(uses) == 1:
            roles.integers[name] = uses[0][0]
        elif kind in FLOATS and all(n.op in ("QuantizeLinear", "DequantizeLinear") and k == 1 for n, k in uses):
            roles.scales[name] = name
    _tie_biases(roles, constants)
    for bias in roles.biases.values():
        roles.scales.pop(bias.scale, None)
    _tie_scales(model, roles, constants)
    return roles


def _is_weight(node: gs.Node, position: int, constant: gs.Constant) -> bool:
    if not is_standard(node):
        return False
    if node.op in _ELEMENTWISE:
        return int(np.prod(constant.shape)) > 1
    return position in _WEIGHTS.get(node.op, ())


def _source(node: gs.Node, position: int) -> gs.Node | None:
    """The DequantizeLinear that writes an input of a node."""
    if len(node.inputs) <= position or not node.inputs[position].inputs:
        return None
    producer = node.inputs[position].inputs[0]
    return producer if producer.op == "DequantizeLinear" else None


def _tie_biases(roles: Roles, constants: dict[str, gs.Constant]) -> None:
    for name, reader in roles.integers.items():
        if str(constants[name].dtype) != "int32" or not isinstance(reader.inputs[1], gs.Constant):
            continue
        for user in reader.outputs[0].outputs:
            x, w = _source(user, 0), _source(user, 1)
            if user.op not in ("Conv", "ConvTranspose", "Gemm") or x is None or w is None:
                continue
            parts = [t for t in (x.inputs[1], w.inputs[1]) if isinstance(t, gs.Constant)]
            if len(parts) != 2:
                continue
            scale = peek(reader.inputs[1]).reshape(-1)
            product = (peek(parts[0]) * peek(parts[1])).reshape(-1)
            if product.size in (1, scale.size) and np.allclose(product, scale, rtol=1e-4, atol=0):
                roles.biases[name] = TiedBias(reader.inputs[1].name, parts[0].name, parts[1].name)


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
