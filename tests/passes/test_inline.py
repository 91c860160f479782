"""Local functions become their bodies, within a bound."""

from __future__ import annotations

import onnx
import pytest

from graphopt import Model, ModelError, UsageError
from graphopt.passes.inline import Inline, expanded_size

HEAD = '<ir_version: 8, opset_import: ["" : 17, "f" : 1]>'
DOUBLE = '<domain: "f", opset_import: ["" : 17]> double (u) => (v) { t = Relu(u) v = Add(t, t) }'


def test_calls_become_bodies(rewritten):
    text = f"{HEAD} net (float[N,4] x) => (float[N,4] y) {{ a = f.double(x) y = f.double(a) }} {DOUBLE}"
    out = rewritten(Inline(), Model.from_proto(onnx.parser.parse_model(text)))
    assert out.ops == ["Relu", "Add", "Relu", "Add"] and not out.model.graph.functions
    assert out.result.metrics == {"functions": 1, "nodes_before": 2, "nodes_after": 4}


def test_attributes_are_passed(rewritten):
    text = f"""{HEAD} net (float[N,4] x) => (float[N,4] y) {{ y = f.leak <slope = 0.5> (x) }}
        <domain: "f", opset_import: ["" : 17]>
        leak <slope> (u) => (v) {{ v = LeakyRelu <alpha: float = @slope> (u) }}"""
    out = rewritten(Inline(), Model.from_proto(onnx.parser.parse_model(text)))
    assert out.node("LeakyRelu").attrs["alpha"] == 0.5


def test_large_weights_stay_where_they_are(rewritten):
    values = ",".join(["0.5"] * 4096)
    text = f"""{HEAD} net (float[N,64] x) => (float[N,64] y) <float[64,64] w = {{{values}}}>
        {{ a = f.double(x) y = MatMul(a, w) }} {DOUBLE}"""
    out = rewritten(Inline(), Model.from_proto(onnx.parser.parse_model(text)))
    assert out.ops == ["Relu", "Add", "MatMul"] and (out.initializer("w") == 0.5).all()


def test_a_model_without_functions_is_left_alone(rewritten, net):
    assert not rewritten(Inline(), net("y = Relu(x)")).result.changed


def doubling(levels: int) -> str:
    functions = [
        f'<domain: "f", opset_import: ["f" : 1]> f{k} (u) => (v) {{ t = f.f{k + 1}(u) v = f.f{k + 1}(t) }}'
        for k in range(levels)
    ]
    last = f'<domain: "f", opset_import: ["" : 17]> f{levels} (u) => (v) {{ v = Relu(u) }}'
    return "\n".join([f"{HEAD} net (float[N,4] x) => (float[N,4] y) {{ y = f.f0(x) }}", *functions, last])


def test_exponential_growth_is_counted_before_it_is_made():
    assert expanded_size(onnx.parser.parse_model(doubling(3))) == 8
    model = Model.from_proto(onnx.parser.parse_model(doubling(40)))
    with pytest.raises(ModelError, match=f"{2**40:,} nodes"):
        Inline().run(model, None)
    assert [n.op for n in model.graph.nodes] == ["f0"]


def test_the_limit_is_an_option():
    model = Model.from_proto(onnx.parser.parse_model(doubling(3)))
    with pytest.raises(ModelError, match="limit=8"):
        Inline(limit=7).run(model.copy(), None)
    assert Inline(limit=8).run(model, None).metrics["nodes_after"] == 8
    with pytest.raises(UsageError):
        Inline(limit=0)


def test_a_ring_of_functions_is_refused():
    ring = onnx.parser.parse_model(doubling(1))
    ring.functions[1].node[0].op_type, ring.functions[1].node[0].domain = "f0", "f"
    with pytest.raises(ModelError, match="in a ring: f"):
        expanded_size(ring)
