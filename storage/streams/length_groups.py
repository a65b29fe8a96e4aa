"""An epoch's order with sequences of like length in one batch, so that less is padded; mixed as before, window by window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from storage.order import EpochOrder, permutation

IntArray = npt.NDArray[np.int64]

Lengths = Callable[[IntArray, IntArray], IntArray]
"""(block ids, rows inside their block) to int64, the length of each."""

_STREAM = 1 << 40
"""First of the random streams that order batches; those below it order the rows of windows."""


class LengthGroups:
    """Rows of one epoch: those of a window sorted by length and cut into batches, the batches in random order.

    A pure function of (seed, epoch) and of the stored lengths, as the order that it regroups. A batch that two windows share
    takes the longest rows of the one and the shortest of the next. What is left of an epoch fills no batch and is dropped by
    trainings: rows of any length, as they were mixed, since the longest would be left out every time.
    """

    def __init__(self, order: EpochOrder, *, batch_size: int, lengths: Lengths) -> None:
        self._order = order
        self._batch_size = batch_size
        self._lengths = lengths
        self._last: tuple[int, IntArray, IntArray] | None = None

    @property
    def epoch(self) -> int:
        """The epoch whose rows these are."""
        return self._order.epoch

    def slice(self, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """Return (block ids, rows inside their block) of rows [start, stop) of the epoch.

        Raises:
            IndexError: the range leaves the epoch.
        """
        if not 0 <= start <= stop <= self._order.num_rows:
            raise IndexError(f"rows [{start}, {stop}) leave the epoch's {self._order.num_rows} rows")
        parts: list[tuple[IntArray, IntArray]] = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))]
        while start < stop:
            index = self._order.window_of(start)
            first, end = self._order.window_bounds(index)
            block_ids, rows = self._window(index, first=first)
            until = min(stop, end)
            parts.append((block_ids[start - first : until - first], rows[start - first : until - first]))
            start = until
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([rows for _, rows in parts])

    def _window(self, index: int, *, first: int) -> tuple[IntArray, IntArray]:
        if self._last is None or self._last[0] != index:
            block_ids, rows = self._order.window(index)
            order = self._regrouped(self._lengths(block_ids, rows), index=index, first=first)
            self._last = (index, block_ids[order], rows[order])
        return self._last[1], self._last[2]

    def _regrouped(self, lengths: IntArray, *, index: int, first: int) -> IntArray:
        """Return int64 [rows of the window], which row comes where."""
        size = self._batch_size
        in_batches = self._order.num_rows - self._order.num_rows % size
        num_kept = min(max(in_batches - first, 0), len(lengths))
        # Stable, so that rows of one length stay as they were mixed.
        by_length = np.argsort(lengths[:num_kept], kind="stable").astype(np.int64)
        head = min(-first % size, num_kept)
        num_whole = (num_kept - head) // size
        whole = by_length[head : head + num_whole * size].reshape(num_whole, size)
        chosen = permutation(num_whole, seed=self._order.seed, epoch=self._order.epoch, stream=_STREAM + index)
        behind = by_length[head + num_whole * size :]
        left = np.arange(num_kept, len(lengths), dtype=np.int64)
        return np.concatenate([by_length[:head], whole[chosen].reshape(-1), behind, left])
