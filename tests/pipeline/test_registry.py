"""Finding passes by name, loading them from files, building pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from graphopt import GraphoptError, Kind, Pass, PassError, PassResult, UsageError, option
from graphopt.pipeline.registry import Registry, format_pipeline


def make(name: str, requires: tuple[str, ...] = ()) -> type[Pass]:
    @dataclass(frozen=True)
    class Made(Pass):
        """Made for a test."""

        level: int = option(0, "Level", min=0)

        def run(self, model, ctx) -> PassResult:
            return PassResult(False)

    Made.name, Made.kind, Made.requires = name, Kind.EXACT, requires
    return Made


@pytest.fixture
def registry() -> Registry:
    found = Registry()
    for name, requires in (("a", ()), ("b", ("a",)), ("c", ("b", "a")), ("x", ("y",)), ("y", ("x",)), ("z", ("none",))):
        found.add(make(name, requires))
    return found


def names(passes: list[Pass]) -> list[str]:
    return [p.name for p in passes]


def test_built_in_passes_are_found_by_entry_point():
    found = Registry()
    assert {"fold", "prune", "quantize"} <= set(found.names())
    cls = found.get("fold")
    assert cls.name == "fold" and cls.kind is Kind.EXACT
    assert found.get("fold") is cls


def test_unknown_pass_names_the_nearest(registry):
    with pytest.raises(UsageError, match=r"unknown pass 'flod'\n  hint: did you mean 'fold'"):
        registry.build("flod")
    with pytest.raises(UsageError, match=r"known: a, b, .*c"):
        registry.build("qqqqqqqq")


def test_a_pass_that_cannot_be_imported_is_a_pass_error(registry):
    import importlib.metadata

    registry._points["broken"] = importlib.metadata.EntryPoint("broken", "no_such_module:Pass", "graphopt.passes")
    with pytest.raises(PassError, match="no_such_module"):
        registry.get("broken")


@pytest.mark.parametrize(
    ("given", "built"),
    [
        ("a", "a"),
        ("b", "a,b"),
        ("c", "a,b,c"),
        ("a{level=2},b", "a{level=2},b"),
        ("b,a,b", "a,b,a,b"),
        (["a", "b{level=1}"], "a,b{level=1}"),
        ([{"name": "a", "level": 3}, "b,c"], "a{level=3},b,c"),
        ([], ""),
    ],
)
def test_required_passes_are_inserted(registry, given, built):
    passes = registry.build(given)
    assert format_pipeline(passes) == built
    if built:
        assert registry.build(built) == passes


def test_requirements_that_cannot_be_met(registry):
    with pytest.raises(PassError, match="x -> y -> x"):
        registry.build("x")
    with pytest.raises(UsageError, match="'none'"):
        registry.build("z")


@pytest.mark.parametrize("entry", [3, {"level": 1}, {"name": 3}, None])
def test_entries_that_are_no_passes(registry, entry):
    with pytest.raises(UsageError, match="text or a table with a name"):
        registry.build([entry])


def test_add_refuses_what_is_no_pass(registry):
    class NotAPass:
        name = "n"

    class Unkind(Pass):
        name = "unkind"

        def run(self, model, ctx) -> PassResult:
            return PassResult(False)

    for wrong in (NotAPass, Unkind, 3):
        with pytest.raises(UsageError, match="not a pass"):
            registry.add(wrong)


HEAD = "from dataclasses import dataclass\nfrom graphopt import Kind, Pass, PassResult, option\n"
GOOD = """
@dataclass(frozen=True)
class Mine(Pass):
    \"\"\"My own.\"\"\"
    name = "mine"
    kind = Kind.EXACT
    requires = ("fold",)
    level: int = option(1, "Level", min=0, max=3)
    def run(self, model, ctx):
        return PassResult(False)
