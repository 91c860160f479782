"""Nodes that do nothing, dead nodes, and the names that must stay."""

from __future__ import annotations

import pytest

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def graph(body: str, inputs="float[N,4] x", outputs="float[N,4] y", more="", opset=17, extra="") -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}{extra}]> g ({inputs}) => ({outputs}) {more} {{ {body} }}'


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Relu(x) b = Identity(a) y = Neg(b)", ["Relu", "Neg"]),
        ("a = Relu(x) y = Identity(a)", ["Relu"]),
        ("a = Identity(x) b = Identity(a) c = Relu(b) d = Identity(c) y = Identity(d)", ["Relu"]),
        ("a = Identity(x) y = Relu(a)", ["Relu"]),
        ("y = Identity(x)", ["Identity"]),
        ("a = Identity(x) y = Identity(a)", ["Identity"]),
        ("a = Cast<to = 1>(x) y = Relu(a)", ["Relu"]),
        ("a = Relu(x) y = Cast<to = 1>(a)", ["Relu"]),
        ("a = Cast<to = 11>(x) b = Neg(a) y = Cast<to = 1>(b)", ["Cast", "Neg", "Cast"]),
        ("a = CastLike(x, x) y = Relu(a)", ["Relu"]),
        ("a = Dropout(x) y = Relu(a)", ["Relu"]),
        ("a = Relu(x) y = Dropout(a)", ["Relu"]),
        ("a, mask = Dropout(x) y = Relu(a)", ["Relu"]),
        (
            "r = Constant<value_float = 0.5>() t = Constant<value = bool {0}>() a = Dropout(x, r, t) y = Relu(a)",
            ["Relu"],
        ),
        ("a = Concat<axis = 0>(x) y = Relu(a)", ["Relu"]),
        ("a = Max(x) b = Sum(a) y = Relu(b)", ["Relu"]),
        ("a = Transpose<perm = [0,1]>(x) y = Relu(a)", ["Relu"]),
        ("a = Transpose<perm = [1,0]>(x) b = Relu(a) y = Transpose(b)", ["Relu"]),
        ("a = Transpose<perm = [1,0]>(x) b = Transpose(a) y = Relu(b)", ["Relu"]),
        ("z = Constant<value_float = 0.0>() a = Add(x, z) b = Add(z, a) c = Sub(b, z) y = Relu(c)", ["Relu"]),
        ("z = Constant<value_float = 1.0>() a = Mul(x, z) b = Mul(z, a) c = Div(b, z) y = Relu(c)", ["Relu"]),
        ("a = Relu(x) b = Relu(a) c = Neg(b) y = Relu(c)", ["Relu", "Neg", "Relu"]),
        ("a = Floor(x) b = Floor(a) y = Ceil(b)", ["Floor", "Ceil"]),
        ("a = Neg(x) y = Neg(a)", ["Neg", "Neg"]),
        ("z = Constant<value_float = 0.0>() a = Sub(z, x) y = Relu(a)", ["Sub", "Relu"]),
        ("z = Constant<value_float = 1.0>() a = Div(z, x) y = Abs(a)", ["Div", "Abs"]),
    ],
)
def test_no_ops(fold, body, left):
    assert fold(graph(body)).ops == left


def test_a_neutral_constant_that_broadcasts_is_kept(fold):
    found = fold(graph("y = Add(x, z)", "float[1,4] x", "float[3,4] y", "<float[3,1] z = {0.0, 0.0, 0.0}>"))
    assert found.ops == ["Add"]


def test_three_transposes_become_one(fold):
    body = "a = Transpose<perm=[1,2,0]>(x) b = Transpose<perm=[1,2,0]>(a) c = Transpose<perm=[2,1,0]>(b) y = Relu(c)"
    found = fold(graph(body, "float[2,3,4] x", "float[3,2,4] y"))
    assert found.ops == ["Transpose", "Relu"] or found.ops == ["Relu"]


def test_identity_of_an_input_that_is_also_an_output_stays_and_says_so(fold):
    found = fold(graph("y = Identity(x)"))
    assert "graph output 'y'" in found.reason("Identity")


def test_identity_between_two_outputs_stays(fold):
    found = fold(graph("a = Relu(x) y = Identity(a)", outputs="float[N,4] a, float[N,4] y"))
    assert found.ops == ["Relu", "Identity"]
    assert "'a' is an output of the graph" in found.reason("Identity")


