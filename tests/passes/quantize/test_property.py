"""Random networks: whatever the operators, the int8 model is valid, close to the float one, and fused as planned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt import Model

# Each takes a tensor [N,4,8,8] and gives one of the same shape.
_GATED = "{y}_g = GlobalAveragePool({x}) {y} = Mul({x}, {y}_g)"
_HIGHEST = 4  # power of the input: a few values of higher ones dwarf all others, and 256 levels cannot show both
ALIKE = [
    "{y} = Conv<pads=[1,1,1,1]>({x}, w3, b)",
    "{y} = Conv({x}, w1)",
    "{y} = Conv<group=4, pads=[1,1,1,1]>({x}, wd)",
    "{y} = Conv<group=2>({x}, wg, b)",
    "{y} = Relu({x})",
    "{y} = Clip({x}, lo, hi)",
    "{y} = Clip({x}, , hi)",
    "{y} = HardSwish({x})",
    "{y} = HardSigmoid({x})",
    "{y} = Sigmoid({x})",
    "{y} = LeakyRelu({x})",
    "{y} = Add({x}, {z})",
    "{y} = Mul({x}, {z})",
    "{y} = Add({x}, {x})",
    "{y} = Mul({x}, k)",
    "{y} = Abs({x})",
    "{y} = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({x})",
    "{y} = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({x})",
    "{y}_c = Concat<axis=1>({x}, {z}) {y} = Conv({y}_c, w8)",
    "{y}_a, {y}_b = Split<axis=1>({x}) {y} = Concat<axis=1>({y}_b, {y}_a)",
    "{y}_p = Pad({x}, pads) {y} = Conv({y}_p, w3)",
    _GATED,
    "{y}_t = Transpose<perm=[0,2,3,1]>({x}) {y}_m = MatMul({y}_t, wm) {y} = Transpose<perm=[0,3,1,2]>({y}_m)",
    "{y} = ConvTranspose<pads=[1,1,1,1]>({x}, w3)",
    "{y} = Identity({x})",
    "{y} = Tanh({x})",
]
HEADS = [
    "y = Identity({x})",
    "h = GlobalAveragePool({x}) f = Flatten(h) y = Gemm<transB=1>(f, wf)",
    "h = ReduceMean<axes=[2,3], keepdims=0>({x}) m = MatMul(h, wc) y = Add(m, b)",
    "h = GlobalAveragePool({x}) f = Flatten(h) y = Softmax(f)",
]


@st.composite
def networks(draw) -> tuple[str, int]:
    names, lines = ["x"], []
    degree = {"x": 1}
    for i in range(draw(st.integers(1, 7))):
        first, second = draw(st.sampled_from(names[-2:])), draw(st.sampled_from(names))
        what = draw(st.sampled_from(ALIKE))
        factors = {"{y} = Mul({x}, {z})": (first, second), _GATED: (first, first)}.get(what)
        if factors is not None and sum(degree[f] for f in factors) > _HIGHEST:
            what, factors = "{y} = Identity({x})", None
        degree[f"t{i}"] = sum(degree[f] for f in factors) if factors else max(degree[first], degree[second])
        lines.append(what.format(x=first, z=second, y=f"t{i}"))
        names.append(f"t{i}")
    if not any("= Conv<" in line or "= Conv(" in line or "MatMul" in line for line in lines):
        lines.append(f"last = Conv({names[-1]}, w1)")
        names.append("last")
    head = draw(st.integers(0, len(HEADS) - 1))
    lines.append(HEADS[head].format(x=names[-1]))
    return "\n".join(lines), head


CONSTANTS = {
    "w1": (1, 4, 4, 1, 1),
    "w3": (2, 4, 4, 3, 3),
    "wd": (3, 4, 1, 3, 3),
    "wg": (4, 4, 2, 1, 1),
    "w8": (5, 4, 8, 1, 1),
    "wm": (6, 4, 4),
    "wf": (7, 4, 4),
    "wc": (8, 4, 4),
    "b": (9, 4),
    "k": (10, 1, 4, 1, 1),
    "lo": "float lo = {0}",
    "hi": "float hi = {6}",
    "pads": "int64[8] pads = {0,0,1,1,0,0,1,1}",
}
SHAPES = ["[N,4,8,8]", "[N,4]", "[N,4]", "[N,4]"]


@pytest.fixture
def network(graph):
    def build(body: str, head: int) -> Model:
        return Model.from_text(graph(body, "[N,4,8,8]", SHAPES[head], **CONSTANTS))

    return build


@given(networks())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_networks(network, quantized, case):
    model = network(*case)
    # Divide the weights, or values explode with depth.
    for constant in model.constants():
        if constant.name.startswith("w"):
            fan_in = int(np.prod(constant.values.shape[1:]))
            constant.values = (constant.values / np.sqrt(fan_in)).astype(np.float32)
    out = quantized(model, 16, 4, 8, 8)
    assert "not_fused" not in out.result.metrics
    assert np.isfinite(out.output).all()
    # Relative to the largest value: of noise averaged over an image little but rounding is left.
    assert np.sqrt(np.mean((out.output - out.reference) ** 2)) < 0.05 * np.abs(out.reference).max() + 1e-5
