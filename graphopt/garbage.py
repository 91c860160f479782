"""Python's cycle collector, kept from walking a large graph again and again while it is built or rewritten."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# What may become garbage before a whole collection is made: objects, and bytes in units of as much.
_MOST_PENDING = 2_000_000
_BYTES_AN_OBJECT = 256
_pending = 0


@contextmanager
def paused(size: int = 0) -> Iterator[None]:
    """No cycle collection inside the block: with hundreds of thousands of living objects it takes half of the time.

    Nor right after it, where all that the block has made would be walked at once: that counts as old from then on,
    and is collected with what else is old, at the latest after some such blocks. ``size``: bytes that they hold.
    """
    global _pending
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            _pending += gc.get_count()[0] + size // _BYTES_AN_OBJECT
            if _pending > _MOST_PENDING:
                gc.collect()
                _pending = 0
            elif not gc.get_freeze_count():  # else that belongs to somebody
                gc.freeze()
                gc.unfreeze()
            gc.enable()
