"""Random access to the rows of one unit of a Parquet source."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.errors import SampleError
from storage.sources.base import SourceUnit
from storage.sources.parquet_file import NO_BYTES, decode_row_group, open_parquet, stored_bytes, too_long

CACHED_ROW_GROUPS = 4


class ParquetReader:
    """Random access to the rows of one unit; keeps the last few row groups decoded. Threads may share it."""

    def __init__(
        self,
        *,
        unit: SourceUnit,
        column: str,
        max_bytes: int,
        keys: Sequence[str],
        labels: npt.NDArray[np.int64],
        problems: dict[int, str],
        group_rows: Sequence[int],
    ) -> None:
        self._unit = unit
        self._column = column
        self._max_bytes = max_bytes
        self._keys = keys
        self._labels = labels
        self._problems = problems
        self._group_ends = np.cumsum(group_rows)
        self._first_group: int = unit.locator["row_groups"][0]
        self._groups: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()
        self._parquet = open_parquet(unit.locator["url"])

    @property
    def keys(self) -> Sequence[str]:
        """Keys in position order."""
        return self._keys

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Hard labels in position order, NO_LABEL where there is none."""
        return self._labels

    def read(self, position: int) -> bytes:
        """Return the bytes of a picture or text.

        Raises:
            SampleError: the row has no picture or text, or no valid label.
            SourceError: its row group does not decode.
        """
        if not 0 <= position < len(self._keys):
            raise IndexError(f"position {position} is not among the {len(self._keys)} samples of the unit")
        if position in self._problems:
            raise SampleError(f"{self._keys[position]}: {self._problems[position]}")
        index = int(np.searchsorted(self._group_ends, position, side="right"))
        row = position - (int(self._group_ends[index - 1]) if index else 0)
        data: bytes | None = self._load(self._first_group + index)[row].as_py()
        if data is None:
            raise SampleError(f"{self._keys[position]}: {NO_BYTES}")
        if len(data) > self._max_bytes:
            raise SampleError(f"{self._keys[position]}: {too_long(data, max_bytes=self._max_bytes)}")
        return data

    def _load(self, group: int) -> pa.ChunkedArray:
        with self._lock:
            if group not in self._groups:
                column = self._column
                batches = decode_row_group(self._parquet, url=self._unit.locator["url"], group=group, columns=[column])
                self._groups[group] = pa.chunked_array([stored_bytes(batch, column=column) for batch in batches])
                if len(self._groups) > CACHED_ROW_GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            return self._groups[group]

    def close(self) -> None:
        """Close the file and drop what is decoded."""
        self._groups.clear()
        self._parquet.close()
