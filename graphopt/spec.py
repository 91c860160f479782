"""The one grammar for anything named with options: passes, preprocessing.

::

    list  = item {"," item}
    item  = name ["{" [pair {"," pair}] "}"]
    pair  = key "=" value
    value = bare | '"' text '"' | "[" [value {"," value}] "]" | "{" [entry {"," entry}] "}"
    entry = (bare | '"' text '"') "=" value

A bare value is ``true``, ``false``, an integer, a float, or a word. ``parse`` and ``format_item`` are inverse
to each other up to spaces.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from graphopt.errors import UsageError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BARE = re.compile(r'[^,{}\[\]"=\s]+')
_DEEPEST = 50  # lists within lists; nothing real has more, and Python's own limit gives no readable error
_INT = re.compile(r"[+-]?\d+")
T = TypeVar("T")


class Table(tuple[tuple[str, T], ...]):
    """A value that names others: pairs of key and value, in the order in which they were given, each key once."""

    __slots__ = ()

    @classmethod
    def of(cls, mapping: Mapping[str, T]) -> Table[T]:
        return cls(mapping.items())


@dataclass(frozen=True)
class Item:
    """One named thing and the options written with it."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


class _Reader:
    def __init__(self, text: str, what: str) -> None:
        self.text, self.what, self.pos = text, what, 0

    def fail(self, expected: str) -> UsageError:
        pointer = " " * self.pos + "^"
        return UsageError(
            f"malformed {self.what} specification: expected {expected} at character {self.pos + 1}",
            "write it as name{key=value,...},name,... and quote it for the shell",
            (self.text, pointer),
        )

    def skip(self) -> None:
        while self.pos < len(self.text) and self.text[self.pos].isspace():
            self.pos += 1

    def peek(self) -> str:
        self.skip()
        return self.text[self.pos : self.pos + 1]

    def accept(self, char: str) -> bool:
        if self.peek() == char:
            self.pos += 1
            return True
        return False

    def match(self, pattern: re.Pattern[str], expected: str) -> str:
        self.skip()
        found = pattern.match(self.text, self.pos)
        if not found:
            raise self.fail(expected)
        self.pos = found.end()
        return found.group()

    def value(self, depth: int = 0) -> Any:
        if self.peek() == '"':
            raw = self.match(_STRING, "a closing quote")
            try:
                return json.loads(raw)
            except json.JSONDecodeError:
                raise self.fail("a quoted text with valid escapes") from None
        if depth == _DEEPEST and self.peek() in ("[", "{"):
            raise self.fail("fewer lists within lists")
        if self.accept("{"):
            return self.table(depth)
        if self.accept("["):
            values: list[Any] = []
            while not self.accept("]"):
                values.append(self.value(depth + 1))
                if self.peek() != "]" and not self.accept(","):
                    raise self.fail("',' or ']'")
            return tuple(values)
        return _bare(self.match(_BARE, "a value"))

    def table(self, depth: int) -> Table[Any]:
        found: dict[str, Any] = {}
        while not self.accept("}"):
            key = str(self.value()) if self.peek() == '"' else self.match(_BARE, "a key or '}'")
            if not self.accept("="):
                raise self.fail("'='")
            if key in found:
                raise UsageError(f"{key!r} is given twice in {self.text!r}")
            found[key] = self.value(depth + 1)
            if self.peek() != "}" and not self.accept(","):
                raise self.fail("',' or '}'")
        return Table.of(found)

    def item(self) -> Item:
        name = self.match(_NAME, f"a {self.what} name")
        options: dict[str, Any] = {}
        if self.accept("{"):
            while not self.accept("}"):
                key = self.match(_NAME, "an option name or '}'")
                if not self.accept("="):
                    raise self.fail("'='")
                if key in options:
                    raise UsageError(f"option {key!r} is given twice for {name!r} in {self.text!r}")
                options[key] = self.value()
                if self.peek() != "}" and not self.accept(","):
                    raise self.fail("',' or '}'")
        return Item(name, options)


def _bare(word: str) -> Any:
    if word in ("true", "false"):
        return word == "true"
    try:
        return int(word) if _INT.fullmatch(word) else float(word)
    except ValueError:  # not a number, or one of thousands of digits
        return word


def is_name(text: str) -> bool:
    """Whether ``parse`` reads this text as a name."""
    return _NAME.fullmatch(text) is not None


def parse(text: str, what: str = "pass") -> list[Item]:
    """Read a comma-separated list of items; ``what`` names their kind in errors.

    Raises UsageError that points at the offending character.
    """
    reader = _Reader(text, what)
    items = [reader.item()]
    while reader.accept(","):
        items.append(reader.item())
    if reader.peek():
        raise reader.fail("',' or the end")
    return items


def format_value(value: Any) -> str:
    """Write one value so that ``parse`` reads the same value back (None as the word ``none``)."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        value = Table.of(value)
    if isinstance(value, Table):
        return "{" + ",".join(f"{_format_key(k)}={format_value(v)}" for k, v in value) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(format_value(v) for v in value) + "]"
    text = str(value)
    plain = _BARE.fullmatch(text) and isinstance(_bare(text), str)
    return text if plain else json.dumps(text)


def _format_key(key: str) -> str:
    return key if _BARE.fullmatch(key) else json.dumps(key)


def format_item(item: Item) -> str:
    """Write one item in canonical form."""
    if not item.options:
        return item.name
    return item.name + "{" + ",".join(f"{k}={format_value(v)}" for k, v in item.options.items()) + "}"


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UsageError:
    """The error for a name that is not known: it names the nearest match, or lists what there is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "known: " + (", ".join(known) or "none")
    return UsageError(f"unknown {kind} {name!r}{where}", hint)
