"""Hostile files whose graphs are the trouble: huge constants, depth, functions, names, versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hostile import (
    NAMES,
    NODE,
    Place,
    call,
    end_in,
    nested,
    rename,
    twice,
    with_functions,
)
from onnx import TensorProto, helper, numpy_helper

# --- constants that would be huge -------------------------------------------------------------------------------

BILLION = 2**30
Array = Any
_ONE = np.ones(1, np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


HUGE: dict[str, tuple[list[onnx.NodeProto], dict[str, Array]]] = {
    "ConstantOfShape": ([NODE("ConstantOfShape", ["s"], ["k"])], {"s": i64(BILLION)}),
    "Expand": ([NODE("Expand", ["o", "s"], ["k"])], {"o": _ONE, "s": i64(BILLION)}),
    "Tile": ([NODE("Tile", ["o", "s"], ["k"])], {"o": _ONE, "s": i64(BILLION)}),
    "Range": ([NODE("Range", ["a", "b", "c"], ["k"])], {"a": np.int64(0), "b": np.int64(BILLION), "c": np.int64(1)}),
    "Pad": ([NODE("Pad", ["o", "s"], ["k"])], {"o": _ONE, "s": i64(BILLION, 0)}),
    "EyeLike": (
        [NODE("Expand", ["o", "s"], ["e"]), NODE("EyeLike", ["e"], ["k"])],
        {"o": _ONE, "s": i64(40000, 40000)},
    ),
    "OneHot": (
        [NODE("OneHot", ["i", "d", "v"], ["k"])],
        {"i": i64(0, 1), "d": np.int64(BILLION), "v": np.array([0, 1], np.float32)},
    ),
    "Resize": (
        [NODE("Resize", ["o", "", "", "s"], ["k"], mode="nearest")],
        {"o": _ONE.reshape(1, 1, 1, 1), "s": i64(1, 1, 32768, 32768)},
    ),
    "broadcast": (
        [NODE("Add", ["u", "v"], ["k"])],
        {"u": np.zeros((40000, 1), np.float32), "v": np.zeros((1, 40000), np.float32)},
    ),
    "size known after folding": (
        [NODE("Mul", ["a", "a"], ["b"]), NODE("ConstantOfShape", ["b"], ["k"])],
        {"a": i64(32768)},
    ),
    "size counted": (
        [
            NODE("ConstantOfShape", ["s"], ["ones"], value=numpy_helper.from_array(i64(1))),
            NODE("ReduceSum", ["ones"], ["n"], keepdims=1),
            NODE("Mul", ["n", "n"], ["nn"]),
            NODE("Expand", ["o", "nn"], ["k"]),
        ],
        {"s": i64(32768), "o": _ONE},
    ),
    "doubling": (
        [
            NODE("ConstantOfShape", ["s"], ["d0"]),
            *[NODE("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0) for i in range(29)],
            NODE("Neg", ["d29"], ["k"]),
        ],
        {"s": i64(2)},
    ),
    "overflow": ([NODE("ConstantOfShape", ["s"], ["k"])], {"s": i64(2**62, 4)}),
}


def add_huge(proto: onnx.ModelProto, name: str) -> None:
    """Reduce the huge constant to one number and add it to the logits."""
    nodes, weights = HUGE[name]
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items())
    tail = [
        NODE("Cast", ["k"], ["k_float"], to=TensorProto.FLOAT),
        NODE("ReduceMax", ["k_float"], ["k_max"], keepdims=0),
        NODE("Add", ["logits", "k_max"], ["more"]),
    ]
    end_in(proto, [*nodes, *tail], "more")


@pytest.mark.parametrize("name", HUGE)
def test_huge_constants_are_not_computed(place: Place, proto: onnx.ModelProto, name: str) -> None:
    """Loading and folding alone: to run such a model takes what it asks for."""
    add_huge(proto, name)
    place.model.write_bytes(proto.SerializeToString())
    done = place.run("fold", place.model, place.output)
    assert done.code == 0, done.err
    assert done.peak < 1 << 30
    assert place.output.stat().st_size < place.model.stat().st_size + 65536
    kept = json.loads(done.out.splitlines()[0])
    assert HUGE[name][0][-1].op_type in kept, "the operator that makes the constant large is left to the model"
    assert place.run("fold", place.output, place.root / "out" / "again.onnx").code == 0


def test_a_huge_constant_in_a_branch_that_is_not_taken(place: Place, proto: onnx.ModelProto) -> None:
    nodes, _ = HUGE["ConstantOfShape"]
    proto.graph.initializer.append(numpy_helper.from_array(i64(BILLION), "s"))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(1e30), "limit"))
    tail = [NODE("ReduceMax", ["k"], ["k_max"], keepdims=0), NODE("Add", ["logits", "k_max"], ["t"])]
    taken = helper.make_graph([NODE("Neg", ["logits"], ["e"])], "e", [], [helper.make_empty_tensor_value_info("e")])
    other = helper.make_graph([*nodes, *tail], "t", [], [helper.make_empty_tensor_value_info("t")])
    end_in(
        proto,
        [
            NODE("ReduceMax", ["input"], ["brightest"], keepdims=0),
            NODE("Greater", ["brightest", "limit"], ["c"]),
            NODE("If", ["c"], ["more"], then_branch=other, else_branch=taken),
        ],
        "more",
    )
    place.check(proto, 0)


# --- depth, length, width ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "code"), [(1, 0), (10, 0), (30, 0), (100, 2), (1000, 2), (5000, 2)])
def test_nested_subgraphs(place: Place, proto: onnx.ModelProto, depth: int, code: int) -> None:
    place.check(nested(proto, depth), code)


def chain(length: int) -> list[onnx.NodeProto]:
    return [NODE("Identity", [f"q{k - 1}" if k else "logits"], [f"q{k}"]) for k in range(length)]


def test_a_long_chain(place: Place, proto: onnx.ModelProto) -> None:
    end_in(proto, chain(3000), "q2999")
    place.check(proto, 0)


@pytest.mark.suite
def test_a_very_long_chain(place: Place, proto: onnx.ModelProto) -> None:
    end_in(proto, chain(100_000), "q99999")
    done = place.run  # a larger bound than elsewhere: it is a large file
    place.model.write_bytes(proto.SerializeToString())
    found = done("run", place.model, "--passes", "simplify", "--no-eval", "-o", place.output, seconds=300)
    assert found.code == 0, found.err
    assert len(onnx.load(place.output).graph.node) < 20 and found.peak < 3 << 30


def test_a_very_wide_node(place: Place, proto: onnx.ModelProto) -> None:
    end_in(proto, [NODE("Concat", ["logits"] * 20_000, ["all"], axis=1)], "all", last=80_000)
    place.check(proto, 0)


# --- functions --------------------------------------------------------------------------------------------------


def inside_a_branch() -> list[onnx.NodeProto]:
    value = helper.make_empty_tensor_value_info("x")
    body = helper.make_graph([call("f0", "a", "x")], "t", [], [value])
    constant = numpy_helper.from_array(np.array(True))
    return [NODE("Constant", [], ["c"], value=constant), NODE("If", ["c"], ["b"], then_branch=body, else_branch=body)]


RINGS: dict[str, dict[str, list[onnx.NodeProto]]] = {
    "itself": {"f0": [call("f0")]},
    "two": {"f0": [call("f1")], "f1": [call("f0")]},
    "three, not called": {
        "f0": [NODE("Neg", ["a"], ["b"])],
        "f1": [call("f2")],
        "f2": [call("f3")],
        "f3": [call("f1")],
    },
    "in a branch": {"f0": inside_a_branch()},
}


@pytest.mark.parametrize("name", RINGS)
def test_functions_that_call_each_other(place: Place, proto: onnx.ModelProto, name: str) -> None:
    with_functions(proto, RINGS[name])
    place.check(proto, 2, words="ring")


@pytest.mark.parametrize("depth", [14, 20, 40, 90])
def test_functions_that_expand_without_end(place: Place, proto: onnx.ModelProto, depth: int) -> None:
    with_functions(proto, twice(depth))
    place.check(proto, 2, words="stand for", seconds=10)


def test_functions_that_expand_a_little(place: Place, proto: onnx.ModelProto) -> None:
    with_functions(proto, twice(8))
    place.check(proto, 0)


@pytest.mark.parametrize("depth", [150, 3000])
def test_a_deep_chain_of_functions(place: Place, proto: onnx.ModelProto, depth: int) -> None:
    with_functions(
        proto, {**{f"f{k}": [call(f"f{k + 1}")] for k in range(depth)}, f"f{depth}": [NODE("Neg", ["a"], ["b"])]}
    )
    place.check(proto, 2)


def test_functions_that_are_missing_or_called_wrongly(place: Place, proto: onnx.ModelProto) -> None:
    leaky = NODE("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    cases: list[tuple[dict[str, list[onnx.NodeProto]], str, tuple[int, ...]]] = [
        ({}, "f0", (2,)),
        ({"f0": [call("f9")]}, "f0", (2,)),
        ({"f0": []}, "f0", (2,)),
        ({"f0": [NODE("Neg", ["a"], ["z"])]}, "f0", (2,)),
        ({"f0": [leaky]}, "f0", (0, 2)),  # the attribute that it refers to is not given: the operator's default holds
    ]
    for bodies, name, codes in cases:
        twin = onnx.ModelProto()
        twin.CopyFrom(proto)
        with_functions(twin, bodies, name)
        place.output.write_bytes(b"what was there before")
        place.check(twin, *codes)


# --- names ------------------------------------------------------------------------------------------------------

PLACES = (
    *("node", "tensor", "weight", "damaged weight", "input", "output", "graph", "dimension", "operator", "domain"),
    *("attribute", "metadata", "import", "dangling"),
)
# Where a file with that name is no model, whatever the name is.
BROKEN = {"damaged weight", "operator", "attribute", "dangling"}


@pytest.mark.parametrize("where", PLACES)
def test_names(place: Place, proto: onnx.ModelProto, where: str) -> None:
    for kind, name in NAMES.items():
        twin = onnx.ModelProto()
        twin.CopyFrom(proto)
        rename(twin, where, name)
        data = twin.SerializeToString()
        if kind == "not text":
            data = data.replace(b"MARKER", b"\xff\xfe\xc0\x80\xed\xa0")
        place.output.write_bytes(b"what was there before")
        place.output.with_suffix(".report.json").unlink(missing_ok=True)
        place.check(data, *((2,) if where in BROKEN and kind != "empty" else ()))


def _duplicate(kind: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        entries = getattr(graph, kind)
        entries.append(entries[0])

    return change


def _second(position: int, attribute: str, name: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        if attribute == "name":
            graph.node[position].name = name
        else:
            getattr(graph.node[position], attribute)[0] = name

    return change


def _output(name: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        graph.output[0].name = name

    return change


MALFORMED: dict[str, Callable[[onnx.GraphProto], None]] = {
    "weight twice": _duplicate("initializer"),
    "input twice": _duplicate("input"),
    "node twice": _duplicate("node"),
    "node names": _second(4, "name", "conv2"),
    "tensor written twice": _second(5, "output", "c2"),
    "writes an input": _second(3, "output", "input"),
    "writes a weight": _second(3, "output", "w1"),
    "output of nothing": _output("nothing"),
    "nameless output": _output(""),
    "no inputs": lambda graph: graph.ClearField("input"),
    "no outputs": lambda graph: graph.ClearField("output"),
    "no nodes": lambda graph: graph.ClearField("node"),
    "attribute twice": lambda graph: graph.node[0].attribute.append(graph.node[0].attribute[0]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_graphs(place: Place, proto: onnx.ModelProto, name: str) -> None:
    MALFORMED[name](proto.graph)
    place.check(proto, 2)


# --- versions ---------------------------------------------------------------------------------------------------

IMPORTS: dict[str, tuple[list[tuple[str, int]], int]] = {
    "0": ([("", 0)], 2),
    "negative": ([("", -1)], 2),
    "9999": ([("", 9999)], 2),
    "2**62": ([("", 2**62)], 2),
    "none": ([], 2),
    "other only": ([("d", 1)], 2),
    "same twice": ([("", 17), ("", 17)], 0),
    "two": ([("", 17), ("", 13)], 2),
    "two, by alias": ([("", 17), ("ai.onnx", 13)], 2),
    "two, one absurd": ([("", 9999), ("", 17)], 2),
    "two of another": ([("", 17), ("d", 1), ("d", 2)], 2),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_opsets(place: Place, proto: onnx.ModelProto, name: str) -> None:
    entries, code = IMPORTS[name]
    del proto.opset_import[:]
    for domain, version in entries:
        proto.opset_import.add(domain=domain, version=version)
    place.check(proto, code)


@pytest.mark.parametrize("version", [0, -1, 1, 9999, 2**62])
def test_ir_versions(place: Place, proto: onnx.ModelProto, version: int) -> None:
    proto.ir_version = version
    place.check(proto, 2)
