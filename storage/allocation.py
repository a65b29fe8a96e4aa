"""Memory that was freed serves the next block, instead of going back to the system and coming again page by page."""

from __future__ import annotations

import functools

import numpy as np

_LARGEST_BYTES = 24 << 20
"""Above any array of a decoded block of soft labels; glibc learns from mappings of up to 32 MiB."""


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep the arrays of a block for those of the next one, once a process.

    A block's arrays are a few megabytes: by default glibc maps each anew, and the first write to every page of it is a fault
    into the system, which at 100 entries a row took a third of the time of reading. It serves from the heap what is no larger
    than the largest mapping freed so far, and keeps twice as much free memory: one large array, never touched, makes it so.
    Nothing changes elsewhere.
    """
    np.empty(_LARGEST_BYTES, dtype=np.uint8)