"""


def write(folder: Path, text: str, name: str = "custom.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_a_file_with_a_pass(registry, tmp_path, future):
    found = registry.load_file(write(tmp_path, future + HEAD + GOOD))
    assert [c.name for c in found] == ["mine"]
    assert format_pipeline(registry.build("mine{level=2}")) == "fold,mine{level=2}"
    with pytest.raises(UsageError, match="from 0 to 3"):
        registry.build("mine{level=4}")


def test_a_file_with_a_base_class_and_imported_passes(registry, tmp_path):
    text = (
        HEAD
        + "from graphopt.passes.fold import Fold\n"
        + """
class Base(Pass):
    kind = Kind.EXACT
    def helper(self):
        return 1
"""
        + GOOD.replace("class Mine(Pass)", "class Mine(Base)")
    )
    assert [c.name for c in registry.load_file(write(tmp_path, text))] == ["mine"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", ["defines no pass", "derive"]),
        ("import no_such_module", ["fails on import", "no_such_module"]),
        ("def f(:", ["fails on import", "SyntaxError"]),
        ("raise SystemExit(0)", ["fails on import"]),
        (HEAD + GOOD.replace('    name = "mine"\n', ""), ["Mine", "no name"]),
        (HEAD + GOOD.replace("    kind = Kind.EXACT\n", ""), ["kind"]),
        (HEAD + GOOD.replace("@dataclass(frozen=True)\n", ""), ["Mine", "@dataclass(frozen=True)"]),
        (HEAD + GOOD.replace("    def run(self, model, ctx):\n        return PassResult(False)\n", ""), ["run"]),
        (HEAD + GOOD.replace('"mine"', '"my pass"'), ["my pass", "name"]),
    ],
)
def test_files_that_are_refused(registry, tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        registry.load_file(write(tmp_path, text))
    for word in words:
        assert word in str(caught.value)


def test_files_that_are_missing_or_not_python(registry, tmp_path):
    with pytest.raises(UsageError, match="no such pass file"):
        registry.load_file(tmp_path / "none.py")
    with pytest.raises(UsageError, match="no such pass file"):
        registry.load_file(tmp_path)
    with pytest.raises(UsageError, match="not a Python file"):
        registry.load_file(write(tmp_path, "x", "custom.txt"))


def test_a_loaded_pass_takes_the_place_of_an_installed_one(registry, tmp_path):
    registry.load_file(write(tmp_path, HEAD + GOOD.replace('"mine"', '"fold"').replace('("fold",)', "()")))
    assert format_pipeline(registry.build("fold{level=2}")) == "fold{level=2}"


@pytest.mark.parametrize("value", ["no_such_module:Pass", "json:NoSuchName", "json", "json:JSONDecoder"])
def test_entry_points_of_other_packages_that_are_broken(registry, value):
    import importlib.metadata

    registry._points["broken"] = importlib.metadata.EntryPoint("broken", value, "graphopt.passes")
    assert "broken" in registry.names()
    with pytest.raises(GraphoptError):
        registry.get("broken")
    assert registry.get("a").name == "a"


def test_files_of_one_name_in_two_folders_live_apart(registry, tmp_path):
    future = "from __future__ import annotations\n"
    made = []
    for folder, kind in (("one", "int"), ("two", "str")):
        (tmp_path / folder).mkdir()
        text = GOOD.replace('"mine"', f'"{folder}"').replace('level: int = option(1, "Level", min=0, max=3)', OWN)
        made += registry.load_file(write(tmp_path / folder, f"{future}{HEAD}Word = {kind}\n{text}"))
    one, two = made
    assert one(level=3).level == 3
    assert two(level="x").level == "x"
    with pytest.raises(UsageError):
        one(level="x")


OWN = 'level: Word = option(Word(), "Level")'


def test_a_class_with_a_second_name_in_its_file_counts_once(registry, tmp_path):
    found = registry.load_file(write(tmp_path, HEAD + GOOD + "\nAlias = Mine\n"))
    assert [c.name for c in found] == ["mine"]


def test_a_file_that_fails_leaves_no_module(registry, tmp_path):
    import sys

    before = set(sys.modules)
    with pytest.raises(UsageError, match="fails on import"):
        registry.load_file(write(tmp_path, "raise ValueError('no')"))
    assert set(sys.modules) == before
