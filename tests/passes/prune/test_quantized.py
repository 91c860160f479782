"""Models that are quantized already: pruned without leaving their integers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import graphopt
from graphopt import Model
from graphopt.analysis.labels import NodeScope, propagate, registry, rule
from graphopt.analysis.layers.quantized import (
    beyond_quantizers,
    cuts_negative,
    dequantizer,
    representable,
    unrounded,
    values_of,
)
from graphopt.analysis.layers.residual import residual
from graphopt.analysis.layers.running import load_images
from graphopt.analysis.layers.sampling import obstacle, sampler_of
from graphopt.ir import Snapshot, infer_shapes, verify
from graphopt.passes.prune import Prune
from graphopt.passes.prune.recover import recover
from graphopt.passes.prune.surgery import remove
from graphopt.passes.prune.weights import weights
from graphopt.passes.quantize.fusion import check_fusion
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.session import open_session, run_session
from graphopt.runtime.target import get_target

from .test_recover import network

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4,6,6] x) => (float[N,3] y) '


@pytest.fixture
def quantized(context) -> Model:
    model = network()
    PassManager(Registry().build("quantize{place=smaller}")).run(model, context(model, 64))
    assert any(n.op == "QuantizeLinear" for n in model.graph.nodes)
    return model


def kinds(model: Model) -> Counter[tuple[str, str]]:
    """What is computed in which type: operators, and types of what the DequantizeLinears read."""
    found: Counter[tuple[str, str]] = Counter()
    for node in model.graph.nodes:
        stored = node.inputs[0].dtype if node.op == "DequantizeLinear" else None
        found[node.op, str(np.dtype(stored)) if isinstance(node.inputs[0], gs.Constant) else ""] += 1
    return found


def on_integers(model: Model) -> dict[str, int]:
    """How many layers ONNX Runtime runs on integers."""
    planned: dict[str, list[str]] = {}
    for node in model.graph.nodes:
        if node.op in ("Conv", "Gemm"):
            planned.setdefault(node.op, []).append(node.name)
    found = check_fusion(model, get_target("ort-cpu"), planned)
    assert found is not None
    return dict(found.counts)


def outputs(model: Model, seed: int = 99) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((64, 3, 8, 8)).astype(np.float32)
    return run_session(open_session(model.to_bytes()), x)[0]


@pytest.mark.parametrize("importance", ["reconstruction", "l2", "taylor"])
def test_everything_that_was_on_integers_stays_there(context, quantized, importance):
    before, snapshot = kinds(quantized), Snapshot.of(quantized)
    macs = 0.7
    result = Prune(macs=macs, multiple=4, importance=importance).run(quantized, context(quantized, 64))
    verify(quantized, snapshot)
    onnx.checker.check_model(quantized.to_proto(), full_check=True)
    assert kinds(quantized) == before
    assert result.metrics["macs_realised"] == pytest.approx(macs, abs=0.1)
    assert result.metrics["proof_max_rel_error"] < 1e-4 and result.metrics["refitted"] > 0
    for node in quantized.graph.nodes:
        if node.op == "DequantizeLinear" and isinstance(node.inputs[0], gs.Constant):
            sizes = {t.shape[0] if t.shape else 1 for t in node.inputs[1:]}
            assert sizes <= {1, node.inputs[0].shape[int(node.attrs.get("axis", 1)) if node.inputs[0].shape[1:] else 0]}


def test_it_is_as_exact_as_pruning_the_float_model(context, quantized):
    """The refit makes up for what goes, rounded weights and all."""
    want = outputs(quantized)
    gap = {}
    for recovered in (False, True):
        twin = quantized.copy()
        Prune(macs=0.6, multiple=4, importance="l2", recover=recovered).run(twin, context(twin, 256))
        gap[recovered] = float(np.square(outputs(twin) - want).mean())
    assert gap[True] < 0.5 * gap[False]


def test_the_last_layer_is_named_where_its_weight_is_quantized(quantized):
    """Its columns are those of a constant, yet they are channels that it makes."""
    labels = propagate(quantized)
    assert [(x.op, x.channels) for x in labels.locked] == [("Gemm", 4)]
    gemm = next(i for i, n in enumerate(quantized.graph.nodes) if n.op == "Gemm")
    (contraction,) = (c for c in labels.contractions if c.node == gemm)
    assert [slot for slot, _, _ in contraction.inputs] == [0]  # the weight is not masked


def test_weights_are_found_behind_their_quantizers(quantized):
    float_model = network()
    plain = {(w.slot, w.axis, w.values.shape) for w in weights(float_model, propagate(float_model)) if not w.is_vector}
    found = [w for w in weights(quantized, propagate(quantized)) if not w.is_vector]
    assert {(w.slot, w.axis, w.values.shape) for w in found} == plain
    ops = {quantized.graph.nodes[w.node].op for w in found}
    assert ops == {"Conv", "Gemm"}


# --- one layer ----------------------------------------------------------------------------------------------


def layer(
    kind: str = "int8", zero: int = 0, bias: bool = True, per_channel: bool = True, shared: bool = False
) -> Model:
    """A convolution with a quantized weight [6,4,3,3], and what ends a classifier."""
    rng = np.random.default_rng(0)
    model = Model.from_text(
        f"{HEADER} <float[6,4,3,3] w = {{{','.join(['0'] * 216)}}}, float[6] b = {{0,0,0,0,0,0}}, "
        f"float[3,6] f = {{{','.join(f'{v:.4f}' for v in rng.standard_normal(18))}}}> "
        f"{{ c = Conv(x, w{', b' if bias else ''}) q = GlobalAveragePool(c) s = Flatten(q) y = Gemm<transB=1>(s, f) }}"
    )
    limits = np.iinfo(kind)
    values = rng.integers(limits.min, limits.max + 1, (6, 4, 3, 3)).astype(kind)
    count = 6 if per_channel else 1
    scale = rng.uniform(0.001, 0.004, count).astype(np.float32)
    with model.edit() as graph:
        conv = graph.nodes[0]
        made = [(1, values, scale, np.full(count, zero, kind), "float")]
        if bias:
            whole = rng.integers(-1000, 1000, 6).astype(np.int32)
            made.append((2, whole, np.broadcast_to(scale * 0.02, 6).copy(), np.zeros(6, np.int32), "bias"))
        for slot, stored, steps, zeros, name in reversed(made):
            real = gs.Variable(f"{name}_real", dtype=np.float32, shape=list(stored.shape))
            if not per_channel and slot == 1:
                steps, zeros = steps.reshape(()), zeros.reshape(())
            constants = [gs.Constant(f"{name}_{k}", v) for k, v in (("q", stored), ("s", steps), ("z", zeros))]
            graph.nodes.insert(0, gs.Node("DequantizeLinear", f"dq_{name}", {"axis": 0}, constants, [real]))
            conv.inputs[slot] = real
        if shared:
            other = gs.Variable("other", dtype=np.float32, shape=[6, 4, 3, 3])
            graph.nodes.append(gs.Node("Neg", "neg", inputs=[conv.inputs[1]], outputs=[other]))
            graph.outputs.append(other)
    infer_shapes(model)
    return model


def conv_of(model: Model) -> gs.Node:
    return next(n for n in model.graph.nodes if n.op == "Conv")


@pytest.mark.parametrize(("kind", "zero"), [("int8", 0), ("uint8", 117)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_parameters_are_read_and_written_as_real_numbers(kind, zero, per_channel):
    model = layer(kind, zero, per_channel=per_channel)
    node = conv_of(model)
    sampler = sampler_of(node)
    assert sampler is not None
    weight, bias = sampler.read(node)
    dq = dequantizer(node.inputs[1])
    assert dq is not None
    scale = np.asarray(dq.inputs[1].values, np.float64).reshape(-1, 1, 1, 1)
    whole = (np.asarray(dq.inputs[0].values, np.float64) - zero) * scale
    np.testing.assert_allclose(weight[0].T, whole.reshape(6, -1))
    wanted = weight * 0.9 + 1e-4, bias + 0.01
    stored = sampler.stored(node, *wanted)
    with model.edit():
        sampler.write(model, node, *wanted)
    after = sampler.read(node)
    for a, b in zip(after, stored, strict=True):
        np.testing.assert_allclose(a, b)
    assert dq.inputs[0].dtype == np.dtype(kind) and np.abs(after[0] - wanted[0]).max() <= 0.51 * scale.max()
    assert dequantizer(node.inputs[2]).inputs[0].dtype == np.int32  # type: ignore[union-attr]
    np.testing.assert_allclose(after[1], wanted[1], atol=1e-4)
    onnx.checker.check_model(model.to_proto(), full_check=True)


def test_what_is_out_of_range_is_cut_off():
    model = layer()
    tensor = conv_of(model).inputs[1]
    values = values_of(tensor)
    scale = np.asarray(dequantizer(tensor).inputs[1].values, np.float64)  # type: ignore[union-attr]
    kept = representable(tensor, values * 100)
    assert (np.abs(kept) <= 128 * scale[:, None, None, None] + 1e-9).all()
    np.testing.assert_allclose(representable(tensor, values), values)


def test_no_bias_is_added_to_a_layer_on_integers():
    """It would need a scale that goes with the input's, and take the layer off its integer kernel."""
    model = layer(bias=False)
    node = conv_of(model)
    sampler = sampler_of(node)
    assert sampler is not None and not sampler.can_bias(node)
    weight, bias = sampler.read(node)
    with model.edit():
        sampler.write(model, node, weight, bias + 1.0)
    assert len(node.inputs) == 2


