"""Islands: found, cut out, and taken back by what a latency table says. Nothing here is timed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from graphopt import Context, Model
from graphopt.passes.quantize.excerpt import describe, excerpt
from graphopt.passes.quantize.islands import islands, propose
from graphopt.passes.quantize.placement import decide
from graphopt.runtime.latency_table import LatencyTable
from graphopt.runtime.session import open_session, run_feeds
from graphopt.runtime.target import Costs, OpCost, get_target

TWO = "a = Conv(x, w) b = Relu(a) e = Erf(b) c = Conv(e, v) y = Relu(c)"
WEIGHTS = {"w": (1, 4, 3, 3, 3), "v": (2, 5, 4, 1, 1)}


class Scripted(LatencyTable):
    """A table that knows all: the value whose words are in the key, one after the other where there are several."""

    def __init__(self, **script: float | list[float]) -> None:
        super().__init__()
        self.script, self.asked = script, []

    def lookup(self, key, measure):
        self.asked.append(key)
        for words, value in self.script.items():
            if all(word in key.split() for word in words.split("_")):
                return value.pop(0) if isinstance(value, list) else value
        raise AssertionError(f"not in the script: {key}")

    def save(self):
        pass


def test_what_wins_stays_in_int8(graph, quantized):
    table = Scripted(whole=0.5, float=10.0, ratio=0.4)
    found = quantized(graph(TWO, "[N,3,8,8]", "[N,5,6,6]", **WEIGHTS), 4, 3, 8, 8, table=table)
    assert found.result.metrics["int8_operators"] == {"Conv": 2} and found.error < 0.05
    entries = found.result.metrics["islands"]
    assert [(i["operators"], i["float_us"], i["int8_us"], i["decision"]) for i in entries] == [
        (1, 10.0, 4.0, "int8")
    ] * 2
    assert found.result.metrics["time_against_float"] == 0.5
    assert found.result.metrics["latency_table"] == table.sha256


def test_an_island_that_loses_goes_back_to_float(graph, quantized):
    table = Scripted(whole=0.9, float=10.0, ratio=[1.2, 0.5])
    found = quantized(graph(TWO, "[N,3,8,8]", "[N,5,6,6]", **WEIGHTS), 4, 3, 8, 8, table=table)
    assert found.result.metrics["int8_operators"] == {"Conv": 1}
    assert [i["decision"] for i in found.result.metrics["islands"]] == ["float", "int8"]
    assert sum("measured here" in reason for reason in found.reasons.values()) == 1
    convs = [n for n in found.model.graph.nodes if n.op == "Conv"]
    assert [n.inputs[0].inputs == [] for n in convs] == [True, False]  # the first reads the image itself


def test_while_the_whole_is_slower_the_least_gain_goes_first(graph, quantized):
    table = Scripted(whole=[1.1, 0.9], float=10.0, ratio=[0.8, 0.5])
    found = quantized(graph(TWO, "[N,3,8,8]", "[N,5,6,6]", **WEIGHTS), 4, 3, 8, 8, table=table)
    assert [i["decision"] for i in found.result.metrics["islands"]] == ["float", "int8"]
    assert any("the whole model was slower" in reason for reason in found.reasons.values())


def test_a_model_that_only_gets_slower_is_given_back_as_it_came(graph, quantized, run):
    table = Scripted(whole=1.1, float=10.0, ratio=0.8)
    text = graph(TWO.replace("Relu(c)", "HardSwish(c)"), "[N,3,8,8]", "[N,5,6,6]", **WEIGHTS)
    found = quantized(text, 4, 3, 8, 8, table=table)
    assert not found.result.changed and "HardSwish" in found.ops
    assert "nothing was quantized" in found.warnings[0] and len(found.reasons) >= 2
    assert np.array_equal(found.reference, found.output)


@pytest.mark.parametrize("place", ["estimated", "smaller"])
def test_nothing_is_measured_when_asked_not_to(graph, quantized, place):
    table = Scripted()
    found = quantized(graph(TWO, "[N,3,8,8]", "[N,5,6,6]", **WEIGHTS), 4, 3, 8, 8, table=table, place=place)
    assert found.result.metrics["int8_operators"] == {"Conv": 2} and not table.asked


def test_nothing_is_measured_for_another_machine(graph, quantized, eager_target):
    found = quantized(graph(TWO, "[N,3,8,8]", "[N,5,6,6]", **WEIGHTS), 4, 3, 8, 8, target=eager_target)
    assert not {"islands", "latency_table"} & set(found.result.metrics)


def test_the_same_table_gives_the_same_bytes(graph, quantized):
    def once() -> bytes:
        table = Scripted(whole=0.9, float=10.0, ratio=[1.2, 0.5])
        return quantized(graph(TWO, "[N,3,8,8]", "[N,5,6,6]", **WEIGHTS), 4, 3, 8, 8, table=table).model.to_bytes()

    assert once() == once()


# --- parts as models ----------------------------------------------------------------------------------------------


def placed(graph, target, body=TWO, **options):
    model = Model.from_text(graph(body, "[1,3,8,8]", "[1,5,6,6]", **WEIGHTS))
    return model, decide(model, target, **options)


def test_islands_are_what_int8_tensors_connect(graph, eager_target):
    model, plan = placed(graph, eager_target)
    assert [sorted(i.members) for i in islands(model, eager_target, plan)] == [[0], [3]]
    model, plan = placed(graph, eager_target, TWO.replace("Erf", "Sigmoid"))
    assert [sorted(i.members) for i in islands(model, eager_target, plan)] == [[0, 2, 3]]


def test_an_excerpt_runs_in_both_forms(graph, eager_target):
    model, plan = placed(graph, eager_target)
    part = excerpt(model, eager_target, plan, [0])
    assert [n.op for n in part.floats.graph.nodes] == ["Conv", "Relu"]
    assert {"QuantizeLinear", "Conv", "DequantizeLinear"} == {n.op for n in part.int8.graph.nodes}
    x = np.ones((1, 3, 8, 8), np.float32)
    for form in (part.floats, part.int8):
        (y,) = run_feeds(open_session(form.to_bytes()), {"x": x})
        assert y.shape == (1, 4, 6, 6)
    assert len(model.graph.nodes) == 5  # the model itself is as it was


def test_the_key_knows_shapes_but_neither_names_nor_weights(graph, eager_target):
    def key(body: str, x: str = "[1,3,8,8]", seed: int = 1) -> str:
        model = Model.from_text(graph(body, x, "[1,4,6,6]", w=(seed, 4, 3, 3, 3)))
        return excerpt(model, eager_target, decide(model, eager_target), [0]).key

    plain = key("y = Conv(x, w)")
    assert plain == key("y = Conv(x, w)", seed=2)
    assert plain != key("y = Conv<strides=[2,2]>(x, w)")
    assert plain != key("y = Conv(x, w)", x="[1,3,9,8]")


def test_unknown_sizes_are_not_timed(graph, eager_target):
    model = Model.from_text(graph("y = Conv(x, w)", "[N,3,H,W]", "[N,4,A,B]", w=(1, 4, 3, 3, 3)))
    assert excerpt(model, eager_target, decide(model, eager_target), [0]) is None


def test_the_description_is_complete_enough_to_tell_graphs_apart(graph):
    def text(body: str) -> str:
        return describe(Model.from_text(graph(body, "[1,3,8,8]", "[1,3,8,8]")))

    assert text("a = Relu(x) y = Add(a, x)") == text("b = Relu(x) y = Add(b, x)")
    assert text("a = Relu(x) y = Add(a, x)") != text("a = Relu(x) y = Add(a, a)")


# --- which cut ----------------------------------------------------------------------------------------------------

CHAIN = "a = Conv(x, w) s = Sigmoid(a) y = Conv(s, v)"


@pytest.mark.parametrize(("ratio", "count"), [(0.9, 3), (0.99, 2), (1.2, 2)])
def test_another_cut_must_be_clearly_faster(graph, ratio, count):
    """At the table's price of a conversion the Sigmoid stays float; where conversions are dearer it goes along."""
    costs = Costs((("Conv", OpCost(99.0, 0.0)), ("Sigmoid", OpCost(1.0, 4.0))), OpCost(1, 1), 1.0, 0.0)
    target = dataclasses.replace(get_target("ort-cpu"), costs=costs)
    model, _ = placed(graph, target, CHAIN)
    ctx = Context(target, None, model, latency_table=Scripted(placement=ratio))
    assert len(propose(model, ctx, ()).int8) == count


