"""Labels as Parquet: one row for each sample and view, for `datasets`, pandas and whatever else reads Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.interchange.output import OpenFileExport
from storage.interchange.rows import LabelledRows, RowReader
from storage.soft_labels import SoftLabels
from storage.sources.base import NO_LABEL

ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 8000
METADATA_KEY = b"decant"
"""Of the schema's metadata: JSON with label set, request, teacher, K and classes."""


def schema_of(description: dict[str, Any], *, num_classes: int) -> pa.Schema:
    """Return the schema of exported files.

    Args:
        description: JSON data for the metadata.
    """
    ids = pa.int32() if num_classes <= 2**31 else pa.int64()
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("view", pa.int32(), nullable=False),
            pa.field("label", pa.int64()),
            pa.field("class_ids", pa.list_(pa.field("element", ids, nullable=False)), nullable=False),
            pa.field("probs", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
            pa.field("rest", pa.float32(), nullable=False),
        ],
        metadata={METADATA_KEY: json.dumps(description, ensure_ascii=False).encode()},
    )


def to_batch(rows: LabelledRows, *, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows as a record batch: lists hold the kept classes alone, and may differ in length."""
    soft_labels: SoftLabels = rows.soft_labels
    kept = soft_labels.probs > 0
    offsets = pa.array(np.concatenate([[0], kept.sum(axis=1).cumsum()]).astype(np.int32))
    columns = [
        pa.array(rows.keys, type=pa.string()),
        pa.array(np.full(len(soft_labels), rows.view, dtype=np.int32)),
        pa.array(rows.labels, mask=rows.labels == NO_LABEL),
        pa.ListArray.from_arrays(offsets, pa.array(soft_labels.class_ids[kept]), type=schema.field("class_ids").type),
        pa.ListArray.from_arrays(offsets, pa.array(soft_labels.probs[kept]), type=schema.field("probs").type),
        pa.array(soft_labels.rest),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@dataclass(kw_only=True)
class ParquetExport(OpenFileExport):
    """Writes `labels-<number>.parquet` files of at most about a million rows, row groups of a block or a few."""

    schema: pa.Schema
    _writer: pq.ParquetWriter | None = None
    _num_files: int = 0
    _rows_in_file: int = 0

    def write(self, reader: RowReader, *, view: int) -> Iterator[int]:
        """Write a view; yield the rows of each block that was taken in."""
        waiting: list[pa.RecordBatch] = []
        num_waiting = 0
        for rows in reader.read(view):
            if waiting and num_waiting + len(rows.keys) > ROWS_PER_GROUP:
                self._write_group(waiting)
                waiting, num_waiting = [], 0
            waiting.append(to_batch(rows, schema=self.schema))
            num_waiting += len(rows.keys)
            yield len(rows.keys)
        if waiting:
            self._write_group(waiting)

    def _write_group(self, batches: list[pa.RecordBatch]) -> None:
        if self._writer is None:
            file = self._stack.enter_context(self.folder.create(f"labels-{self._num_files:06d}.parquet"))
            self._writer = self._stack.enter_context(pq.ParquetWriter(file, self.schema, compression="zstd"))
            self._num_files += 1
            self._rows_in_file = 0
        table = pa.Table.from_batches(batches).combine_chunks()
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._rows_in_file += table.num_rows
        if self._rows_in_file >= ROWS_PER_FILE:
            self.close()

    def close(self) -> None:
        """Finish the file at hand; the next rows begin another."""
        super().close()
        self._writer = None