def test_two_identities_to_two_outputs(fold):
    found = fold(graph("a = Relu(x) y = Identity(a) z = Identity(a)", outputs="float[N,4] y, float[N,4] z"))
    assert sorted(found.ops) == ["Identity", "Relu"]


def test_renaming_follows_other_readers(fold):
    found = fold(graph("a = Relu(x) y = Identity(a) z = Neg(a)", outputs="float[N,4] y, float[N,4] z"))
    assert found.ops == ["Relu", "Neg"]
    assert [t.name for t in found.model.outputs] == ["y", "z"]


def test_dropout_whose_mask_is_used_stays(fold):
    found = fold(graph("a, mask = Dropout(x) y = Relu(a) z = Not(mask)", outputs="float[N,4] y, bool[N,4] z"))
    assert found.counts["Dropout"] == 1
    assert "mask" in found.reason("Dropout")


@pytest.mark.parametrize("mode", ["t = Constant<value = bool {1}>()", "t = Greater(q, q)"])
def test_dropout_in_training_stays(fold, mode):
    body = f"r = Constant<value_float = 0.5>() {mode} a = Dropout(x, r, t) y = Relu(a)"
    found = fold(graph(body, inputs="float[N,4] x, float q"), run=False)
    assert "Dropout" in found.ops
    assert "training" in found.reason("Dropout")


def test_dead_nodes_go_in_a_chain(fold):
    found = fold(graph("a = Neg(x) b = Exp(a) c = Add(a, b) y = Relu(x)"))
    assert found.ops == ["Relu"]
    assert found.result.metrics["dead_nodes_removed"] == 3


def test_dead_branch_with_subgraphs_goes_unless_it_is_random(fold):
    def text(op: str) -> str:
        return graph(
            f"""d = If (c) < then_branch = a () => (float[2] t) {{ t = {op}<shape = [2]>() }},
                             else_branch = e () => (float[2] u) {{ u = {op}<shape = [2]>() }} >
                y = Relu(x)""",
            inputs="bool c, float[N,4] x",
        )

    assert fold(text("RandomNormal"), run=False).ops == ["If", "Relu"]
    quiet = text("RandomNormal").replace("RandomNormal<shape = [2]>", "Constant<value = float[2] {1.0, 2.0}>")
    assert fold(quiet).ops == ["Relu"]


def test_unused_inputs_and_initializers(fold):
    found = fold(graph("y = Relu(x)", "float[N,4] x, float[N,4] unused", more="<float[2] w = {1.0, 2.0}>"))
    assert [t.name for t in found.model.inputs] == ["x", "unused"]


def test_a_tensor_that_a_subgraph_reads_keeps_its_producer(fold):
    found = fold(
        graph(
            """a = Relu(x) b = Identity(a) k = Constant<value_float = 2.0>()
           y = If (c) < then_branch = p () => (float[N,4] t) { t = Mul(b, k) },
                        else_branch = q () => (float[N,4] u) { u = Identity(b) } >""",
            inputs="bool c, float[N,4] x",
        )
    )
    assert found.counts == {"Relu": 1, "Identity": 1, "If": 1}
    assert any("a subgraph reads" in s.reason for s in found.result.skipped if s.op == "Identity")


def test_a_loop_body_survives(fold):
    found = fold(
        graph(
            """n = Constant<value_int = 3>() t = Constant<value = bool {1}>() k = Constant<value_float = 0.5>()
           i = Identity(k) j = Identity(i)
           y = Loop (n, t, x) < body = b (int64 it, bool ci, float[N,4] s) => (bool co, float[N,4] o)
               { co = Identity(ci) o = Mul(s, j) } >""",
        )
    )
    assert found.counts["Loop"] == 1


def test_custom_operators_and_what_they_read_stay(fold):
    found = fold(
        graph(
            """k = Constant<value_float = 2.0>() i = Identity(x) a = my.Thing(i, k) d = my.Other(k) b = Identity(a)
           y = Relu(b)""",
            extra=', "my" : 1',
        ),
        run=False,
        valid=False,
    )
    assert found.counts == {"Constant": 1, "Identity": 1, "Thing": 1, "Other": 1, "Relu": 1}
    assert {s.op for s in found.result.skipped} == {"Constant", "Identity", "Other"}


