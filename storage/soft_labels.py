"""Sparse soft labels as values: what codecs write, streams yield and losses read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftLabels:
    """Rows of sparse class distributions: some classes with their probabilities, and the mass of all others.

    Attributes:
        class_ids: int32 [rows, entries] (int64 where num_classes exceeds 2^31). Unused entries come last in a row; they hold
            some valid id and probability 0, so that gathers stay in bounds and sums are right.
        probs: float32 [rows, entries], at the generation temperature; a kept entry is above 0.
        rest: float32 [rows], 1 - sum(probs) up to rounding, never negative.
        num_classes: classes of the distribution.
    """

    class_ids: npt.NDArray[np.int32] | npt.NDArray[np.int64]
    probs: npt.NDArray[np.float32]
    rest: npt.NDArray[np.float32]
    num_classes: int

    def __len__(self) -> int:
        return len(self.rest)

    def take(self, rows: npt.NDArray[np.int64]) -> SoftLabels:
        """Return the given rows, in the given order."""
        return SoftLabels(
            class_ids=self.class_ids[rows], probs=self.probs[rows], rest=self.rest[rows], num_classes=self.num_classes
        )

    def densify(self) -> npt.NDArray[np.float64]:
        """Return float64 [rows, num_classes] with the rest spread evenly over the classes that are not kept (TinyViT)."""
        rows = len(self)
        kept = self.probs > 0
        num_others = self.num_classes - kept.sum(axis=1)
        dense = np.repeat((self.rest / np.maximum(num_others, 1)).astype(np.float64)[:, None], self.num_classes, axis=1)
        row_ids = np.broadcast_to(np.arange(rows)[:, None], kept.shape)[kept]
        dense[row_ids, self.class_ids[kept]] = self.probs[kept]
        return dense


def as_ids(values: npt.NDArray[Any], *, num_classes: int) -> npt.NDArray[np.int32] | npt.NDArray[np.int64]:
    """Return integers as class ids: int32, or int64 where the classes need it; not copied where that is what they are."""
    return values.astype(np.int32, copy=False) if num_classes <= 2**31 else values.astype(np.int64, copy=False)


def concatenate(parts: list[SoftLabels]) -> SoftLabels:
    """Stack rows of label sets of one number of classes; narrower rows are padded with unused entries.

    Raises:
        ValueError: no parts, or parts that differ in their number of classes.
    """
    if len({part.num_classes for part in parts}) != 1:
        raise ValueError(f"cannot stack soft labels over {sorted({part.num_classes for part in parts})} classes")
    if len(parts) == 1:
        return parts[0]
    entries = max(part.probs.shape[1] for part in parts)
    rows = sum(len(part) for part in parts)
    class_ids = np.zeros((rows, entries), dtype=parts[0].class_ids.dtype)
    probs = np.zeros((rows, entries), dtype=np.float32)
    start = 0
    for part in parts:
        stop = start + len(part)
        class_ids[start:stop, : part.class_ids.shape[1]] = part.class_ids
        probs[start:stop, : part.probs.shape[1]] = part.probs
        start = stop
    return SoftLabels(
        class_ids=class_ids, probs=probs, rest=np.concatenate([part.rest for part in parts]), num_classes=parts[0].num_classes
    )
