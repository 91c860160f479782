"""Measured times as data: what is asked twice is measured once, and the file decides."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from graphopt import ModelError, UsageError
from graphopt.runtime import latency_table
from graphopt.runtime.latency_table import LatencyTable
from graphopt.runtime.layer_latency import Layer, Operand, Step, kernel_microseconds, layer_microseconds


def never() -> float:
    raise AssertionError("this is in the table")


def test_a_measurement_is_taken_once_and_kept(tmp_path):
    path = tmp_path / "new" / "table.json"
    table = LatencyTable(path)
    assert table.lookup("a", lambda: 1 / 3) == 0.33333
    assert table.lookup("a", never) == 0.33333
    table.save()
    again = LatencyTable(path)
    assert again.lookup("a", never) == 0.33333 and again.measured == 0
    before = path.read_bytes()
    again.save()
    assert path.read_bytes() == before
    assert again.sha256 == table.sha256 == hashlib.sha256(before).hexdigest()
    assert again.describe() | {"used": 1, "measured": 0, "path": str(path)} == again.describe()


def test_two_runs_that_write_the_same_file_lose_nothing(tmp_path):
    one, two = (LatencyTable(tmp_path / "t.json") for _ in range(2))
    one.lookup("a", lambda: 1.0)
    two.lookup("b", lambda: 2.0)
    one.save()
    two.save()
    assert LatencyTable(tmp_path / "t.json").load() == {"a": 1.0, "b": 2.0}


def test_a_table_of_another_machine_serves_as_long_as_it_is_complete(tmp_path):
    path = tmp_path / "t.json"
    LatencyTable(path, threads=2).lookup("x", lambda: 1.0)  # not saved
    table = LatencyTable(path, threads=2)
    table.lookup("a", lambda: 5.0)
    table.save()
    foreign = LatencyTable(path, threads=1)
    assert foreign.lookup("a", never) == 5.0
    assert foreign.describe()["machine"]["threads"] == 2 and foreign.sha256 == table.sha256
    with pytest.raises(UsageError, match=r"another machine: .*threads 2; this one is .*threads 1"):
        foreign.lookup("b", lambda: 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        json.dumps({"schema": "graphopt.latency/1", "machine": {}}),
        json.dumps({"schema": "graphopt.latency/1", "machine": {}, "entries": {"a": -1}}),
        json.dumps({"schema": "graphopt.latency/1", "machine": {}, "entries": {"a": "fast"}}),
        json.dumps({"schema": "graphopt.latency/1", "machine": None, "entries": {}}),
        json.dumps({"schema": "graphopt.latency/9", "machine": {}, "entries": {}}),
        "\udcff",
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match="no latency table"):
        LatencyTable(path).load()


def test_a_file_that_cannot_be_written_is_an_error_if_it_was_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    named = LatencyTable(tmp_path / "file" / "t.json")
    named.lookup("a", lambda: 1.0)
    with pytest.raises(UsageError, match="cannot write"):
        named.save()
    monkeypatch.setattr(latency_table, "_cache_file", lambda machine: tmp_path / "file" / "t.json")
    cached = LatencyTable()
    assert cached.lookup("a", lambda: 1.0) == 1.0
    cached.save()


def test_the_cached_file_belongs_to_the_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {LatencyTable(threads=n).path for n in (1, 2)}
    assert len(paths) == 2 and all(p.name.startswith("latency-") for p in paths)


def test_nonsense_is_not_stored(tmp_path):
    table = LatencyTable(tmp_path / "t.json")
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gave"):
            table.lookup("a", lambda value=value: value)
    table.save()
    assert not Path(table.path).exists()


def conv(inputs: int, outputs: int, side: int = 32, activation: bool = True) -> Layer:
    operands = (
        Operand("float32", (1, inputs, side, side)),
        Operand("float32", (outputs, inputs, 3, 3), True),
        Operand("float32", (outputs,), True),
    )
    steps = [Step("Conv", {"pads": [1, 1, 1, 1]}, operands)]
    if activation:
        bounds = tuple(Operand("float32", (), True, (v,)) for v in (0.0, 6.0))
        steps.append(Step("Clip", {}, (None, *bounds)))
    return Layer(tuple(steps), 17)


def test_a_layer_says_all_that_its_time_depends_on():
    keys = {conv(8, 8).key, conv(8, 16).key, conv(16, 8).key, conv(8, 8, 16).key, conv(8, 8, 32, False).key}
    assert len(keys) == 5
    assert conv(8, 8).key == conv(8, 8).key
    assert "Conv" in conv(8, 8).key and "Clip" in conv(8, 8).key and "=6.0" in conv(8, 8).key


def test_layers_are_timed():
    small, large = layer_microseconds(conv(16, 16, 8)), layer_microseconds(conv(64, 64, 32))
    assert 0 < small < large / 5  # 256 times the work
    model, feed = conv(16, 16, 8).model()
    assert {op for op, _ in kernel_microseconds(model, feed)} >= {"Conv"}


def test_a_layer_that_the_runtime_does_not_run_says_so():
    wrong = Layer((Step("Conv", {}, (Operand("float32", (1, 3, 8, 8)), Operand("float32", (4, 5, 3, 3), True))),), 17)
    with pytest.raises(ModelError):
        layer_microseconds(wrong)
