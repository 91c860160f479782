"""MACs and parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

import graphopt
from graphopt import Model
from graphopt.analysis.cost import cost

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def model(body: str, header: str = "float[N,4,8,8] x", out: str = "float[N,M] y") -> Model:
    return Model.from_text(f'<ir_version: 8, opset_import: ["" : 17]> g ({header}) => ({out}) {{ {body} }}')


def constant(graph_model: Model, node: str, slot: int, shape: tuple[int, ...]) -> None:
    target = next(n for n in graph_model.graph.nodes if n.op == node)
    name = target.inputs[slot].name
    for n in graph_model.graph.nodes:
        for k, t in enumerate(n.inputs):
            if t.name == name:
                n.inputs[k] = gs.Constant(name, np.zeros(shape, np.float32))
    graph_model.graph.inputs = [t for t in graph_model.graph.inputs if t.name != name]


@pytest.mark.parametrize(
    ("body", "shape", "macs"),
    [
        ("y = Conv(x, w)", (6, 4, 3, 3), 6 * 6 * 6 * 4 * 9),
        ("y = Conv<group=4>(x, w)", (4, 1, 3, 3), 4 * 6 * 6 * 9),
        ("y = Conv<strides=[2,2]>(x, w)", (6, 4, 1, 1), 6 * 4 * 4 * 4),
        ("y = ConvTranspose<strides=[2,2]>(x, w)", (4, 6, 2, 2), 8 * 8 * 4 * 6 * 4),
        ("y = MatMul(x, w)", (8, 5), 4 * 8 * 8 * 5),
    ],
)
def test_macs_of_one_node_at_batch_one(body, shape, macs):
    dims = ",".join(map(str, shape))
    rank = 4
    m = model(body, f"float[N,4,8,8] x, float[{dims}] w", "float[" + ",".join("abcd"[:rank]) + "] y")
    constant(m, m.graph.nodes[0].op, 1, shape)
    found = cost(m)
    assert found.macs == macs and found.params == int(np.prod(shape)) and not found.unknown
    assert found.by_node[m.graph.nodes[0].name].macs == macs


def test_an_axis_that_the_batch_was_merged_into_has_its_size_at_batch_one():
    m = model("r = Reshape(x, s) y = Gemm(r, w)", "float[N,4,8,8] x, int64[2] s, float[8,5] w", "float[M,5] y")
    constant(m, "Gemm", 1, (8, 5))
    reshape = m.graph.nodes[0]
    reshape.inputs[1] = gs.Constant("s", np.array([-1, 8]))
    m.graph.inputs = [t for t in m.graph.inputs if t.name != "s"]
    assert cost(m).macs == 4 * 8 * 8 * 5
    assert m.inputs[0].shape[0] == "N"  # the model itself keeps its batch


def test_a_product_of_activations_costs_nothing():
    m = model("t = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, t)", out="float[N,4,8,8] y")
    assert cost(m).macs == 0


def test_a_shared_weight_counts_once():
    m = model("a = Conv(x, w) y = Conv(a, w)", "float[N,4,8,8] x, float[4,4,1,1] w", "float[N,4,8,8] y")
    constant(m, "Conv", 1, (4, 4, 1, 1))
    found = cost(m)
    assert found.params == 16 and found.macs == 2 * 16 * 64


def test_a_dequantized_weight_counts_as_constant():
    m = model("d = DequantizeLinear(w, s) y = MatMul(x, d)", "float[N,4] x, int8[4,5] w, float[1] s", "float[N,5] y")
    dq = m.graph.nodes[0]
    dq.inputs = [gs.Constant("w", np.zeros((4, 5), np.int8)), gs.Constant("s", np.array(0.1, np.float32))]
    m.graph.inputs = m.graph.inputs[:1]
    found = cost(m)
    assert (found.macs, found.params) == (20, 20)


def test_unknown_sizes_are_said_not_guessed():
    m = model("y = Conv(x, w)", "float[N,4,H,W] x, float[6,4,3,3] w", "float[N,6,P,Q] y")
    constant(m, "Conv", 1, (6, 4, 3, 3))
    found = cost(m)
    assert found.macs == 0 and found.by_node[m.graph.nodes[0].name].macs is None
    assert found.unknown[0][0] == m.graph.nodes[0].name and "not all known" in found.unknown[0][1]


def test_the_model_is_not_changed():
    m = model("a = Relu(x) y = Flatten(a)")
    before, revision = m.to_bytes(), m.revision
    cost(m)
    assert m.to_bytes() == before and m.revision == revision


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared models are not here")
@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        ("resnet20-cifar10", 40.6e6, 0.27e6),
        ("resnet56-cifar10", 125.5e6, 0.86e6),
        ("mbv3-cifar10", 11.4e6, 0.60e6),
        ("vit-cifar10", 32.5e6, 0.52e6),
        ("seed-cnn-cifar10", 4.04e6, 0.17e6),
        ("efficientnet-lite0", 385e6, 4.7e6),
    ],
)
def test_published_figures(name, macs, params):
    found = cost(graphopt.load(SHARED / "models" / f"{name}.onnx"))
    assert found.macs == pytest.approx(macs, rel=2e-3) and found.params == pytest.approx(params, rel=0.02)
    assert not found.unknown
