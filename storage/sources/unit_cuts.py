"""Where units end in a source that has no shards of its own: after a count, or where the keys themselves say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from storage.config.source import UnitEnds
from storage.hashing import checksum

_LEAST_SHARE = 4


def unit_ranges(keys: Sequence[str], *, unit_size: int, ends: UnitEnds) -> Iterator[range]:
    """Yield the positions of each unit's samples, in order.

    With "count" a unit has `unit_size` samples, the last one what is left. With "keys" it has a quarter of that to all of it: it
    ends after that key in reach whose hash is the least. So where it ends depends on the keys around it alone, and where a key
    comes or goes, the units further on end where they ended before.
    """
    if ends == "count":
        for start in range(0, len(keys), unit_size):
            yield range(start, min(start + unit_size, len(keys)))
        return
    hashes = np.fromiter((checksum(key.encode()) for key in keys), dtype=np.uint64, count=len(keys))
    least = -(-unit_size // _LEAST_SHARE)
    start = 0
    while len(keys) - start > unit_size:
        end = start + least + int(np.argmin(hashes[start + least - 1 : start + unit_size]))
        yield range(start, end)
        start = end
    if start < len(keys):
        yield range(start, len(keys))
