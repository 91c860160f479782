"""What docs/training.md says of operators and options is so."""

from __future__ import annotations

import re
from pathlib import Path

from graphopt.passes.train import Distill, FineTune
from graphopt.training.ops import OPERATORS


def test_the_page_lists_the_operators(root: Path) -> None:
    text = (root / "docs" / "training.md").read_text()
    listed = re.search(r"In the table:\n\n(.*?)\.\n\n", text, re.S)
    assert listed is not None
    assert re.split(r",\s+", listed.group(1)) == sorted(OPERATORS)


def test_options_that_the_page_names_are_there(root: Path) -> None:
    text = (root / "docs" / "training.md").read_text()
    names = {i.name for i in (*Distill.options(), *FineTune.options())}
    named = set(re.findall(r"`([a-z_]+)=[\w.]+`", text))
    assert named and named <= names