def test_an_operator_that_the_opset_does_not_have_is_treated_as_custom(fold):
    found = fold(graph("k = Constant<value_float = 2.0>() a = NoSuchOp(k) y = Mul(x, a)"), run=False, valid=False)
    assert found.ops == ["Constant", "NoSuchOp", "Mul"]


def test_local_functions_are_kept(fold):
    found = fold("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,4] x) => (float[N,4] y) {
            k = Constant<value_float = 2.0>()
            i = Identity(x)
            y = local.twice(i, k)
        }
        <domain: "local", opset_import: ["" : 17]>
        twice (a, k) => (b) { c = Identity(a) b = Mul(c, k) }
    """)
    assert found.ops == ["Constant", "Identity", "twice"]
    assert [f.name for f in found.model.graph.functions] == ["twice"]


def test_a_function_of_the_default_domain_hides_the_operator(fold):
    found = fold(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Neg(a) }
        <domain: "", opset_import: ["" : 17]>
        Identity (a) => (b) { b = Exp(a) }
    """,
        run=False,
        valid=False,
    )
    assert found.ops == ["Relu", "Neg"]


def test_a_pad_becomes_padding_of_the_conv(fold, tensor):
    found = fold(f"""{HEAD} g (float[N,2,5,6] x) => (float[N,3,h,k] y) <{tensor("w", 3, 2, 3, 3)},
        int64[8] p = {{0,0,1,0,0,0,2,1}}, float z = {{0.0}}> {{
            a = Pad(x, p, z) y = Conv<pads = [0,1,1,0]>(a, w) }}""")
    assert found.ops == ["Conv"]
    assert found.model.graph.nodes[0].attrs["pads"] == [1, 1, 3, 1]


def test_pad_with_axes_and_old_pad_attribute(fold, tensor):
    new = fold(f"""<ir_version: 8, opset_import: ["" : 18]> g (float[N,2,5,6] x) => (float[N,3,h,k] y)
        <{tensor("w", 3, 2, 3, 3)}, int64[4] p = {{1,0,2,1}}, int64[2] axes = {{-2, 3}}> {{
            a = Pad(x, p, , axes) y = Conv(a, w) }}""")
    old = fold(f"""<ir_version: 6, opset_import: ["" : 9]> g (float[N,2,5,6] x) => (float[N,3,h,k] y)
        <{tensor("w", 3, 2, 3, 3)}> {{
            a = Pad<pads = [0,0,1,0,0,0,2,1]>(x) y = Conv<auto_pad = "VALID">(a, w) }}""")
    for found in (new, old):
        assert found.ops == ["Conv"]
        assert found.model.graph.nodes[0].attrs["pads"] == [1, 0, 2, 1]


@pytest.mark.parametrize(
    ("pad", "conv", "why"),
    [
        ("a = Pad(x, p, one)", "y = Conv(a, w)", "not zero"),
        ('a = Pad<mode = "reflect">(x, p)', "y = Conv(a, w)", "reflect"),
        ("a = Pad(x, c)", "y = Conv(a, w)", "channels"),
        ("a = Pad(x, crop)", "y = Conv(a, w)", "crops"),
        ("a = Pad(x, p)", 'y = Conv<auto_pad = "SAME_UPPER">(a, w)', "is automatic"),
        ("a = Pad(x, p)", "b = Conv(a, w) r = ReduceMax(a) y = Add(b, r)", "other nodes"),
    ],
)
def test_pads_that_stay(fold, tensor, pad, conv, why):
    channels = 4 if "c)" in pad else 2
    found = fold(f"""{HEAD} g (float[N,2,5,5] x) => (float[N,3,h,k] y) <{tensor("w", 3, channels, 3, 3)},
        int64[8] p = {{0,0,1,1,0,0,1,1}}, int64[8] c = {{0,1,0,0,0,1,0,0}}, int64[8] crop = {{0,0,-1,0,0,0,0,0}},
        float one = {{1.0}}> {{ {pad} {conv} }}""")
    assert "Pad" in found.ops
    assert why in found.reason("Conv")


def test_a_pad_by_nothing_goes(fold):
    found = fold(graph("a = Pad(x, p) y = Relu(a)", more="<int64[4] p = {0,0,0,0}>"))
    assert found.ops == ["Relu"]
