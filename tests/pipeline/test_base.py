"""Passes as dataclasses: options, their types and bounds, help, canonical text."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field

import numpy as np
import pytest

from graphopt import Kind, Pass, PassResult, UsageError, option


@dataclass(frozen=True)
class Sample(Pass):
    """Do something to a model.

    And more words about it.
    """

    name = "sample"
    kind = Kind.LOSSY
    ratio: float = option(0.5, "Fraction to keep", min=0.1, max=1.0)
    count: int = option(3, "How many", min=1)
    mode: str = option("fast", "How", choices=("fast", "exact"))
    deep: bool = option(False, "Whether to go deep")
    layers: tuple[str, ...] = option((), "Layers to leave out")
    sizes: tuple[int, ...] = option((1, 2), "Sizes")
    limit: float | None = option(None, "Limit", max=10)

    def run(self, model, ctx) -> PassResult:
        return PassResult(False)


def test_defaults_and_help():
    assert Sample().spec == "sample"
    assert Sample.summary() == "Do something to a model."
    info = {i.name: i for i in Sample.options()}
    assert list(info) == ["ratio", "count", "mode", "deep", "layers", "sizes", "limit"]
    assert info["ratio"].allowed == "a number from 0.1 to 1"
    assert info["count"].allowed == "an integer, at least 1"
    assert info["mode"].allowed == "one of fast, exact"
    assert info["deep"].allowed == "true or false"
    assert info["layers"].allowed.startswith("a list")
    assert info["limit"].allowed == "a number, at most 10"
    assert info["ratio"].help == "Fraction to keep"


def test_a_pass_is_a_value():
    assert Sample(ratio=0.25) == Sample(ratio=0.25)
    assert len({Sample(), Sample(), Sample(count=4)}) == 2
    with pytest.raises(FrozenInstanceError):
        Sample().count = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratio": 1}, "sample{ratio=1.0}"),
        ({"ratio": 0.5}, "sample"),
        ({"count": 7, "deep": True}, "sample{count=7,deep=true}"),
        ({"mode": "exact"}, "sample{mode=exact}"),
        ({"layers": ["a", "b c"]}, 'sample{layers=[a,"b c"]}'),
        ({"layers": "one"}, "sample{layers=[one]}"),
        ({"layers": (1, "x")}, 'sample{layers=["1",x]}'),
        ({"sizes": 5}, "sample{sizes=[5]}"),
        ({"sizes": []}, "sample{sizes=[]}"),
        ({"limit": 3}, "sample{limit=3.0}"),
        ({"limit": None}, "sample"),
        ({"ratio": np.float64(0.25), "count": np.int64(4)}, "sample{ratio=0.25,count=4}"),
    ],
)
def test_canonical_text(options, text):
    made = Sample(**options)
    assert made.spec == text
    from graphopt import spec

    (item,) = spec.parse(made.spec)
    assert Sample.from_options(item.options) == made


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.05}, ["'ratio'", "'sample'", "0.05", "from 0.1 to 1", "Fraction to keep"]),
        ({"ratio": 1.5}, ["1.5"]),
        ({"ratio": "high"}, ["high", "a number"]),
        ({"ratio": float("nan")}, ["nan"]),
        ({"ratio": True}, ["true", "a number"]),
        ({"ratio": None}, ["a number"]),
        ({"count": 0}, ["at least 1"]),
        ({"count": 1.5}, ["an integer"]),
        ({"count": True}, ["an integer"]),
        ({"mode": "slow"}, ["slow", "fast, exact"]),
        ({"deep": 1}, ["true or false"]),
        ({"deep": "true"}, ["true or false"]),
        ({"sizes": (1, "x")}, ["a list"]),
        ({"limit": 11}, ["at most 10"]),
        ({"limit": "none at all"}, ["a number"]),
    ],
)
def test_wrong_values_say_what_is_right(options, words):
    with pytest.raises(UsageError) as caught:
        Sample(**options)
    for word in words:
        assert word in str(caught.value)


def test_unknown_options_name_the_nearest():
    with pytest.raises(UsageError, match=r"unknown option 'ratios' of pass 'sample'\n  hint: did you mean 'ratio'"):
        Sample.from_options({"ratios": 1})


def test_a_list_option_keeps_words_that_look_like_numbers_as_text():
    assert Sample(layers=(1, True)).layers == ("1", "true")


def test_an_optional_option_with_another_default_can_be_none():
    @dataclass(frozen=True)
    class Optional(Pass):
        name = "optional"
        kind = Kind.EXACT
        limit: float | None = option(1.0, "Limit")

        def run(self, model, ctx) -> PassResult:
            return PassResult(False)

    made = Optional(limit=None)
    from graphopt import spec

    (item,) = spec.parse(made.spec)
    assert Optional.from_options(item.options) == made
    assert Optional.from_options({"limit": "none"}).limit is None


def test_a_pass_without_docstring_has_an_empty_summary():
    @dataclass(frozen=True)
    class Silent(Pass):
        name = "silent"
        kind = Kind.EXACT

        def run(self, model, ctx) -> PassResult:
            return PassResult(False)

    assert not Silent.summary().startswith("Silent(")


def declare(kind: object, default: object, **bounds: object) -> type[Pass]:
    """A pass with one option ``value`` of the given type."""

    def run(self, model, ctx) -> PassResult:
        return PassResult(False)

    fields = {"__annotations__": {"value": kind}, "value": option(default, "The value", **bounds)}
    made = type("Declared", (Pass,), {"name": "declared", "kind": Kind.EXACT, "run": run, **fields})
    return dataclass(frozen=True)(made)


def test_bounds_and_choices_hold_for_every_element_of_a_list():
    sizes = declare(tuple[float, ...], (1.0,), min=0, max=5)
    assert sizes(value=(0, 5)).value == (0.0, 5.0)
    for wrong in ((1, 6), (-1,), (1, float("nan"))):
        with pytest.raises(UsageError, match="'value' of 'declared' cannot be"):
            sizes(value=wrong)
    modes = declare(tuple[str, ...], ("a",), choices=("a", "b"))
    assert modes(value=["b", "a"]).value == ("b", "a")
    with pytest.raises(UsageError, match="one of a, b"):
        modes(value=("a", "c"))


def test_tuples_of_a_fixed_length():
    pair = declare(tuple[int, str], (1, "a"))
    assert pair(value=[2, "b"]).value == (2, "b")
    for wrong in ((1,), (1, "a", "b"), ("a", 1), 3):
        with pytest.raises(UsageError, match="a list"):
            pair(value=wrong)


def test_an_optional_choice_may_be_left_open():
    mode = declare(str | None, None, choices=("a", "b"))
    assert mode().value is None
    assert mode(value="a").value == "a"
    with pytest.raises(UsageError, match="one of a, b"):
        mode(value="c")


@pytest.mark.parametrize(("kind", "value"), [(float, 10**400), (str, None), (int, np.float32(1)), (bool, np.int64(1))])
def test_values_at_the_edge_of_a_type(kind, value):
    with pytest.raises(UsageError, match="'value' of 'declared' cannot be"):
        declare(kind, kind())(value=value)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5)])
def test_numpy_numbers_become_plain_ones(number):
    made = declare(float, 1.0)(value=number)
    assert type(made.value) is float
    assert made.spec == "declared{value=0.5}"


def test_options_without_a_default_must_be_given():
    @dataclass(frozen=True)
    class Needy(Pass):
        """Need a word."""

        name = "needy"
        kind = Kind.EXACT
        word: str = field(metadata={"help": "The word"})
        words: tuple[str, ...] = field(default_factory=lambda: ("a",))

        def run(self, model, ctx) -> PassResult:
            return PassResult(False)

    with pytest.raises(UsageError, match="'word' of pass 'needy' must be given\n  hint: word: The word"):
        Needy.from_options({})
    assert Needy.from_options({"word": "x"}).spec == "needy{word=x}"
    assert Needy.from_options({"word": "x", "words": ["b"]}).spec == "needy{word=x,words=[b]}"
