"""The order of an epoch: a pure function of (seed, epoch) over a canonical list of blocks.

Independent of world size and loader workers: every process computes the same order and takes its own slice of each batch, so a
position in the stream is (epoch, row) and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

IntArray = npt.NDArray[np.int64]

_CANONICAL_WINDOW_BLOCKS = 16
"""Blocks that are listed at a time where nothing is shuffled; no part of the order."""


def permutation(count: int, *, seed: int, epoch: int, stream: int) -> IntArray:
    """Return a permutation of range(count) by sorting Philox words; raw words are stable across numpy versions."""
    key = xxhash.xxh3_128_intdigest(b"decant order" + seed.to_bytes(8, "little"))
    words = np.random.Philox(key=key, counter=[0, 0, stream, epoch]).random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class EpochOrder:
    """Rows of one epoch in shuffled order.

    Blocks are permuted, cut into windows of `window_blocks`, and the rows of a window are permuted together: a reader holds one
    window of blocks and reads whole blocks.

    Attributes:
        block_rows: int64 [blocks], rows of each block in canonical order.
        window_blocks: 0 keeps canonical order (evaluation).
    """

    block_rows: IntArray
    seed: int
    epoch: int
    window_blocks: int
    _blocks: IntArray = field(init=False, repr=False, compare=False)
    _last_window: dict[int, tuple[IntArray, IntArray]] = field(init=False, repr=False, compare=False, default_factory=dict)
    _window_starts: IntArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        count = len(self.block_rows)
        shuffled = self.window_blocks > 0
        blocks = permutation(count, seed=self.seed, epoch=self.epoch, stream=0) if shuffled else np.arange(count, dtype=np.int64)
        rows_before = np.concatenate([[0], np.cumsum(self.block_rows[blocks])]).astype(np.int64)
        step = self._step
        starts = rows_before[np.append(np.arange(0, count, step), count)]
        object.__setattr__(self, "_blocks", blocks)
        object.__setattr__(self, "_window_starts", starts)

    @property
    def _step(self) -> int:
        return self.window_blocks or _CANONICAL_WINDOW_BLOCKS

    @property
    def num_rows(self) -> int:
        """Rows of the epoch."""
        return int(self._window_starts[-1])

    def window_of(self, row: int) -> int:
        """Return the index of the window that holds a row of the epoch."""
        return int(np.searchsorted(self._window_starts, row, side="right")) - 1

    def window_bounds(self, index: int) -> tuple[int, int]:
        """Return the first row of a window, and the first one behind it."""
        return int(self._window_starts[index]), int(self._window_starts[index + 1])

    def window(self, index: int) -> tuple[IntArray, IntArray]:
        """Return (block ids, rows inside their block), int64 [rows of the window], in epoch order.

        The last window asked for is kept: the batches of an epoch come from one after the other.
        """
        if index not in self._last_window:
            self._last_window.clear()
            self._last_window[index] = self._draw_window(index)
        return self._last_window[index]

    def _draw_window(self, index: int) -> tuple[IntArray, IntArray]:
        step = self._step
        blocks = self._blocks[index * step : (index + 1) * step]
        sizes = self.block_rows[blocks]
        block_ids = np.repeat(blocks, sizes)
        rows = np.arange(len(block_ids), dtype=np.int64) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if self.window_blocks == 0:
            return block_ids, rows
        order = permutation(len(block_ids), seed=self.seed, epoch=self.epoch, stream=index + 1)
        return block_ids[order], rows[order]

    def slice(self, start: int, stop: int) -> tuple[IntArray, IntArray]:
        """Return (block ids, rows inside their block) of rows [start, stop) of the epoch.

        Raises:
            IndexError: the range leaves the epoch.
        """
        if not 0 <= start <= stop <= self.num_rows:
            raise IndexError(f"rows [{start}, {stop}) leave the epoch's {self.num_rows} rows")
        block_parts, row_parts = [], []
        while start < stop:
            index = self.window_of(start)
            first, last = self.window_bounds(index)
            end = min(stop, last)
            block_ids, rows = self.window(index)
            block_parts.append(block_ids[start - first : end - first])
            row_parts.append(rows[start - first : end - first])
            start = end
        if not block_parts:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate(block_parts), np.concatenate(row_parts)
