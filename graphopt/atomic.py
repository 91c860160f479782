"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def temporary(target: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """An empty file beside ``target``, with the permissions of a new file; removed at the end if it is still there.

    Write to it, ``flush_to_disk`` it, then ``replace`` the target with it.
    """
    # Cut short: the longest name that a folder takes must not become too long.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=suffix)
    os.close(handle)
    path = Path(name)
    try:
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)
        yield path
    finally:
        path.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Put ``source``, whose content is on disk already, in the place of ``target``, durably."""
    flush_to_disk(source)
    source.replace(target)
    flush_to_disk(target.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
