"""Node names by shell pattern, as options such as ``keep`` take them."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def matching(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that a name matches; None if it matches none."""
    return next((p for p in patterns if fnmatchcase(name, p)), None)


def unmatched(patterns: Iterable[str], names: Iterable[str]) -> str | None:
    """The first pattern that no name matches; None if each finds one."""
    known = list(names)
    return next((p for p in patterns if not any(fnmatchcase(name, p) for name in known)), None)
