"""The models of ``onnx.backend.test``: simplified, they do what the standard expects."""

from __future__ import annotations

import pytest
from backend import FORMS, KINDS, Case, cases, survey

_STRIDE = 13  # for the short form: every so many of some two thousand models
_PARTS = 8


def _examine(chosen: tuple[Case, ...], form: str) -> None:
    tally = survey(chosen, form)
    print(f"{form}: {tally}")
    assert not tally.harm, "\n".join(map(" ".join, tally.harm))
    ran = tally.counts["changed"] + tally.counts["unchanged"]
    assert ran > 0.6 * len(chosen), str(tally)
    assert tally.counts["not as expected"] < 0.05 * len(chosen), str(tally)


@pytest.mark.parametrize("form", FORMS)
def test_some(form: str) -> None:
    _examine(cases(*KINDS)[::_STRIDE], form)


@pytest.mark.suite
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", range(_PARTS))
def test_all(part: int, form: str) -> None:
    _examine(cases(*KINDS)[part::_PARTS], form)


@pytest.mark.suite
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", cases("real"), ids=lambda c: c.test.model_name)
def test_classifiers(case: Case, form: str) -> None:
    """Real architectures with made-up weights."""
    _examine((case,), form)
