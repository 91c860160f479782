"""The cycle collector is off while a graph is built, and what that makes is collected all the same."""

from __future__ import annotations

import gc
import weakref

import pytest

from graphopt import garbage


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_it_is_off_inside_and_as_before_afterwards() -> None:
    assert gc.isenabled()
    with garbage.paused():
        assert not gc.isenabled()
        with garbage.paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), garbage.paused():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_garbage_is_collected_by_a_later_block_when_it_holds_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_pending", 0)
    with garbage.paused():
        lost = weakref.ref(Cycle())
    assert lost() is not None
    with garbage.paused(size=garbage._MOST_PENDING * garbage._BYTES_AN_OBJECT):
        pass
    assert lost() is not None or garbage._pending == 0
    with garbage.paused():
        pass
    with garbage.paused(size=garbage._MOST_PENDING * garbage._BYTES_AN_OBJECT + 1):
        pass
    assert lost() is None


def test_what_somebody_else_has_frozen_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with garbage.paused():
            pass
        assert gc.get_freeze_count() >= frozen > 0
    finally:
        gc.unfreeze()
