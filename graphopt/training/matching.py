"""What of a student can be compared with its teacher: logits, and the outputs of blocks that both have."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from graphopt.ir.model import Model

HEAVY = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))


def logits(model: Model) -> str:
    """The tensor with the scores of the first output: what goes into a Softmax that ends the model."""
    output = model.outputs[0]
    node = output.inputs[0] if output.inputs else None
    while node is not None and node.op in ("Identity", "Squeeze", "Reshape", "Flatten", "DequantizeLinear"):
        inner = node.inputs[0]
        node = inner.inputs[0] if inner.inputs else None
    while node is not None and node.op == "QuantizeLinear":
        inner = node.inputs[0]
        node = inner.inputs[0] if inner.inputs else None
    if node is not None and node.op == "Softmax" and not isinstance(node.inputs[0], gs.Constant):
        return node.inputs[0].name
    return output.name


def cuts(model: Model) -> list[str]:
    """Tensors through which everything goes, in order: one before each of the next layers with weights.

    Found in one sweep that counts the computed tensors with readers still to come. Linear.
    """
    left: dict[str, int] = {}
    for node in model.graph.nodes:
        for tensor in node.inputs:
            if not isinstance(tensor, gs.Constant) and tensor.name:
                left[tensor.name] = left.get(tensor.name, 0) + 1
    depends = {t.name for t in model.inputs}
    alive = {name for name in depends if left.get(name)}
    found: list[str] = []
    latest: str | None = None
    for node in model.graph.nodes:
        if node.op in HEAVY and latest is not None:
            found.append(latest)
            latest = None
        reads = [t.name for t in node.inputs if t.name in left and not isinstance(t, gs.Constant)]
        for name in reads:
            left[name] -= 1
            if not left[name]:
                alive.discard(name)
        if not depends.intersection(reads):
            continue  # computed from constants alone: part of whoever reads it
        if node.op in ("Shape", "Size"):
            continue  # says nothing of the image
        for tensor in node.outputs:
            depends.add(tensor.name)
            if left.get(tensor.name):
                alive.add(tensor.name)
        if len(alive) == 1 and node.op not in ("QuantizeLinear",):
            latest = next(iter(alive))
    return [*found, latest] if latest is not None else found


def common(student: Model, teacher: Model, most: int = 12) -> list[str]:
    """Block outputs of the student that the teacher computes as well, at most ``most``, spread evenly over depth."""
    theirs = {t.name for n in teacher.graph.nodes for t in n.outputs}
    skip = {t.name for t in (*student.inputs, *student.outputs)}
    names = [n for n in cuts(student) if n in theirs and n not in skip]
    if len(names) <= most:
        return names
    return [names[round((k + 1) * len(names) / most) - 1] for k in range(most)]
