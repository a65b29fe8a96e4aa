"""Where the blocks of a label set lie, view by view: columns, so that a million blocks cost megabytes and not gigabytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.parts import Extent

_COLUMNS = ("offset", "num_bytes", "first_sample", "num_samples", "num_rows")


@dataclass(frozen=True, slots=True)
class BlockPlace:
    """Where one block lies.

    Attributes:
        part: row of its part in the table of parts.
    """

    part: int
    extent: Extent
    first_sample: int
    num_samples: int
    num_rows: int


class BlockPlaces:
    """The blocks of every view in the order of parts, and of blocks inside a part."""

    def __init__(self, parts: pa.Table, *, num_views: int) -> None:
        """Index a table of parts, as `storage.parts_table` reads it."""
        lists = parts.column("blocks").combine_chunks()
        blocks = lists.flatten()
        self._parts = np.repeat(np.arange(len(lists), dtype=np.int64), lists.value_lengths().to_numpy(zero_copy_only=False))
        self._columns = np.stack([blocks.field(name).to_numpy(zero_copy_only=False) for name in _COLUMNS], axis=1)
        self._checksums = blocks.field("checksum")
        views = blocks.field("view").to_numpy(zero_copy_only=False)
        order = np.argsort(views, kind="stable")
        self._by_view = np.split(order, np.searchsorted(views[order], np.arange(1, num_views)))

    def rows(self, *, view: int) -> npt.NDArray[np.int64]:
        """Return int64 [blocks], the rows of each block of a view."""
        num_rows: npt.NDArray[np.int64] = self._columns[self._by_view[view], _COLUMNS.index("num_rows")].astype(np.int64)
        return num_rows

    def spans(self, *, view: int) -> npt.NDArray[np.int64]:
        """Return int64 [blocks, 3], of each block of a view its part, its first sample and its number of samples."""
        blocks = self._by_view[view]
        columns = [_COLUMNS.index("first_sample"), _COLUMNS.index("num_samples")]
        return np.column_stack([self._parts[blocks], self._columns[blocks][:, columns]]).astype(np.int64)

    def part(self, *, view: int, block_id: int) -> int:
        """Return the part of a block of a view, as a row of the table of parts."""
        return int(self._parts[self._by_view[view][block_id]])

    def place(self, *, view: int, block_id: int) -> BlockPlace:
        """Return where a block of a view lies."""
        index = int(self._by_view[view][block_id])
        offset, num_bytes, first_sample, num_samples, num_rows = self._columns[index].tolist()
        return BlockPlace(
            part=int(self._parts[index]),
            extent=Extent(offset=offset, num_bytes=num_bytes, checksum=self._checksums[index].as_py()),
            first_sample=first_sample,
            num_samples=num_samples,
            num_rows=num_rows,
        )