def test_shared_integers_are_left_and_the_reason_is_given():
    model = layer(shared=True)
    assert sampler_of(conv_of(model)) is None and "read elsewhere" in obstacle(conv_of(model))


def test_a_scale_that_is_computed_is_left():
    model = layer()
    node = conv_of(model)
    dq = dequantizer(node.inputs[1])
    assert dq is not None
    with model.edit() as graph:
        scale = gs.Variable("computed", dtype=np.float32, shape=[6])
        graph.nodes.insert(0, gs.Node("Abs", "abs", inputs=[dq.inputs[1]], outputs=[scale]))
        dq.inputs[1] = scale
    assert dequantizer(node.inputs[1]) is None
    assert sampler_of(node) is None and "DequantizeLinear" in obstacle(node)


def test_rounding_that_undoes_a_refit_drops_it(context):
    """Steps so coarse that nothing in between can be written: the weight stays as it was."""
    model = network()
    project = next(n for n in model.graph.nodes if list(getattr(n.inputs[-1], "shape", [])) == [16, 32, 1, 1])
    with model.edit() as graph:
        whole = np.sign(np.asarray(project.inputs[1].values)).astype(np.int8)
        constants = [
            gs.Constant("wq", whole),
            gs.Constant("ws", np.array(0.3, np.float32)),
            gs.Constant("wz", np.array(0, np.int8)),
        ]
        real = gs.Variable("real", dtype=np.float32, shape=[16, 32, 1, 1])
        graph.nodes.insert(0, gs.Node("DequantizeLinear", "dq", inputs=constants, outputs=[real]))
        project.inputs[1] = real
        expand = next(n for n in graph.nodes if n.op == "Conv" and list(n.inputs[1].shape) == [32, 16, 1, 1])
        small = np.array(expand.inputs[1].values)
        small[:2] *= 1e-2
        expand.inputs[1].values = small
    labels = propagate(model)
    family = next(f for f in labels.families if f.groups.size == 32)
    keep = labels.everything()
    keep[family.groups[:2]] = False
    pruned = model.copy()
    remove(pruned, labels, keep)
    ctx = context(model, 64)
    recover(model, pruned, labels, keep, load_images(model, ctx), ctx)
    left = next(n for n in pruned.graph.nodes if n.name == "dq").inputs[0].values
    assert left.dtype == np.int8 and left.shape == (16, 30, 1, 1)
    np.testing.assert_array_equal(left, whole[:, 2:])


