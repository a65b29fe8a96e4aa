"""Rows as the integers that a codec stores: between these and the streams nothing is rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import FormatError

MAX_ENTRIES = 1 << 28
"""Entries of one block, unused ones included: rows are decoded as wide as the fullest. Some gigabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRows:
    """Rows between quantisation and streams.

    Attributes:
        class_ids: uint32 or wider [rows, entries].
        values: [rows, entries]; exact: uint16, float16 pattern of -log p; compact: uint8, level, 0 where an entry is unused.
        rest: [rows], the same of the rest mass.
    """

    class_ids: npt.NDArray[Any]
    values: npt.NDArray[Any]
    rest: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.rest)


def check_rectangle(num_rows: int, *, entries: int) -> None:
    """Refuse rows that are few bytes as they are stored, and more than a block may hold when all are as wide as the fullest.

    Raises:
        FormatError: they are.
    """
    if num_rows * entries > MAX_ENTRIES:
        raise FormatError(f"{num_rows} rows, {entries} entries in the fullest of them, are more than a block's {MAX_ENTRIES}")


def interleave(one: StoredRows, other: StoredRows, *, order: npt.NDArray[np.int64]) -> StoredRows:
    """Return the rows of both in a given order; narrower rows are widened by unused entries.

    Args:
        order: int64 [all rows], into the rows of `one` followed by those of `other`.
    """
    entries = max(one.values.shape[1], other.values.shape[1])

    def stacked(name: str) -> npt.NDArray[Any]:
        widened = [np.pad(getattr(rows, name), ((0, 0), (0, entries - rows.values.shape[1]))) for rows in (one, other)]
        both: npt.NDArray[Any] = np.concatenate(widened)[order]
        return both

    rest = np.concatenate([one.rest, other.rest])[order]
    return StoredRows(class_ids=stacked("class_ids"), values=stacked("values"), rest=rest)
