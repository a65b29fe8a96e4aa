"""Which blocks of a label set hold some samples of a unit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from storage.samples import MAX_UNIT_SAMPLES

IntArray = npt.NDArray[np.int64]


class Covering:
    """The blocks of one view, to be found by unit and sample."""

    def __init__(self, spans: IntArray, *, units: IntArray) -> None:
        """Index blocks.

        Args:
            spans: int64 [blocks, 3], part, first sample and samples of each.
            units: int64 [parts], a number for the unit of each part.
        """
        starts = units[spans[:, 0]] * MAX_UNIT_SAMPLES + spans[:, 1]
        self._ids = np.argsort(starts, kind="stable").astype(np.int64)
        self._starts = starts[self._ids]
        self._stops = self._starts + spans[self._ids, 2]

    def blocks(self, *, unit: int, first: int, num: int) -> IntArray:
        """Return int64, the blocks that hold any of `num` samples of a unit, by sample."""
        start = unit * MAX_UNIT_SAMPLES + first
        low = int(np.searchsorted(self._stops, start, side="right"))
        high = int(np.searchsorted(self._starts, start + num, side="left"))
        return self._ids[low:high]
