"""The grammar of named things with options."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import UsageError, spec
from graphopt.spec import Item, Table, format_item, format_value, parse

NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.-]*\Z")
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(10**18), 10**18),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(["true", "1", "1e5", "-0", "a b", '"', "\\", "[x]", "a=b", "", "nan", "inf", "1_0", "é", "\n"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), inner, max_size=3).map(Table.of),
    ),
    max_leaves=8,
)
ITEMS = st.builds(Item, NAMES, st.dictionaries(NAMES, VALUES, max_size=4))


def same(a: object, b: object) -> bool:
    """Equal, and of equal type: 1, 1.0 and True are different options."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@given(VALUES)
def test_values_survive(value):
    (item,) = parse("p{k=" + format_value(value) + "}")
    assert same(item.options["k"], value)


@given(st.lists(ITEMS, min_size=1, max_size=4))
def test_lists_survive(items):
    text = ",".join(map(format_item, items))
    found = parse(text)
    assert [i.name for i in found] == [i.name for i in items]
    for a, b in zip(found, items, strict=True):
        assert list(a.options) == list(b.options)
        assert all(same(a.options[k], b.options[k]) for k in b.options)
    assert ",".join(map(format_item, found)) == text


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_words(text):
    try:
        items = parse(text)
    except UsageError as error:
        assert error.message
    else:
        assert items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("fold", [Item("fold")]),
        ("fold{}", [Item("fold")]),
        (" fold , prune { macs = 0.5 } ", [Item("fold"), Item("prune", {"macs": 0.5})]),
        (
            'p{a=true,b=false,c=3,d=-3.5e2,e=word,f="a, b"}',
            [Item("p", {"a": True, "b": False, "c": 3, "d": -350.0, "e": "word", "f": "a, b"})],
        ),
        ("p{a=[1,2.0,[x,]],}", [Item("p", {"a": (1, 2.0, ("x",))})]),
        ("my-pass.v2", [Item("my-pass.v2")]),
        ('p{t={/a/*=0.5,"b c"=[1],}}', [Item("p", {"t": Table.of({"/a/*": 0.5, "b c": (1,)})})]),
        ("p{layer=/conv/Conv_1:0}", [Item("p", {"layer": "/conv/Conv_1:0"})]),
    ],
)
def test_examples(text, items):
    assert parse(text) == items


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("", 1, "a pass name"),
        ("fold,", 6, "a pass name"),
        ("fold prune", 6, "','"),
        ("fold{", 6, "an option name"),
        ("fold{a}", 7, "'='"),
        ("fold{a=}", 8, "a value"),
        ("fold{a=1", 9, "',' or '}'"),
        ("fold{a=1 b=2}", 10, "',' or '}'"),
        ("fold{a=[1", 10, "',' or ']'"),
        ('fold{a="x}', 8, "closing quote"),
        ("fold}", 5, "the end"),
        ("3d", 1, "a pass name"),
    ],
)
def test_errors_point_at_the_place(text, position, expected):
    with pytest.raises(UsageError) as caught:
        parse(text)
    message = str(caught.value)
    assert f"at character {position}\n" in message
    assert expected in message
    lines = caught.value.message.splitlines()
    assert lines[-1].index("^") - 4 == position - 1
    assert caught.value.exit_code == 2


def test_more_errors():
    with pytest.raises(UsageError, match="twice"):
        parse("fold{a=1,a=2}")
    with pytest.raises(UsageError, match="valid escapes"):
        parse(r'fold{a="\q"}')
    with pytest.raises(UsageError, match="preprocessing"):
        parse("{", "preprocessing")


def test_numbers():
    assert parse("p{a=inf}")[0].options["a"] == math.inf
    assert format_value(1e-7) == "1e-07"
    assert format_value(True) == "true"
    assert format_value("true") == '"true"'
    assert parse("p{a=" + "9" * 5000 + "}")  # more digits than Python converts: still no traceback


def test_unknown_names_the_nearest_match_or_all():
    assert spec.unknown("pass", "prnue", ["fold", "prune"]).hint == "did you mean 'prune'?"
    assert spec.unknown("pass", "xyz", ["prune", "fold"]).hint == "known: fold, prune"
    assert spec.unknown("pass", "xyz", []).hint == "known: none"


def test_lists_within_lists_end_somewhere():
    assert parse("p{a=" + "[" * 50 + "]" * 50 + "}")
    for text in ("p{a=" + "[" * 100_000, "p{a=" + "[" * 51 + "]" * 51 + "}"):
        with pytest.raises(UsageError, match="lists within lists"):
            parse(text)
