"""Memory that a step frees serves the next: returning it to the system each time costs page faults."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # of glibc's malloc.h
_KEEP = (1 << 31) - 1


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, freed memory stays with the process. Without effect where the C library is not glibc."""
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        yield
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _KEEP)
    mallopt(_TOP_PAD, 64 << 20)
    try:
        yield
    finally:
        mallopt(_MMAP_MAX, 65536)
        mallopt(_TRIM_THRESHOLD, 128 << 10)
        mallopt(_TOP_PAD, 0)
        gc.collect()
        trim(0)
