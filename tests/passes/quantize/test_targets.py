"""What the same network becomes for each target."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from graphopt import Model
from graphopt.runtime.target import get_target
from graphopt.runtime.targets import TARGETS

BODY = """
  a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a)
  c = Conv<pads=[1,1,1,1]>(r, v, b) s = Add(c, r) t = Relu(s)
  p = GlobalAveragePool(t) f = Flatten(p) y = Gemm(f, m, k)
"""
CONSTANTS = {"w": (1, 32, 16, 3, 3), "v": (2, 32, 32, 3, 3), "b": (3, 32), "m": (4, 32, 10), "k": (5, 10)}


@pytest.fixture
def on(graph, quantized):
    def run(name: str, **changes):
        text = graph(BODY, "[N,16,16,16]", "[N,10]", **CONSTANTS)
        target = dataclasses.replace(get_target(name), measurable=False, **changes)
        return quantized(text, 16, 16, 16, 16, target=target)

    return run


def stored(model: Model) -> dict[str, set[str]]:
    """Types of the zero points of activations, weights and biases."""
    found: dict[str, set[str]] = {"activation": set(), "weight": set(), "bias": set()}
    for node in model.graph.nodes:
        if node.op == "QuantizeLinear":
            found["activation"].add(str(node.inputs[2].values.dtype))
        if node.op in ("Conv", "Gemm"):
            for kind, tensor in zip(("weight", "bias"), node.inputs[1:], strict=False):
                source = tensor.inputs[0].inputs[0] if tensor.inputs else tensor
                found[kind].add(str(source.values.dtype))
    return found


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_target_is_accurate(on, name):
    out = on(name)
    assert {"Conv", "Gemm"} <= set(out.result.metrics["int8_operators"]) and out.error < 0.06


@pytest.mark.parametrize(
    ("name", "activation", "bias"),
    [("ort-cpu", "uint8", "int32"), ("ort-cpu-arm", "uint8", "int32"), ("tensorrt", "int8", "float32")],
)
def test_types(on, name, activation, bias):
    assert stored(on(name).model) == {"activation": {activation}, "weight": {"int8"}, "bias": {bias}}


def test_tensorrt_has_no_zero_points_and_keeps_what_it_fuses(on):
    out = on("tensorrt")
    zeros = [n.inputs[2].values for n in out.model.graph.nodes if n.op in ("QuantizeLinear", "DequantizeLinear")]
    assert not any(np.any(z) for z in zeros)
    relus = [n for n in out.model.graph.nodes if n.op == "Relu"]
    assert len(relus) == 2 and "Relu" not in {s.op for s in out.result.skipped}
    assert [n.op for n in relus[0].inputs[0].inputs] == ["Conv"]  # no conversion between the two


def test_without_vnni_no_pair_of_products_saturates(on):
    """Products of uint8 with two weights in a row are added in 16 bits: 255 * (|a| + |b|) must stay below 2**15."""
    model = on("ort-cpu-novnni").model
    checked = 0
    for node in model.graph.nodes:
        if node.op in ("Conv", "Gemm"):
            values = node.inputs[1].inputs[0].inputs[0].values.astype(int)
            rows = np.abs(values.reshape(len(values), -1) if node.op == "Conv" else values.T)
            two = np.sort(rows, axis=1)[:, -2:].sum(axis=1)
            assert (255 * two < 2**15).all()
            checked += 1
    assert checked == 3
