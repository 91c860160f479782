"""Random small graphs: folding keeps the outputs, and folding twice is folding once."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphopt import Model
from graphopt.ir import infer_shapes

UNARY = ("Relu", "Neg", "Abs", "Identity", "Sigmoid", "Dropout", "Cast", "Transpose")
BINARY = ("Add", "Mul", "Sub", "Max", "Concat")


class Builder:
    """Draws nodes over tensors of shape [N,4,3,3] (data) or [4,3,3] or [1,4,1,1] (constants)."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.data = ["x"]
        self.constant: list[str] = []
        self.rng = np.random.default_rng(draw(st.integers(0, 99)))

    def pick(self, names: list[str]) -> str:
        return self.draw(st.sampled_from(names))

    def weight(self, *shape: int, low: float = -1.0) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(self.rng.uniform(low, 1.5, shape).astype(np.float32), name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attrs: object) -> str:
        k = len(self.nodes)
        names = [f"t{k}", *(f"t{k}_{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n{k}", **attrs))
        return names[0]

    def step(self) -> None:
        kind = self.draw(st.sampled_from(("const", "unary", "binary", "conv", "norm", "affine", "shape", "reshape")))
        if kind == "const":
            if self.constant and self.draw(st.booleans()):
                op = self.draw(st.sampled_from(("Exp", "Neg", "Identity", "Add", "Mul")))
                inputs = [self.pick(self.constant) for _ in range(2 if op in ("Add", "Mul") else 1)]
                self.constant.append(self.node(op, *inputs))
            elif self.draw(st.booleans()):
                self.constant.append(self.weight(1, 4, 1, 1))
            else:
                value = numpy_helper.from_array(self.rng.normal(size=(1, 4, 1, 1)).astype(np.float32))
                self.constant.append(self.node("Constant", value=value))
        elif kind == "unary":
            op = self.draw(st.sampled_from(UNARY))
            attrs: dict[str, object] = {"to": 1} if op == "Cast" else {}
            if op == "Transpose":
                attrs = {"perm": self.draw(st.sampled_from(([0, 1, 2, 3], [0, 1, 3, 2])))}
            self.data.append(self.node(op, self.pick(self.data), **attrs))
        elif kind == "binary":
            op = self.draw(st.sampled_from(BINARY))
            a, b = self.pick(self.data), self.pick(self.data)
            if op == "Concat":
                self.data.append(self.node("Concat", a, axis=1))
            else:
                self.data.append(self.node(op, a, b))
        elif kind == "conv":
            inputs = [self.pick(self.data), self.weight(4, 4, 3, 3)]
            if self.draw(st.booleans()):
                inputs.append(self.weight(4))
            if self.draw(st.booleans()):
                pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), f"p{len(self.weights)}")
                self.weights.append(pads)
                inputs[0] = self.node("Pad", inputs[0], pads.name)
                self.data.append(self.node("Conv", *inputs))
            else:
                self.data.append(self.node("Conv", *inputs, pads=[1, 1, 1, 1]))
        elif kind == "norm":
            stats = [self.weight(4, low=0.5), self.weight(4), self.weight(4), self.weight(4, low=0.5)]
            self.data.append(self.node("BatchNormalization", self.pick(self.data), *stats))
        elif kind == "affine" and self.constant:
            op = self.draw(st.sampled_from(("Add", "Mul", "Sub")))
            pair = [self.pick(self.data), self.pick(self.constant)]
            self.data.append(self.node(op, *(pair if self.draw(st.booleans()) else reversed(pair))))
        elif kind == "shape":
            s = self.node("Shape", self.pick(self.data))
            index = numpy_helper.from_array(np.array(self.draw(st.integers(0, 3))), f"i{len(self.weights)}")
            self.weights.append(index)
            picked = self.node("Cast", self.node("Gather", s, index.name), to=1)
            self.data.append(self.node("Mul", self.pick(self.data), picked))
        elif kind == "reshape":
            source = self.pick(self.data)
            zero = numpy_helper.from_array(np.array([0]), f"z{len(self.weights)}")
            self.weights.append(zero)
            rest = numpy_helper.from_array(np.array([4, 3, -1]), f"r{len(self.weights)}")
            self.weights.append(rest)
            batch = self.node("Gather", self.node("Shape", source), zero.name)
            self.data.append(self.node("Reshape", source, self.node("Concat", batch, rest.name, axis=0)))


@st.composite
def models(draw: st.DrawFn) -> Model:
    build = Builder(draw)
    for _ in range(draw(st.integers(1, 10))):
        build.step()
    tensors = [t for n in build.nodes for t in n.output if t in build.data]
    outputs = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=2, unique=True)) if tensors else []
    if not outputs:
        outputs = [build.node("Relu", "x")]
    used = {t for n in build.nodes for t in n.input}
    graph = helper.make_graph(
        build.nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 3, 3])],
        [helper.make_tensor_value_info(t, TensorProto.FLOAT, ["N", 4, 3, 3]) for t in outputs],
        [w for w in build.weights if w.name in used],
    )
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    infer_shapes(model)
    return model


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(model=models())
def test_random_graphs(fold, model):
    found = fold(model, rtol=1e-4)  # deep random products cancel: float noise relative to the output grows
    assert not {"Identity", "Cast", "Dropout"} & set(found.ops) - {s.op for s in found.result.skipped} - {"Cast"}
    assert "Shape" not in found.ops or any(s.op == "Shape" for s in found.result.skipped)
