"""``keep_float`` by name, operator and position, and its answer in the report."""

from __future__ import annotations

import pytest

from graphopt.errors import UsageError

BODY = """
  [stem] a = Conv(x, w) [act] b = Relu(a) [body.1] c = Conv(b, v) [gate] s = Sigmoid(c) [body.2] d = Conv(s, v)
  [head[0]] y = Conv(d, v)
"""
WEIGHTS = {"w": (1, 4, 3, 1, 1), "v": (2, 4, 4, 1, 1)}


@pytest.fixture
def kept(graph, quantized):
    """The answer for each entry, and the names of the convolutions left in float."""

    def run(*entries: str):
        from graphopt import Model

        names = ["stem", "act", "body.1", "gate", "body.2", "head[0]"]
        text = BODY
        for name in names:
            text = text.replace(f"[{name}] ", "")
        model = Model.from_text(graph(text, "[N,3,8,8]", "[N,4,8,8]", **WEIGHTS))
        for node, name in zip(model.graph.nodes, names, strict=True):
            node.name = name
        out = quantized(model, 4, 3, 8, 8, keep_float=entries)
        asked = {s.node for s in out.result.skipped if "kept in float as asked" in s.reason}
        return out.result.metrics["keep_float"], asked

    return run


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("stem", ["stem"]),
        ("body.*", ["body.1", "body.2"]),
        ("op:Sigmoid", ["gate"]),
        ("op:Conv", ["stem", "body.1", "body.2", "head[0]"]),
        ("first", ["stem"]),
        ("first:2", ["stem", "body.1"]),
        ("last", ["head[0]"]),
        ("last:2", ["body.2", "head[0]"]),
    ],
)
def test_what_an_entry_means(kept, entry, names):
    answer, asked = kept(entry)
    assert answer == {entry: names} and set(names) <= asked | {"act"}


def test_entries_add_up(kept):
    answer, asked = kept("first", "op:Sigmoid")
    assert list(answer) == ["first", "op:Sigmoid"] and {"stem", "gate"} <= asked


@pytest.mark.parametrize(
    ("entry", "words", "hint"),
    [
        ("steam", "'steam' matches no node", "stem"),
        ("op:Sigmoyd", "no Sigmoyd", "op:Sigmoid"),
        ("op:conv", "no conv", "op:Conv"),
        ("first:5", "4 operators with weights", "1 to 4"),
        ("last:0", "4 operators with weights", "1 to 4"),
    ],
)
def test_stray_entries_are_errors_with_the_nearest(kept, entry, words, hint):
    with pytest.raises(UsageError, match=words) as error:
        kept(entry)
    assert hint in (error.value.hint or "")
