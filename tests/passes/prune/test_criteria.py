"""Each criterion against its formula written out, and criteria of one's own."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from graphopt import Model, PassError, UsageError
from graphopt.analysis.labels import Labels, propagate
from graphopt.analysis.layers.running import load_images
from graphopt.passes.prune import Channels, Prune, criterion
from graphopt.passes.prune.criteria import distances
from graphopt.passes.prune.importance import NAMES, importance
from graphopt.passes.prune.taylor import _STEP
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.session import open_session, run_session

from .test_recover import network, tensor

HEADER = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,4] y) '


def scores(name: str, model: Model, context, count: int = 64) -> tuple[np.ndarray, Labels]:
    labels, ctx = propagate(model), context(model, count)
    images = load_images(model, ctx) if count else None
    return importance(name, Channels(model, labels, labels.families, images, ctx)), labels


def channels_of(labels: Labels, tensor_name: str) -> np.ndarray:
    groups = labels.tensors[tensor_name][1]
    assert groups is not None
    return groups


def constant(model: Model, name: str) -> np.ndarray:
    return np.asarray(model.graph.tensors()[name].values, dtype=np.float64)


def images(count: int = 64) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, 3, 8, 8)).astype(np.float32)


def value(model: Model, name: str, x: np.ndarray) -> np.ndarray:
    twin = model.copy()
    with twin.edit() as graph:
        graph.outputs = [graph.tensors()[name]]
        graph.cleanup()
    return run_session(open_session(twin.to_bytes()), x)[0].astype(np.float64)


# --- FPGM ---------------------------------------------------------------------------------------------------


def test_distances_are_those_between_all_pairs(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((13, 27))
    rows[3] = rows[8]
    expected = [sum(np.linalg.norm(a - b) for b in rows) for a in rows]
    np.testing.assert_allclose(distances(rows), expected, rtol=1e-9)
    monkeypatch.setattr("graphopt.passes.prune.criteria._BLOCK", 30)  # in blocks of two rows
    np.testing.assert_allclose(distances(rows), expected, rtol=1e-9)
    assert (distances(np.ones((4, 3)) * 1e3) == 0).all()


def test_fpgm_looks_at_filters_alone(context):
    """Neither the layers that read a channel nor depthwise filters, which see one channel each, say what it repeats."""
    model = network()
    found, labels = scores("fpgm", model, context, 0)
    filters = constant(model, "e").reshape(32, -1)
    expected = distances(filters)
    np.testing.assert_allclose(found[channels_of(labels, "h")], expected / expected.sum())


def test_fpgm_counts_every_layer_that_makes_a_channel(context):
    model = network()
    found, labels = scores("fpgm", model, context, 0)
    one, two = distances(constant(model, "w").reshape(16, -1)), distances(constant(model, "p").reshape(16, -1))
    np.testing.assert_allclose(found[channels_of(labels, "z")], one / one.sum() + two / two.sum())


def test_fpgm_of_equal_filters_falls_back_on_their_readers(context):
    model = network()
    with model.edit() as graph:
        graph.nodes[2].inputs[1].values = np.ones((32, 16, 1, 1), dtype=np.float32)
    found, labels = scores("fpgm", model, context, 0)
    assert (found[channels_of(labels, "h")] > 0).all()


# --- BN -----------------------------------------------------------------------------------------------------


def normalised(read: str = "n") -> Model:
    """conv - batch norm - relu - conv - classifier; the statistics are those of the noise that the tests use."""
    weights = [tensor("w", 8, 3, 3, 3), tensor("g", 8, scale=1.0), tensor("b", 8), tensor("m", 8), tensor("s", 8)]
    weights += [tensor("v", 8, 8, 1, 1), tensor("f", 4, 8), tensor("h", 4)]
    body = f"a = Conv(x, w) n = BatchNormalization<epsilon=0.0>(a, g, b, m, s) r = Relu({read}) c = Conv(r, v) "
    body += "d = Relu(c) q = GlobalAveragePool(d) t = Flatten(q) y = Gemm<transB=1>(t, f, h)"
    model = Model.from_text(f"{HEADER} <{', '.join(weights)}> {{ {body} }}")
    before = value(model, "a", images())
    with model.edit() as graph:
        graph.tensors()["m"].values = before.mean(axis=(0, 2, 3)).astype(np.float32)
        graph.tensors()["s"].values = before.var(axis=(0, 2, 3)).astype(np.float32)
    return model


def test_bn_is_the_scale_where_there_is_one(context):
    model = normalised()
    found, labels = scores("bn", model, context)
    gamma = np.abs(constant(model, "g"))
    np.testing.assert_allclose(found[channels_of(labels, "n")], gamma / gamma.sum(), rtol=1e-6)


def test_bn_recovers_a_folded_scale_from_the_outputs(context):
    model = normalised()
    gamma = np.abs(constant(model, "g"))
    PassManager(Registry().build("simplify")).run(model, context(model))
    assert not any(n.op == "BatchNormalization" for n in model.graph.nodes)
    found, labels = scores("bn", model, context)
    first = model.graph.nodes[0].outputs[0].name
    np.testing.assert_allclose(found[channels_of(labels, first)], gamma / gamma.sum(), rtol=1e-3)


def test_bn_measures_layers_that_never_had_one(context):
    model = network()
    found, labels = scores("bn", model, context)
    expected = np.zeros(16)
    for name in ("a", "l"):  # both make the channels of the residual stream
        std = value(model, name, images()).std(axis=(0, 2, 3))
        expected += std / std.sum()
    np.testing.assert_allclose(found[channels_of(labels, "z")], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["bn", "taylor"])
def test_without_images_there_is_nothing_to_measure(context, name):
    with pytest.raises(PassError, match="importance=l2"):
        scores(name, network(), context, 0)
    model = network()
    with pytest.raises(PassError, match=f"{name!r} measures channels on images"):
        Prune(importance=name, multiple=4).run(model, context(model, 0))


# --- Taylor -------------------------------------------------------------------------------------------------


def fisher(logits: np.ndarray, derivatives: np.ndarray) -> np.ndarray:
    """Mean over images of J' (diag(p) - p p') J, for ``derivatives`` [images, classes, channels]."""
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    metric = np.einsum("ni,ij->nij", p, np.eye(p.shape[1])) - np.einsum("ni,nj->nij", p, p)
    return np.einsum("nic,nij,njc->c", derivatives, metric, derivatives) / len(logits)


def linear(batch: str = "N", last: str = "") -> Model:
    weights = [tensor("w", 6, 3), tensor("v", 4, 6, scale=0.5), tensor("b", 4)]
    body = f"p = GlobalAveragePool(x) t = Flatten(p) h = Gemm<transB=1>(t, w) {'z' if last else 'y'} = "
    body += f"Gemm<transB=1>(h, v, b) {last}"
    return Model.from_text(f"{HEADER.replace('N', batch)} <{', '.join(weights)}> {{ {body} }}")


@pytest.mark.parametrize("last", ["", "y = Softmax(z)", "y = LogSoftmax(z)"])
def test_taylor_is_exact_where_the_network_is_linear(context, monkeypatch, last):
    """The gate on channel c adds v[:, c] * h[c] to the logits."""
    monkeypatch.setattr("graphopt.passes.prune.taylor._STEP", 1e-2)
    model = linear(last=last)
    found, labels = scores("taylor", model, context, 32)
    hidden = value(model, "h", images(32))
    logits = hidden @ constant(model, "v").T + constant(model, "b")
    expected = fisher(logits, np.einsum("ic,nc->nic", constant(model, "v"), hidden))
    groups = labels.tensors["h"][1]
    np.testing.assert_allclose(found[groups], expected, rtol=0.02)


def test_taylor_through_everything_that_reads_a_channel(context):
    """A channel of the residual stream enters two layers: against masks closed by hand on the whole network."""
    model = network()
    found, labels = scores("taylor", model, context, 24)
    before = value(model, "y", images(24))
    p = np.exp(before) / np.exp(before).sum(axis=1, keepdims=True)
    for place in (0, 5):
        twin = model.copy()
        with twin.edit() as graph:
            factor = np.ones(16, dtype=np.float32)
            factor[place] -= _STEP
            graph.tensors()["e"].values = graph.tensors()["e"].values * factor[:, None, None]
            graph.tensors()["f"].values = graph.tensors()["f"].values * factor
        after = value(twin, "y", images(24))
        change = after - before - np.log((p * np.exp(after - before)).sum(axis=1, keepdims=True))
        expected = (p * change**2).sum(axis=1).mean() / _STEP**2
        assert found[channels_of(labels, "z")[place]] == pytest.approx(expected, rel=1e-3)


def test_taylor_sees_what_does_not_reach_the_outputs(context):
    model = linear()
    with model.edit() as graph:
        values = np.array(graph.tensors()["v"].values)
        values[:, 2] = 0.0
        graph.tensors()["v"].values = values
    found, labels = scores("taylor", model, context, 16)
    groups = labels.tensors["h"][1]
    assert np.argmin(found[groups]) == 2 and found[groups[2]] == 0.0
    # What moves all logits alike moves no probability.
    with model.edit() as graph:
        values[:, 4] = 0.7
        graph.tensors()["v"].values = values
    found, _ = scores("taylor", model, context, 16)
    assert found[groups[4]] < 1e-6 * found[groups].max()


def test_taylor_of_outputs_that_some_channels_do_not_reach(context):
    """One output depends on both layers, one on the first alone, one on neither."""
    weights = ", ".join([tensor("w", 6, 3), tensor("v", 4, 6), tensor("u", 4, 6)])
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,8,8] x) => (float[N,4] y, float[N,4] z, float[N,3] t) <{weights}> {{
            p = GlobalAveragePool(x) t = Flatten(p) h = Gemm<transB=1>(t, w) y = Gemm<transB=1>(h, v)
            k = Gemm<transB=1>(t, w) z = Gemm<transB=1>(k, u) }}"""
    model = Model.from_text(text)
    found, labels = scores("taylor", model, context, 16)
    for name, out, weight in (("h", "y", "v"), ("k", "z", "u")):
        hidden = value(model, name, images(16))
        derivatives = np.einsum("ic,nc->nic", constant(model, weight), hidden)
        expected = fisher(value(model, out, images(16)), derivatives)
        np.testing.assert_allclose(found[labels.tensors[name][1]], expected, rtol=0.1)