def test_what_cannot_be_refitted_is_reported(context):
    """A Gemm that scales its product is no plain least-squares problem."""
    model = network()
    gemm = next(n for n in model.graph.nodes if n.op == "Gemm")
    with model.edit():
        gemm.attrs["alpha"] = 2.0
    result = Prune(macs=0.7, multiple=4, importance="l2").run(model, context(model, 64))
    assert {s.reason for s in result.skipped if s.node == gemm.name} == {
        "its output channels must stay; 'y' is an output of the model",
        "not refitted: it scales or transposes what it multiplies",
    }
    plain = network()
    result = Prune(macs=0.7, multiple=4, importance="l2").run(plain, context(plain, 64))
    assert not any("not refitted" in s.reason for s in result.skipped)


# --- what is around layers ----------------------------------------------------------------------------------


def test_a_residual_sum_is_found_behind_its_quantizers(quantized):
    nodes = quantized.graph.nodes
    made_by = {t.name: i for i, n in enumerate(nodes) for t in n.outputs}
    add = next(n for n in nodes if n.op == "Add")
    first, *_, last = (n for n in nodes if n.op == "Conv")
    out = last.outputs[0]
    other = next(t for t in add.inputs if t is not beyond_quantizers(out))
    assert residual(quantized, out, made_by[out.name], made_by) == (add.outputs[0].name, other.name)
    out = first.outputs[0]  # the other branch begins with what it computes
    assert residual(quantized, out, made_by[out.name], made_by) == (out.name, None)


