"""Node names by shell pattern, as options such as ``keep`` take them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from graphopt.errors import UsageError


def matching(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that a name matches; None if it matches none."""
    return next((p for p in patterns if fnmatchcase(name, p)), None)


def unmatched(patterns: Iterable[str], names: Iterable[str]) -> str | None:
    """The first pattern that no name matches; None if each finds one."""
    known = list(names)
    return next((p for p in patterns if not any(fnmatchcase(name, p) for name in known)), None)


def require_matches(patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise UsageError, with the nearest name, if some pattern matches no name."""
    known = list(names)
    stray = unmatched(patterns, known)
    if stray is not None:
        near = difflib.get_close_matches(stray, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "see graphopt inspect for the names of nodes"
        raise UsageError(f"no node is named {stray!r}", hint)