def test_taylor_of_what_no_output_depends_on(context):
    model = linear()
    with model.edit() as graph:
        graph.outputs = [next(n for n in graph.nodes if n.op == "Flatten").outputs[0]]
    found, _ = scores("taylor", model, context, 16)
    assert (found == 0).all()


def test_taylor_takes_whole_batches_where_they_are_fixed(context):
    model = linear(batch="8")
    found, labels = scores("taylor", model, context, 20)  # two batches, and a rest that does not fill one
    free, _ = scores("taylor", linear(), context, 16)
    groups = labels.tensors["h"][1]
    np.testing.assert_allclose(found[groups], free[groups], rtol=1e-3)


# --- all of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm", "bn", "taylor"])
def test_every_criterion_prunes(context, name):
    model = network()
    result = Prune(macs=0.7, multiple=4, importance=name).run(model, context(model, 32))
    assert result.metrics["macs_realised"] == pytest.approx(0.7, abs=0.1)


def test_quantized_weights_count_as_what_they_stand_for(context):
    plain = network()
    quantized = network()
    with quantized.edit() as graph:
        node = graph.nodes[2]
        values = np.asarray(node.inputs[1].values)
        scale = (np.abs(values).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        whole = np.rint(values / scale[:, None, None, None]).astype(np.int8)
        real = gs.Variable("real", dtype=np.float32, shape=list(values.shape))
        inputs = [gs.Constant("whole", whole), gs.Constant("steps", scale)]
        graph.nodes.insert(0, gs.Node("DequantizeLinear", "dq", {"axis": 0}, inputs, [real]))
        node.inputs[1] = real
    for name in ("l2", "fpgm"):
        one, first = scores(name, plain, context, 0)
        two, second = scores(name, quantized, context, 0)
        np.testing.assert_allclose(two[channels_of(second, "h")], one[channels_of(first, "h")], rtol=0.05, err_msg=name)


# --- criteria of one's own ----------------------------------------------------------------------------------


@pytest.fixture
def unregistered():
    """Whatever a test registers is forgotten after it."""
    from graphopt.passes.prune import importance as module

    names, entries = list(NAMES), dict(module._CRITERIA)
    yield
    NAMES[:] = names
    module._CRITERIA.clear()
    module._CRITERIA.update(entries)


def test_a_criterion_is_one_function(context, unregistered):
    @criterion("first")
    def first(channels: Channels) -> np.ndarray:
        return np.arange(channels.labels.count, dtype=float)  # the first go first

    model = network()
    kept = constant(model, "w")[8:]
    assert Prune(macs=0.6, multiple=8, importance="first").spec == "prune{macs=0.6,importance=first,multiple=8}"
    Prune(macs=0.6, multiple=8, importance="first", recover=False).run(model, context(model))
    np.testing.assert_array_equal(constant(model, "w"), kept)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (np.zeros(3), "shape"),
        (np.nan, "not a number"),
        (-1.0, "negative"),
        (np.inf, "infinite"),
    ],
)
def test_what_is_no_score_is_refused(context, unregistered, scores, words):
    @criterion("bad")
    def bad(channels: Channels) -> np.ndarray:
        return scores if isinstance(scores, np.ndarray) else np.full(channels.labels.count, scores)

    model = network()
    with pytest.raises(PassError, match=f"'bad' gave scores.*{words}"):
        Prune(importance="bad", multiple=4).run(model, context(model))


@pytest.mark.parametrize("name", ["reconstruction", "my own", ""])
def test_names_that_cannot_be_taken(name):
    with pytest.raises(UsageError, match="cannot be called"):
        criterion(name)


def test_a_file_may_hold_a_criterion_alone(tmp_path, unregistered):
    file = tmp_path / "mine.py"
    file.write_text(
        "from graphopt.passes.prune import criterion\n\n\n@criterion('spread')\ndef spread(channels):\n"
        "    return channels.by_weights(lambda rows: rows.var(axis=1))\n"
    )
    registry = Registry()
    with pytest.raises(UsageError, match="one of reconstruction"):
        registry.build("prune{importance=spread}")
    assert registry.load_file(file) == []
    assert registry.build("prune{importance=spread}")
    (tmp_path / "none.py").write_text("from graphopt.passes.prune import criterion\n")
    with pytest.raises(UsageError, match="defines no pass"):
        registry.load_file(tmp_path / "none.py")
