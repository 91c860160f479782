"""Numbers for open dimensions: set once, known everywhere, refused where they contradict."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import Model, ModelError, UsageError
from graphopt.ir.interface import fix_shapes, parse_shape
from graphopt.runtime.session import open_session, run_feeds

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,H,W] x) => (float[N,2] y, float[N,3,H,W] z) <float[2,3,1,1] w = {1,2,3,4,5,6}> {
    c = Conv(x, w)  g = GlobalAveragePool(c)  y = Flatten(g)  z = Relu(x)
}"""


def shapes(model: Model) -> dict[str, list[object]]:
    return {name: list(t.shape) for name, t in model.graph.tensors().items() if t.shape is not None}


def test_the_batch_is_known_everywhere() -> None:
    model = Model.from_text(TEXT)
    fix_shapes(model, {}, batch=4)
    found = shapes(model)
    assert found["y"] == [4, 2] and found["z"] == [4, 3, "H", "W"] and found["c"][:2] == [4, 2]


def test_a_whole_shape_gives_every_name_its_number() -> None:
    model = Model.from_text(TEXT)
    assert fix_shapes(model, {"x": (2, 3, 8, 6)}) == {"x": [2, 3, 8, 6]}
    found = shapes(model)
    assert (found["c"], found["y"], found["z"]) == ([2, 2, 8, 6], [2, 2], [2, 3, 8, 6])
    feed = {"x": np.ones((2, 3, 8, 6), np.float32)}
    y, _ = run_feeds(open_session(model.to_bytes(), optimize=False), feed)
    assert y.shape == (2, 2)


def test_an_output_without_a_name_for_its_batch_is_inferred() -> None:
    model = Model.from_text(TEXT.replace("float[N,2] y", "float[M,2] y"))
    fix_shapes(model, {}, batch=4)
    assert shapes(model)["y"] == [4, 2]


def test_what_is_fixed_already_changes_nothing() -> None:
    model = Model.from_text(TEXT.replace("N", "5"))
    before = model.to_bytes()
    assert fix_shapes(model, {}, batch=5) == {} and model.to_bytes() == before


@pytest.mark.parametrize(
    ("text", "given", "batch", "message"),
    [
        (TEXT, {"img": (1, 3, 8, 8)}, None, "unknown input 'img'"),
        (TEXT, {"x": (1, 3, 8)}, None, "has 4 dimensions"),
        (TEXT, {"x": (1, 4, 8, 8)}, None, "contradicts"),
        (TEXT, {"x": (1, 3, 8, 8)}, 2, "has batch 1"),
        (TEXT.replace("N", "5"), {}, 4, "has batch 5"),
        (TEXT.replace("H", "W"), {"x": (1, 3, 8, 9)}, None, "cannot be both 8 and 9"),
    ],
)
def test_contradictions_are_refused(text, given, batch, message) -> None:
    model = Model.from_text(text)
    before = model.to_bytes()
    with pytest.raises(UsageError, match=message):
        fix_shapes(model, given, batch)
    assert model.to_bytes() == before


def test_a_size_that_the_operators_do_not_take() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[N,K] x) => (float[N,2] y) <float[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"""
    with pytest.raises(ModelError, match="does not take inputs of this shape"):
        fix_shapes(Model.from_text(text), {"x": (1, 4)})


def test_shapes_as_text() -> None:
    assert parse_shape("x:1,3,224,224") == ("x", (1, 3, 224, 224))
    assert parse_shape("scope/x:0:1,3") == ("scope/x:0", (1, 3))
    for wrong in ("x", "x:", ":1,2", "x:1,a", "x:0,3", "x:-1,3", "1,3"):
        with pytest.raises(UsageError, match="write it as name"):
            parse_shape(wrong)
