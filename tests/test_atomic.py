"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt import atomic


def test_a_temporary_file_lies_beside_its_target_and_goes(tmp_path):
    target = tmp_path / "out.bin"
    with atomic.temporary(target) as draft:
        assert draft.parent == tmp_path
        assert draft.is_file()
        assert draft != target
        assert not target.exists()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_content(tmp_path):
    target = tmp_path / "out.bin"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic.temporary(target) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing(tmp_path):
    target = tmp_path / "out.bin"
    for content in ("first", "second"):
        with atomic.temporary(target) as draft:
            draft.write_text(content)
            atomic.replace(draft, target)
        assert target.read_text() == content
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_are_those_of_a_new_file(tmp_path):
    with atomic.temporary(tmp_path / "out.bin") as draft:
        (tmp_path / "plain").write_text("")
        assert draft.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_two_drafts_of_one_target_are_two_files(tmp_path):
    with atomic.temporary(tmp_path / "a") as first, atomic.temporary(tmp_path / "a", ".other") as second:
        assert first != second
        assert second.name.endswith(".other")


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127])
def test_the_longest_names(tmp_path, name):
    target = tmp_path / name
    with atomic.temporary(target) as draft:
        atomic.replace(draft, target)
    assert target.exists()


def test_no_folder(tmp_path):
    with pytest.raises(OSError), atomic.temporary(tmp_path / "none" / "out.bin"):
        pass


def test_content_is_flushed_before_it_takes_its_place(tmp_path, monkeypatch):
    steps: list[str] = []
    flush, move = atomic.flush_to_disk, Path.replace
    monkeypatch.setattr(atomic, "flush_to_disk", lambda p: (steps.append(f"flush {p.name}"), flush(p)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (steps.append("move"), move(a, b)))
    (tmp_path / "a").write_text("x")
    atomic.replace(tmp_path / "a", tmp_path / "b")
    assert steps == ["flush a", "move", f"flush {tmp_path.name}"]
