"""Residual branches that go as a whole: which ones can, and what is left then."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import HEAD, build

from graphopt import Model, PassError
from graphopt.analysis.cost import with_batch
from graphopt.analysis.labels import Labels, propagate
from graphopt.passes.prune import Prune
from graphopt.passes.prune.curves import allowed
from graphopt.passes.prune.latency import LatencyModel, timed_counts
from graphopt.passes.prune.layers import stretches
from graphopt.passes.prune.proof import check, masked
from graphopt.passes.prune.surgery import remove
from graphopt.pipeline import Registry
from graphopt.pipeline.manager import PassManager
from graphopt.runtime.equivalence import compare_outputs
from graphopt.runtime.feeds import random_feeds

BLOCK = "a = Conv<pads=[1,1,1,1]>(x, s)\n i = Relu(a)\n "
STEM = {"s": (6, 3, 3, 3), "wf": (5, 6), "bf": (5,)}
PLAIN = BLOCK + "c = Conv<pads=[1,1,1,1]>(i, w, b)\n r = Relu(c)\n d = Conv(r, v, e)\n t = Add(d, i)\n z = Relu(t)\n"
WEIGHTS = STEM | {"w": (8, 6, 3, 3), "b": (8,), "v": (6, 8, 1, 1), "e": (6,)}


def without(model: Model, count: int = 1) -> tuple[Model, Labels]:
    """The model without the first ``count`` branches there are, proved to be the same as with them masked."""
    labels = propagate(model)
    keep = labels.everything()
    free = [f for f in labels.families if f.branch is not None]
    assert len(free) >= count, [f.producers for f in labels.families]
    for family in free[:count]:
        keep[family.groups] = False
    feeds = random_feeds(model.to_bytes())
    verdict = check(model, labels, keep, feeds)
    assert verdict.holds, verdict.reason
    assert not compare_outputs(model.to_bytes(), masked(model, labels, keep).to_bytes(), feeds).equal
    pruned = model.copy()
    remove(pruned, labels, keep)
    return pruned, labels


def ops(model: Model) -> list[str]:
    return [n.op for n in model.graph.nodes]


def test_two_convolutions():
    pruned, labels = without(build(PLAIN + HEAD, WEIGHTS))
    assert ops(pruned)[:3] == ["Conv", "Relu", "Relu"] and "Add" not in ops(pruned)
    assert {c.name for c in pruned.constants()} == {"s", "wf", "bf"}  # the bias of the branch goes as well
    (family,) = [f for f in labels.families if f.branch is not None]
    assert family.groups.size == 8 and len(family.branch.nodes) == 3 and len(family.branch.sums) == 1


def test_a_depthwise_block_with_a_gate():
    body = BLOCK + (
        "c = Conv(i, w, b)\n h = HardSwish(c)\n d = Conv<group=8, pads=[1,1,1,1]>(h, q)\n g0 = GlobalAveragePool(d)\n "
        "g1 = Conv(g0, k)\n g2 = Relu(g1)\n g3 = Conv(g2, l)\n g = HardSigmoid(g3)\n m = Mul(d, g)\n "
        "o = Conv(m, v, e)\n z = Add(i, o)\n"
    )
    more = {"w": (8, 6, 1, 1), "q": (8, 1, 3, 3), "k": (4, 8, 1, 1), "l": (8, 4, 1, 1)}
    model = build(body + HEAD, WEIGHTS | more)
    pruned, labels = without(model)
    assert ops(pruned)[:2] == ["Conv", "Relu"] and ops(pruned).count("Conv") == 1
    # The gate narrows inside; with nothing in it, it would still multiply.
    assert [f.groups.size for f in labels.families if f.branch is not None] == [8]


def test_a_transformer_block_with_biases_apart():
    body = (
        "a = MatMul(x, w)\n c = Add(a, b)\n g = Relu(c)\n d = MatMul(g, v)\n o = Add(d, e)\n t = Add(x, o)\n"
        " y = MatMul(t, f)\n"
    )
    model = build(body, {"w": (6, 8), "b": (8,), "v": (8, 6), "e": (6,), "f": (6, 5)}, x="float[N,4,6] x",
                  y="float[N,4,5] y")  # fmt: skip
    pruned, _ = without(model)
    assert ops(pruned) == ["MatMul"]


def test_two_branches_one_after_the_other():
    body = BLOCK + (
        "c = Conv(i, w)\n d = Conv(c, v)\n t = Add(i, d)\n c2 = Conv(t, w2)\n d2 = Conv(c2, v2)\n z = Add(d2, t)\n"
    )
    shapes = {"w": (8, 6, 1, 1), "v": (6, 8, 1, 1), "w2": (7, 6, 1, 1), "v2": (6, 7, 1, 1)}
    for count, left in ((1, 3), (2, 1)):
        pruned, _ = without(build(body + HEAD, STEM | shapes), count)
        assert ops(pruned).count("Conv") == left


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        (BLOCK + "c = Conv(i, w)\n d = Conv(c, v)\n z = Relu(d)\n", {}),  # nothing to be added to
        (BLOCK + "c = Conv(i, w)\n d = Conv(c, v)\n t = Mul(d, i)\n z = Relu(t)\n", {}),
        (BLOCK + "c = Conv(i, w)\n d = Conv(c, v)\n k = Relu(d)\n t = Add(d, i)\n z = Add(t, k)\n", {"ok": ()}),
        # What is left would have to be spread over places.
        (BLOCK + "g = GlobalAveragePool(i)\n c = Conv(i, w)\n d = Conv(c, v)\n z = Add(d, g)\n", {}),
        # A constant that is added alone is not there to stay.
        (BLOCK + "c = Conv(i, w)\n d = Conv(c, v)\n z = Add(d, one)\n", {"one": (1, 6, 1, 1)}),
        # Its channels are joined with others.
        (
            BLOCK + "c = Conv(i, w)\n j = Concat<axis=1>(c, i)\n d = Conv(j, vj)\n z = Add(d, i)\n",
            {"vj": (6, 14, 1, 1)},
        ),
    ],
)
def test_what_cannot_go_as_a_whole(body, shapes):
    needed = {"w": (8, 6, 1, 1), "v": (6, 8, 1, 1)} if "vj" not in shapes else {"w": (8, 6, 1, 1)}
    labels = propagate(build(body + HEAD, STEM | needed | {k: s for k, s in shapes.items() if s}))
    found = [f for f in labels.families if f.branch is not None]
    assert bool(found) is ("ok" in shapes)
    assert labels.families


def test_a_sum_that_is_an_output_stays():
    body = BLOCK + "c = Conv(i, w)\n d = Conv(c, v)\n y = Add(d, i)\n"
    model = build(body, STEM | {"w": (8, 6, 1, 1), "v": (6, 8, 1, 1)}, y="float[N,6,8,8] y")
    assert all(f.branch is None for f in propagate(model).families)


def test_both_operands_of_a_sum_do_not_go_together():
    body = BLOCK + (
        "c = Conv(i, w)\n d = Conv(c, v)\n c2 = Conv(i, w2)\n d2 = Conv(c2, v2)\n t = Add(d, d2)\n z = Relu(t)\n"
    )
    shapes = {"w": (8, 6, 1, 1), "v": (6, 8, 1, 1), "w2": (7, 6, 1, 1), "v2": (6, 7, 1, 1)}
    model = build(body + HEAD, STEM | shapes)
    labels = propagate(model)
    free = [f for f in labels.families if f.branch is not None]
    assert len(free) == 2
    keep = labels.everything()
    for family in free:
        keep[family.groups] = False
    verdict = check(model, labels, keep, random_feeds(model.to_bytes()))
    assert not verdict.holds and "both operands" in verdict.reason


def test_counts_end_at_none_where_a_branch_goes_with_them():
    labels = propagate(build(PLAIN + HEAD, WEIGHTS))
    stream, inner = sorted(labels.families, key=lambda f: f.groups.size)
    assert allowed(inner, 4, 0.25).tolist() == [8, 4, 0] and allowed(inner, 16, 1.0).tolist() == [8, 0]
    assert allowed(stream, 4, 0.25).tolist() == [6, 4]


def test_the_pass_takes_a_branch_that_does_little(context):
    """Of two blocks, one adds next to nothing: at half of the multiply-accumulates it is gone."""
    body = BLOCK + (
        "c = Conv<pads=[1,1,1,1]>(i, w)\n d = Conv<pads=[1,1,1,1]>(c, v)\n u = Add(i, d)\n t = Relu(u)\n"
        "c2 = Conv<pads=[1,1,1,1]>(t, w2)\n d2 = Conv<pads=[1,1,1,1]>(c2, v2)\n u2 = Add(d2, t)\n z = Relu(u2)\n"
    )
    shapes = {"w": (8, 6, 3, 3), "v": (6, 8, 3, 3), "w2": (8, 6, 3, 3), "v2": (6, 8, 3, 3)}
    model = build(body + HEAD, STEM | shapes)
    with model.edit() as graph:
        quiet = next(c for c in model.constants() if c.name == "v2")
        for node in graph.nodes:
            node.inputs = [
                model.constant("quiet", np.asarray(t.values) * 1e-4) if t is quiet else t for t in node.inputs
            ]
    twin = model.copy()
    Prune(macs=0.6, multiple=4).run(twin, context(model))
    assert ops(twin).count("Add") == 1 and ops(twin).count("Relu") == 2  # no Relu of a Relu is left
    kept = model.copy()
    Prune(macs=0.6, multiple=4, blocks=False).run(kept, context(model))
    assert ops(kept).count("Add") == 2


def test_counts_suit_int8_kernels_where_quantize_follows(context):
    body = BLOCK + "c = Conv(i, w)\n r = Relu(c)\n z = Conv(r, v)\n"
    model = build(
        body + HEAD, {"s": (64, 3, 3, 3), "w": (48, 64, 1, 1), "v": (48, 48, 1, 1), "wf": (5, 48), "bf": (5,)}
    )

    def counts(passes: str) -> list[int]:
        twin = model.copy()
        PassManager(Registry().build(passes)).run(twin, context(model))
        return [int(n.inputs[1].shape[0]) for n in twin.graph.nodes if n.op == "Conv"]

    assert any(k % 16 for k in counts("prune{macs=0.6}"))
    assert any(k % 16 for k in counts("prune{macs=0.6},quantize{activations=float}"))
    for later in ("quantize", "eliminate,quantize"):
        assert not any(k % 16 for k in counts(f"prune{{macs=0.6}},{later}"))
    assert counts("prune{macs=0.6,multiple=8},quantize") == counts("prune{macs=0.6}")
    # Where that leaves nothing to remove, the multiple of float does.
    small = build(
        body + HEAD, {"s": (16, 3, 3, 3), "w": (16, 16, 1, 1), "v": (16, 16, 1, 1), "wf": (5, 16), "bf": (5,)}
    )
    PassManager(Registry().build("prune{macs=0.6},quantize")).run(small, context(small))
    assert 8 in [n.inputs[1].shape[0] for n in small.graph.nodes if n.op == "Conv"]
    with pytest.raises(PassError, match="not more than the channel multiple 16"):
        Prune(multiple=16).run(small.copy(), context(small))


def test_layers_of_a_branch_that_is_gone_take_no_time():
    model = build(PLAIN + HEAD, WEIGHTS)
    labels = propagate(model)
    layers = stretches(with_batch(model, 1), labels, labels.families)
    sizes = np.array([f.groups.size for f in labels.families])
    inner = sizes.tolist().index(8)
    counts = [timed_counts(allowed(f, 4, 0.25), f.groups.size) for f in labels.families]
    assert counts[inner].tolist() == [8, 4, 0]
    asked = []

    def time(layer):
        asked.append(layer)
        return 1.0 + sum(float(np.prod(o.shape)) for step in layer.steps for o in step.operands[1:2] if o is not None)

    costs = LatencyModel(layers, counts, sizes, 5000.0, time)
    assert all(min(o.shape, default=1) > 0 for x in asked for step in x.steps for o in step.operands if o is not None)
    kept = np.repeat(sizes[None], 3, axis=0)
    kept[:, inner] = [8, 4, 0]
    whole, half, none = costs(kept)
    gone = sum(time(layer.at(sizes)) for layer in layers if inner in layer.families)
    assert whole == pytest.approx(5000.0) and none == pytest.approx(5000.0 - gone) and none < half < whole
