"""What a bad pass does to a model is found, and blamed on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt import Model
from graphopt.errors import ContractError
from graphopt.ir import Snapshot, verify

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x) => (float[N,4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> {
        a = Mul(x, w)
        b = Relu(a)
        y = Add(a, b)
    }"""


def rename_input(g: gs.Graph) -> None:
    g.inputs[0].name = "other"


def rename_output(g: gs.Graph) -> None:
    g.outputs[0].name = "other"


def drop_output(g: gs.Graph) -> None:
    g.outputs = []


def retype_input(g: gs.Graph) -> None:
    g.inputs[0].dtype = np.float16


def reshape_output(g: gs.Graph) -> None:
    g.outputs[0].shape = [1, 4]


def remove_producer(g: gs.Graph) -> None:
    del g.nodes[1]


def remove_output_producer(g: gs.Graph) -> None:
    del g.nodes[2]


def wrong_order(g: gs.Graph) -> None:
    g.nodes.reverse()


def cycle(g: gs.Graph) -> None:
    g.nodes[0].inputs[0] = g.nodes[1].outputs[0]


def second_writer(g: gs.Graph) -> None:
    g.nodes[1].outputs[0] = g.nodes[0].outputs[0]


def write_input(g: gs.Graph) -> None:
    g.nodes[1].outputs[0] = g.inputs[0]


def write_weight(g: gs.Graph) -> None:
    g.nodes[1].outputs[0] = g.nodes[0].inputs[1]


def twin_tensor(g: gs.Graph) -> None:
    g.nodes[2].inputs[0] = gs.Variable("a", np.float32, ["N", 4])


def twin_weight(g: gs.Graph) -> None:
    g.nodes[2].inputs[0] = gs.Constant("w", np.zeros(4, np.float32))


def twin_node(g: gs.Graph) -> None:
    g.nodes[1].name = g.nodes[0].name


def forget_dtype(g: gs.Graph) -> None:
    g.nodes[0].outputs[0].dtype = None


def forget_rank(g: gs.Graph) -> None:
    g.nodes[0].outputs[0].shape = None


BAD: dict[Callable[[gs.Graph], None], str] = {
    rename_input: "inputs changed",
    rename_output: "outputs changed",
    drop_output: "outputs changed",
    retype_input: "inputs changed",
    reshape_output: "outputs changed",
    remove_producer: "'b', which nothing writes",
    remove_output_producer: "'y' is never written",
    wrong_order: "before it is written",
    cycle: "cycle",
    second_writer: "'a' is written by",
    write_input: "writes the graph input 'x'",
    write_weight: "writes the initializer 'w'",
    twin_tensor: "two different tensors are named 'a'",
    twin_weight: "two different tensors are named 'w'",
    twin_node: "two nodes are named",
    forget_dtype: "dtype of 'a'",
    forget_rank: "rank of 'a'",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda f: f.__name__)
def test_damage_is_found_and_blamed(damage):
    model = Model.from_text(TEXT)
    before = Snapshot.of(model)
    verify(model, before)
    damage(model.graph)
    with pytest.raises(ContractError) as caught:
        verify(model, before, "the pass 'bad'")
    assert BAD[damage] in str(caught.value)
    assert "the pass 'bad'" in str(caught.value)
    assert caught.value.exit_code == 3


def test_what_a_good_pass_may_do():
    model = Model.from_text(TEXT)
    before = Snapshot.of(model)
    with model.edit() as graph:
        new = gs.Variable("c", np.float32, ["N", 4])
        graph.nodes.insert(2, gs.Node("Neg", "neg", inputs=[graph.nodes[1].outputs[0]], outputs=[new]))
        graph.nodes[3].inputs[1] = new
        graph.nodes[0].inputs[1] = model.constant("w", np.ones(4, np.float32))
        graph.nodes[0].outputs[0].shape = ["N", None]
    verify(model, before, "good")
