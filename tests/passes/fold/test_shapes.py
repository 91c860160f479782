"""Shape arithmetic: static dimensions, Reshape targets with a symbolic batch, and what has no proof."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.fold.reshape import solve


def graph(body: str, outputs="float[P,Q] y", inputs="float[N,3,4,5] x", more="", opset=17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {more} {{ {body} }}'


C = "zero = Constant<value = int64 {0}>() one = Constant<value_ints = [1]>() two = Constant<value_ints = [2]>()"


def test_flatten_written_as_shape_gather_concat_reshape(fold):
    found = fold(
        graph(f"""{C} m = Constant<value_ints = [-1]>() ax = Constant<value_ints = [0]>()
        s = Shape(x) n = Gather<axis = 0>(s, zero) u = Unsqueeze(n, ax) t = Concat<axis = 0>(u, m) y = Reshape(x, t)""")
    )
    assert found.ops == ["Reshape"]
    assert found.initializer(found.model.graph.nodes[0].inputs[1].name).tolist() == [0, -1]


def test_a_target_of_the_batch_and_a_number_is_inferred(fold):
    """The batch of another tensor of the same name, at another position: -1 is the only size that fits."""
    found = fold(
        graph(f"""{C} k = Constant<value_ints = [60]>() s = Shape<end = 1>(x) t = Concat<axis = 0>(k, s)
        y = Reshape(x, t)""")
    )
    assert found.ops == ["Reshape"]
    assert found.initializer(found.model.graph.nodes[0].inputs[1].name).tolist() == [60, -1]


def test_static_dimensions_beside_a_symbolic_batch(fold):
    found = fold(
        graph(
            f"""{C} hw = Constant<value_ints = [2, 3]>() i = Constant<value = int64 {{1}}>()
        s = Shape(x) d = Gather(s, hw) c = Gather(s, i) f = Cast<to = 1>(d) g = ReduceProd<keepdims = 0>(f)
        h = Cast<to = 1>(c) a = Mul(x, g) y = Div(a, h)""",
            "float[N,3,4,5] y",
        )
    )
    assert found.ops == ["Mul", "Div"]


@pytest.mark.parametrize(
    "chain",
    [
        "s = Shape<start = 1, end = -1>(x) v = Cast<to = 1>(s)",
        "s = Shape(x) e = Constant<value_ints = [3]>() c = Slice(s, one, e) v = Cast<to = 1>(c)",
        "s = Shape(x) p, q, r, t = Split<axis = 0>(s) c = Concat<axis = 0>(q, r) v = Cast<to = 1>(c)",
    ],
)
def test_a_static_part_of_a_shape(fold, chain):
    found = fold(graph(f"{C} {chain} w = ReduceSum<keepdims = 0>(v) y = Mul(x, w)", "float[N,3,4,5] y"))
    if "Split" in chain:  # not interpreted; nothing breaks
        assert "Shape" in found.ops
    else:
        assert found.ops == ["Mul"]


def test_slices_of_old_opsets(fold):
    found = fold(
        graph(
            """s = Shape(x) c = Slice<starts = [1], ends = [3], axes = [0]>(s) v = Cast<to = 1>(c)
           w = ReduceSum<keepdims = 0, axes = [0]>(v) y = Mul(x, w)""",
            "float[N,3,4,5] y",
            opset=9,
        )
    )
    assert found.ops == ["Mul"]


def test_arithmetic_on_parts_of_a_shape(fold):
    found = fold(
        graph(
            f"""{C} s = Shape(x) h = Gather(s, two) d = Div(h, two) a = Add(d, one) b = Sub(a, two) c = Mul(b, h)
        i = Cast<to = 6>(c) f = Cast<to = 1>(i) y = Mul(x, f)""",
            "float[N,3,4,5] y",
        )
    )
    assert found.ops == ["Mul"]


def test_size(fold):
    static = fold(graph("n = Size(x) f = Cast<to = 1>(n) y = Div(x, f)", "float[2,3] y", "float[2,3] x"))
    assert static.ops == ["Div"]
    symbolic = fold(graph("n = Size(x) f = Cast<to = 1>(n) y = Div(x, f)", "float[N,3] y", "float[N,3] x"))
    assert symbolic.ops == ["Size", "Cast", "Div"]
    assert "not all known" in symbolic.reason("Size")


def test_a_batch_that_is_used_as_a_number_stays(fold):
    found = fold(graph(f"{C} s = Shape(x) n = Gather(s, zero) f = Cast<to = 1>(n) y = Div(x, f)", "float[N,3,4,5] y"))
    assert found.ops == ["Shape", "Gather", "Cast", "Div"]
    assert "not all known" in found.reason("Shape")


def test_a_shape_that_is_a_graph_output_becomes_a_constant_or_stays(fold):
    static = fold(graph("s = Shape(x) y = Relu(x)", "float[2,3] y, int64[2] s", "float[2,3] x"))
    assert sorted(static.ops) == ["Constant", "Relu"]
    symbolic = fold(graph("s = Shape(x) y = Relu(x)", "float[N,3] y, int64[2] s", "float[N,3] x"))
    assert sorted(symbolic.ops) == ["Relu", "Shape"]


def test_two_unknown_dimensions_with_no_counterpart_stay(fold):
    found = fold(
        graph(
            f"{C} e = Constant<value_ints = [0]>() s = Shape(x) a = Gather(s, e) b = Gather(s, one)"
            " t = Concat<axis = 0>(b, a) y = Reshape(x, t)",
            inputs="float[A,B,1] x",
        )
    )
    assert "Reshape" in found.ops
    assert "not provably" in found.reason("Reshape")


def test_two_unknown_dimensions_with_a_counterpart_fold(fold):
    found = fold(
        graph(
            f"""{C} e = Constant<value_ints = [0]>() s = Shape(x) a = Gather(s, e) b = Gather(s, one)
            m = Constant<value_ints = [-1]>() t = Concat<axis = 0>(a, b, m) y = Reshape(x, t)""",
            "float[A,B,Q] y",
            "float[A,B,2,2] x",
        )
    )
    assert found.ops == ["Reshape"]


def test_allowzero_is_respected(fold):
    found = fold(
        graph(
            f"""{C} e = Constant<value_ints = [0]>() s = Shape(x) a = Gather(s, e) m = Constant<value_ints = [-1]>()
            t = Concat<axis = 0>(a, m) y = Reshape<allowzero = 1>(x, t)"""
        )
    )
    assert "Concat" in found.ops


def test_a_target_that_is_a_graph_input_stays(fold):
    found = fold(graph("y = Reshape(x, t)", inputs="float[N,3,4,5] x, int64[2] t"), run=False)
    assert found.ops == ["Reshape"]
    assert found.reason("Reshape")


def test_a_target_that_only_evaluation_makes_constant_is_not_reported(fold):
    body = """s = Shape<start = 1>(x) p = ReduceProd<keepdims = 1>(s) t = Concat<axis = 0>(m, p) y = Reshape(x, t)"""
    found = fold(graph(body, more="<int64[1] m = {-1}>"))
    assert found.ops == ["Reshape"]
    assert not found.result.skipped


def test_a_shape_chain_that_a_custom_operator_reads_stays(fold):
    found = fold(
        """<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g (float[2,3] x) => (float[2,3] y)
        { s = Shape(x) a = my.Thing(s) y = Add(x, a) }""",
        run=False,
        valid=False,
    )
    assert found.ops == ["Shape", "Thing", "Add"]


@pytest.mark.parametrize(
    ("elements", "source", "allow_zero", "target"),
    [
        (("N", -1), ("N", 3, 4), False, [0, -1]),
        (("N", 12), ("N", 3, 4), False, [0, 12]),
        (("N", "M"), ("N", "M", 4), False, [0, 0]),
        (("M", "N"), ("N", "M", 4), False, None),
        (("M", 3), ("N", 3), False, [-1, 3]),
        (("M", -1), ("N", 3), False, None),
        ((None, 3), None, False, [-1, 3]),
        ((None, -1), None, False, None),
        (("N", 3), ("N", 3), True, [-1, 3]),
        (("N", -1), ("N", 3), True, None),
        (("N", 0), ("N", 0), True, None),
        ((2, 3), None, False, [2, 3]),
        (("N", 0, None), ("N", 3, 4), False, [0, 0, -1]),
    ],
)
def test_solve(elements, source, allow_zero, target):
    assert solve(elements, source, allow_zero) == target


def test_the_symbol_of_a_dimension_without_a_name_is_its_own(fold):
    """Two unnamed dimensions are not known to be equal."""
    found = fold(
        graph(
            f"""{C} e = Constant<value_ints = [0]>() s = Shape(z) a = Gather(s, e) m = Constant<value_ints = [-1]>()
            t = Concat<axis = 0>(a, m) y = Reshape(x, t)""",
            inputs="float[?,4] x, float[?,4] z",
        ),
        run=False,
    )
    assert "Concat" in found.ops
    same = fold(
        graph(
            f"""{C} e = Constant<value_ints = [0]>() s = Shape(x) a = Gather(s, e) m = Constant<value_ints = [-1]>()
            t = Concat<axis = 0>(a, m) y = Reshape(x, t)""",
            inputs="float[?,4] x",
        )
    )
    assert same.ops == ["Reshape"]


def test_order_of_hash_values_does_not_matter(tmp_path):
    import subprocess
    import sys

    code = (
        "import hashlib; from graphopt import Model; from graphopt.passes.fold import Fold\n"
        "m = Model.from_text(open(r'%s').read()); r = Fold().run(m, None)\n"
        "print(hashlib.sha256(m.to_bytes()).hexdigest(), [s.node for s in r.skipped])"
    )
    values = ", ".join(map(str, np.arange(8) / 8))
    body = " ".join(f"c{i} = Exp(k) d{i} = Shape(x) e{i} = Mul(c{i}, k) f{i} = Add(x, e{i})" for i in range(8))
    total = " ".join(f"t{i} = Add(t{i - 1}, f{i})" for i in range(1, 8)).replace("t0,", "f0,")
    path = tmp_path / "graph.txt"
    path.write_text(
        graph(f"{body} {total} y = Relu(t7)", "float[N,8] y", "float[N,8] x", f"<float[8] k = {{{values}}}>")
    )
    seen = set()
    for seed in ("0", "1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", code % path],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        seen.add(run.stdout)
    assert len(seen) == 1