def test_a_quantizer_that_others_read_is_no_mere_pair():
    model = Model.from_text(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x) => (float[N,3] y, uint8[N,3] q) '
        "<float s = {0.1}, uint8 z = {0}> { a = Relu(x) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) }"
    )
    relu, quantizer, _ = model.graph.nodes
    assert beyond_quantizers(relu.outputs[0]).name == "y"  # what it is an output of is for the caller to ask
    with model.edit() as graph:
        graph.nodes.append(gs.Node("Abs", "abs", inputs=[quantizer.outputs[0]], outputs=[gs.Variable("o")]))
    assert beyond_quantizers(relu.outputs[0]) is relu.outputs[0]


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        ("y = Relu(x)", True),
        ("y = QuantizeLinear(x, s, u)", True),
        ("y = QuantizeLinear(x, s)", True),
        ("y = QuantizeLinear(x, s, v)", False),
        ("y = QuantizeLinear(x, s, i)", False),
        ("y = QuantizeLinear(x, s, m)", True),
        ("y = LeakyRelu(x)", False),
    ],
)
def test_what_takes_all_that_is_negative_alike(text, cuts):
    made = "int8" if text.endswith(("i)", "m)")) else "uint8" if "Quantize" in text else "float"
    model = Model.from_text(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => ({made}[N] y) '
        f"<float s = {{0.1}}, uint8 u = {{0}}, uint8 v = {{3}}, int8 i = {{0}}, int8 m = {{-128}}> {{ {text} }}"
    )
    assert cuts_negative(model.graph.nodes[0]) is cuts


PAIR = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,2] x) => (float[N,3,2] y) <SCALES> {
    a = Relu(x) q = QuantizeLinear<axis=1>(a, s, z) y = DequantizeLinear<axis=1>(q, s, z) }"""
SCALES = {
    "one": ("float s = {0.01}, uint8 z = {20}", (-0.2, 2.35)),
    "per channel": (
        "float[3] s = {0.01, 0.02, 0.005}, int8[3] z = {0, -128, 7}",
        (np.array([-1.28, 0.0, -0.675])[:, None], np.array([1.27, 5.1, 0.6])[:, None]),
    ),
}


@pytest.mark.parametrize("kind", SCALES)
def test_without_rounding_values_are_cut_off_alone(kind):
    scales, (low, high) = SCALES[kind]
    model = Model.from_text(PAIR.replace("SCALES", scales))
    infer_shapes(model)
    before = model.to_bytes()
    x = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32) * 3
    found = run_session(open_session(unrounded(model).to_bytes()), x)[0]
    np.testing.assert_allclose(found, np.clip(np.maximum(x, 0), low, high), rtol=1e-5, atol=1e-6)
    rounded = run_session(open_session(before), x)[0]
    assert 1e-4 < np.abs(found - rounded).max() < 0.011
    assert [n.op for n in model.graph.nodes] == ["Relu", "QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(float[N,3,2] y)", "(float[N,3,2] y, uint8[N,3,2] q)"),  # the integers are an output
        ("y = DequantizeLinear<axis=1>(q, s, z)", "y = DequantizeLinear<axis=1>(q, s2, z)"),  # another scale
        ("y = Deq", "k = Cast<to=1>(q) y0 = Deq"),  # another reader
    ],
)
def test_rounding_stays_where_it_is_more_than_a_pair(old, new):
    text = PAIR.replace("SCALES", "float s = {0.01}, float s2 = {0.02}, uint8 z = {20}").replace(old, new)
    if "y0" in new:
        text = text.replace("y0 = DequantizeLinear<axis=1>(q, s, z)", "w = DequantizeLinear(q, s, z) y = Add(k, w)")
    model = Model.from_text(text)
    assert unrounded(model) is model


def test_a_wrong_rule_is_caught_in_a_quantized_model(context, monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    @rule("Softmax")
    def wrong(scope: NodeScope) -> None:
        scope.out(scope.axes(0))

    model = network()
    relu = next(n for n in model.graph.nodes if n.op == "Relu" and n.inputs[0].name == "h")
    with model.edit():
        relu.op, relu.attrs = "Softmax", {"axis": 1}
    PassManager(Registry().build("quantize{place=smaller}")).run(model, context(model, 64))
    result = Prune(macs=0.7, multiple=4, importance="l2", recover=False).run(model, context(model, 16))
    assert any("not exact" in s.reason for s in result.skipped)
    assert result.metrics["proof_max_rel_error"] < 1e-4


def test_a_real_classifier(shared, context, monkeypatch):
    monkeypatch.setattr("graphopt.passes.prune.consumers._FEWEST_ROWS", 1024)  # enough to see whether refits take
    model = graphopt.load(shared / "models" / "resnet20-cifar10.onnx")
    PassManager(Registry().build("quantize")).run(model, context(model, 32))
    before, snapshot, fused = kinds(model), Snapshot.of(model), on_integers(model)
    assert fused["Conv"] == 19
    result = Prune(macs=0.7, importance="l2").run(model, context(model, 64))
    verify(model, snapshot)
    assert kinds(model) == before and on_integers(model) == fused  # ONNX Runtime's kernels, too
    assert result.metrics["proof_max_rel_error"] < 1e-4
    assert result.metrics["macs_realised"] == pytest.approx(0.7, abs=0.03)
    assert result.metrics["refit_error_after"] < result.metrics["refit_error_before"]
