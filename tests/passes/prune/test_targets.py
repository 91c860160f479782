"""What can be asked of a pruning: every target, what contradicts, and what cannot be had."""

from __future__ import annotations

import pytest

from graphopt import PassError, UsageError, spec
from graphopt.passes.prune import Prune
from graphopt.pipeline import Registry

from .test_prune import network


def widths(model) -> list[int]:
    return [n.inputs[1].shape[0] for n in model.graph.nodes if n.op == "Conv"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "prune"),
        ({"macs": 0.7}, "prune"),
        ({"macs": 0.5}, "prune{macs=0.5}"),
        ({"ratio": 0.3}, "prune{ratio=0.3}"),
        ({"params": 0.4}, "prune{params=0.4}"),
        ({"bytes": 0.4, "multiple": 4}, "prune{bytes=0.4,multiple=4}"),
        ({"ratio": 0}, "prune{ratio=0.0}"),
        ({"ratios": {"/layer1/*": 0.5, "a b": 1 / 4}}, 'prune{ratios={/layer1/*=0.5,"a b"=0.25}}'),
        ({"macs": 0.5, "ratios": {"x": 0.0}}, "prune{macs=0.5,ratios={x=0.0}}"),
    ],
)
def test_canonical_text(options, text):
    made = Prune(**options)
    assert made.spec == text and hash(made) == hash(Prune(**options))
    assert Registry().build(f"simplify,{text}")[-1] == made
    assert Registry().build(["simplify", {"name": "prune", **options}])[-1] == made


@pytest.mark.parametrize(
    "options",
    [{"macs": 0.7, "ratio": 0.3}, {"macs": 0.5, "ratio": 0.0}, {"params": 0.5, "bytes": 1.0}],
)
def test_two_targets_are_an_error_that_names_them(options):
    with pytest.raises(UsageError, match="2 targets") as caught:
        Prune(**options)
    for name in options:
        assert f"{name}=" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 1.0}, "from 0 to 0.95"),
        ({"ratio": -0.1}, "from 0 to 0.95"),
        ({"params": 0.01}, "from 0.05 to 1"),
        ({"bytes": 1.5}, "from 0.05 to 1"),
        ({"ratios": {"a": 1.5}}, "values are a number"),
        ({"ratios": {"a": "much"}}, "values are a number"),
        ({"ratios": 0.5}, "a table"),
        ({"ratios": ("a", 0.5)}, "a table"),
    ],
)
def test_values_out_of_range(options, words):
    with pytest.raises(UsageError, match=words):
        Prune(**options)


@pytest.mark.parametrize(("ratio", "kept"), [(0.3, 24), (0.5, 16), (0.37, 24), (0.38, 16), (0.95, 8)])
def test_a_ratio_is_lost_everywhere_to_the_nearest_multiple(context, ratio, kept):
    model = network()
    result = Prune(ratio=ratio, importance="l2", min_keep=0.2).run(model, context(model))
    assert widths(model) == [kept] * 3
    assert result.metrics["channels_removed"] == 3 * (32 - kept)


def test_a_ratio_stops_at_the_floor(context):
    model = network()
    Prune(ratio=0.95, min_keep=0.5, recover=False).run(model, context(model))
    assert widths(model) == [16] * 3


def test_ratios_decide_for_their_layers_and_the_target_for_the_rest(context):
    model = network()
    names = [n.name for n in model.graph.nodes if n.op == "Conv"]
    Prune(ratio=0.25, ratios={names[1]: 0.5, "*": 0.0, names[2]: 0.5}, importance="l2").run(model, context(model))
    assert widths(model) == [32, 16, 32]  # the first pattern that matches counts
    model = network()
    result = Prune(macs=0.5, ratios={names[0]: 0.0}).run(model, context(model))
    assert widths(model)[0] == 32 and result.metrics["macs_realised"] == pytest.approx(0.5, abs=0.12)
    model = network()
    Prune(ratio=0.0, ratios={names[2]: 0.75}).run(model, context(model))
    assert widths(model) == [32, 32, 8]


def test_nothing_asked_for_changes_nothing(context):
    for options in ({"ratio": 0.0}, {"macs": 1.0}, {"ratio": 0.0, "ratios": {"*": 0.0}}):
        model = network()
        before = model.to_bytes()
        assert not Prune(**options).run(model, context(model)).changed
        assert model.to_bytes() == before


def test_a_stray_pattern_names_the_nearest_node(context):
    model = network()
    name = next(n.name for n in model.graph.nodes if n.op == "Conv")
    for options in ({"ratios": {name + "x": 0.5}}, {"keep": (name + "x",)}):
        with pytest.raises(UsageError, match="no node is named") as caught:
            Prune(**options).run(model, context(model))
        assert f"did you mean {name!r}" in str(caught.value)


def test_ratios_for_a_layer_that_must_stay_say_why(context):
    model = network()
    last = model.graph.nodes[-1].name
    with pytest.raises(UsageError, match="no channels of these nodes can be removed") as caught:
        Prune(ratios={last: 0.5}).run(model, context(model))
    assert "output" in str(caught.value)
    name = model.graph.nodes[0].name
    with pytest.raises(UsageError, match="no channels"):
        Prune(ratios={name: 0.5}, keep=(name,)).run(model, context(model))


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.1},
        {"ratio": 0.0, "ratios": {"*": 0.1}},
        {"macs": 0.5, "min_keep": 1.0},
        {"params": 0.5, "min_keep": 1.0},
        {"bytes": 0.5, "min_keep": 1.0},
    ],
)
def test_nothing_could_be_pruned_is_an_error(context, options):
    model = network()
    with pytest.raises(PassError, match="nothing could be pruned"):
        Prune(**options, recover=False, importance="l2").run(model, context(model))


def test_tables_in_specifications_refuse_what_they_must():
    for text in ("p{a={b}}", "p{a={b=1", "p{a={b=1,b=2}}", "p{a={=1}}"):
        with pytest.raises(UsageError):
            spec.parse(text)


@pytest.mark.parametrize("name", ["params", "bytes"])
@pytest.mark.parametrize("fraction", [0.8, 0.4])
def test_parameters_and_bytes_are_met_and_planned_exactly(context, name, fraction):
    model = network()
    result = Prune(**{name: fraction}, multiple=1, min_keep=0.1, recover=False).run(model, context(model))
    found = result.metrics
    key = {"params": "params", "bytes": "weight_bytes"}[name]
    realised = found[f"{key}_after"] / found[f"{key}_before"]
    assert realised == pytest.approx(fraction, abs=0.02)
    assert found[f"{name}_planned"] == pytest.approx(realised, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "words"), [("macs", "multiply-accumulates"), ("params", "parameters"), ("bytes", "bytes of weights")]
)
def test_a_target_out_of_reach_comes_as_close_as_it_may_and_says_so(context, name, words):
    model = network()
    ctx = context(model)
    said: list[str] = []
    ctx.progress.warn = said.append
    Prune(**{name: 0.05}, min_keep=0.5, recover=False, importance="l2").run(model, ctx)
    assert widths(model) == [16] * 3
    assert any(f"of the {words} remain where 5% were asked for" in text for text in said)
