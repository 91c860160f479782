"""HardSigmoid gates in their cheap and their plain form; operators that move values; bytes across processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

IMAGE = "[N,3,8,8]"
W, V = (1, 8, 3, 1, 1), (3, 4, 8, 1, 1)


def test_a_gate_behind_its_own_conv_is_free(graph, quantized):
    body = "r = Conv(x, w) p = GlobalAveragePool(r) s = Conv(p, u, c) g = HardSigmoid<alpha=0.16666667, beta=0.5>(s)"
    body += " m = Mul(r, g) y = Conv(m, v)"
    text = graph(body, IMAGE, "[N,4,8,8]", w=W, u=(2, 8, 8, 1, 1), c=(5, 8), v=V)
    out = quantized(text, 16, 3, 8, 8)
    assert out.optimized["QLinearAdd"] == 0 and out.optimized["HardSigmoid"] == 0
    assert out.optimized["QLinearConv"] == 3 and out.optimized["QLinearMul"] == 1
    assert out.error < 0.05


def test_a_gate_without_a_bias_to_shift_gets_one(graph, quantized):
    body = "s = Conv(x, w) g = HardSigmoid(s) y = Conv(g, v)"
    out = quantized(graph(body, IMAGE, "[N,4,8,8]", w=W, v=V), 16, 3, 8, 8)
    assert out.optimized["QLinearAdd"] == 0 and out.error < 0.05


def test_a_gate_behind_a_relu_keeps_the_relu(graph, quantized):
    body = "s = Conv(x, w, b) r = Relu(s) g = HardSigmoid(r) y = Conv(g, v)"
    out = quantized(graph(body, IMAGE, "[N,4,8,8]", w=W, b=(2, 8), v=V), 16, 3, 8, 8)
    assert out.optimized["QLinearAdd"] == 1 and out.error < 0.05


def test_a_gate_of_negative_slope_stays_in_float(graph, quantized):
    body = "s = Conv(x, w) g = HardSigmoid<alpha=-0.2>(s) y = Conv(g, v)"
    out = quantized(graph(body, IMAGE, "[N,4,8,8]", w=W, v=V), 16, 3, 8, 8)
    assert out.ops["HardSigmoid"] == 1 and out.error < 0.05
    assert any("slope" in reason for reason in out.reasons.values())


def test_silu(graph, quantized):
    body = "s = Conv(x, w) g = Sigmoid(s) m = Mul(s, g) y = Conv(m, v)"
    out = quantized(graph(body, IMAGE, "[N,4,8,8]", w=W, v=V), 16, 3, 8, 8)
    assert out.optimized["QLinearSigmoid"] == 1 and out.optimized["QLinearMul"] == 1
    assert out.error < 0.05


def test_a_gated_tensor_that_is_an_output_keeps_its_range(quantized, graph):
    text = graph("y = Conv(x, w) h = HardSwish(y) z = Conv(h, v)", IMAGE, "[N,8,8,8]", w=W, v=V)
    text = text.replace("(float[N,8,8,8] y)", "(float[N,8,8,8] y, float[N,4,8,8] z)")
    out = quantized(text, 16, 3, 8, 8)
    assert out.reference.min() < -3.2
    assert out.output.min() == pytest.approx(out.reference.min(), rel=0.05)


@pytest.mark.parametrize(
    ("op", "shape", "more"),
    [
        ("MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)", "[N,8,4,4]", {}),
        ("Transpose<perm=[0,1,3,2]>(r)", "[N,8,8,8]", {}),
        ("Slice(r, s, e, a)", "[N,8,4,8]", {"s": "int64[1] s = {2}", "e": "int64[1] e = {6}", "a": "int64[1] a = {2}"}),
        ("Gather<axis=1>(r, i)", "[N,8,8,8]", {"i": "int64[8] i = {7,6,5,4,3,2,1,0}"}),
        ("Tile(r, t)", "[N,8,16,8]", {"t": "int64[4] t = {1,1,2,1}"}),
        ('Resize<mode="nearest">(r, , f)', "[N,8,16,16]", {"f": "float[4] f = {1,1,2,2}"}),
        ("ReduceMax<axes=[2], keepdims=1>(r)", "[N,8,1,8]", {}),
    ],
)
def test_what_moves_values_runs_on_bytes(graph, quantized, op, shape, more):
    text = graph(f"c = Conv(x, w) r = Relu(c) m = {op} y = Conv(m, v)", IMAGE, "[N,4,P,Q]", w=W, v=V, **more)
    out = quantized(text, 8, 3, 8, 8)
    assert out.optimized["QLinearConv"] == 2
    assert out.optimized["QuantizeLinear"] == 1 and out.optimized["DequantizeLinear"] == 1
    assert out.error < 0.05


def test_cubic_resize_stays_in_float(graph, quantized):
    text = graph(
        'c = Conv(x, w) r = Relu(c) m = Resize<mode="cubic">(r, , f) y = Conv(m, v)',
        IMAGE,
        "[N,4,P,Q]",
        w=W,
        v=V,
        f="float[4] f = {1,1,2,2}",
    )
    out = quantized(text, 8, 3, 8, 8)
    assert any("cubic" in reason for reason in out.reasons.values()) and out.error < 0.05


@pytest.mark.parametrize("middle", ["m = Conv(r, k)", "c2 = Conv(r, k) m = Relu(c2)"])
def test_a_conv_kept_in_float_between_int8_stays_float_in_the_runtime(graph, quantized, middle):
    text = graph(f"c = Conv(x, w) r = Relu(c) {middle} y = Conv(m, v)", IMAGE, "[N,4,8,8]", w=W, k=(4, 8, 8, 1, 1), v=V)
    out = quantized(text, 8, 3, 8, 8, keep_float=("Conv_1",))
    found = out.optimized
    assert found["QLinearConv"] == 2 and found["Conv"] + found["FusedConv"] == 1
    assert out.result.metrics["int8_operators_fused"] == out.result.metrics["int8_operators"]
    assert "kept in float as asked" in out.reasons["Conv_1"]


SCRIPT = """
import hashlib
import numpy as np
from graphopt import Context, Model
from graphopt.passes.quantize import Quantize
from graphopt.runtime.target import get_target

class Images:
    synthetic = False
    def __len__(self): return 8
    def part(self, numbers): return self
    def batches(self, n, limit=None):
        yield np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)

text = TEXT
model = Model.from_text(text)
Quantize(place="smaller").run(model, Context(get_target("ort-cpu"), Images(), model.copy()))
print(hashlib.sha256(model.to_bytes()).hexdigest())
"""


def test_bytes_do_not_depend_on_the_hash_seed(graph):
    body = "a = Conv(x, w) r = Relu(a) b = Conv(r, k) h = HardSwish(b) s = Add(h, r)"
    body += " p = Concat<axis=1>(s, r) y = Conv(p, v)"
    text = graph(body, IMAGE, "[N,4,8,8]", w=W, k=(4, 8, 8, 1, 1), v=(3, 4, 16, 1, 1))
    found = set()
    for seed in ("0", "1", "77"):
        code = SCRIPT.replace("TEXT", repr(text))
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1 and len(found.pop().strip()) == 64