def test_pooling_behind_float_stays_in_float(graph):
    """In int8 it would run in a slow layout, and a QuantizeLinear behind it would draw it there."""
    costs = Costs((("Conv", OpCost(1.0, 99.0)), ("Gemm", OpCost(999.0, 0.0))), OpCost(9, 1), 0.1, 0.0)
    target = dataclasses.replace(get_target("ort-cpu"), costs=costs)
    body = "a = Conv(x, w) p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(a) f = Flatten(p) y = Gemm(f, v)"
    model = Model.from_text(graph(body, "[1,3,8,8]", "[1,5]", w=(1, 4, 3, 3, 3), v=(2, 36, 5)))
    plan = decide(model, target)
    assert [model.graph.nodes[i].op for i in sorted(plan.int8)] == ["Flatten", "Gemm"]
    assert next(s.reason for s in plan.skipped if s.op == "MaxPool").startswith("behind an operator in float")


def test_merged_batches_are_counted_as_one_image_has_them(graph):
    """64 rows of one image are 64 products, whatever the batch is called."""
    from graphopt.passes.quantize.islands import one_image

    body = "r = Reshape(x, s) m = Gemm(r, w) y = Reshape(m, t)"
    text = graph(body, "[N,64,96]", "[N,64,96]", s="int64[2] s = {-1,96}", t="int64[3] t = {-1,64,96}", w=(1, 96, 96))
    model = Model.from_text(text)

    class Sized:
        def batches(self, size, limit=None):
            yield np.zeros((1, 64, 96), np.float32)

    ctx = Context(get_target("ort-cpu"), Sized(), model)
    assert any(model.graph.nodes[i].op == "Gemm" for i in decide(one_image(model, ctx), ctx.target).int8)
