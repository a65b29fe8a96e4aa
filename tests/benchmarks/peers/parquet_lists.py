"""Parquet with list columns and zstd: how a table of labels is written without thinking of labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks.peers.base import LabelTensors, LayoutRows, tensors

_ROW_GROUP_ROWS = 8192
_COLUMNS = ["class_ids", "probs", "rest"]


class ParquetLists:
    """One row a view of a sample: key, view, hard label, list of ids, list of float16 probabilities, rest."""

    name = "Parquet, zstd list columns"
    stores_rest = True

    def write(self, folder: Path, *, rows: LayoutRows) -> None:
        """Write all views into one file, view by view."""
        folder.mkdir(parents=True)
        path = folder / "labels.parquet"
        schema = pa.schema(
            {
                "key": pa.string(),
                "view": pa.int32(),
                "label": pa.int32(),
                "class_ids": pa.list_(pa.uint16()),
                "probs": pa.list_(pa.float16()),
                "rest": pa.float16(),
            }
        )
        with pq.ParquetWriter(path, schema, compression="zstd", compression_level=3) as writer:
            for view in range(len(rows.views)):
                ids, probs = rows.class_ids(view), rows.probs(view)
                offsets = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * ids.shape[1])
                columns = [
                    pa.array(rows.samples.keys),
                    pa.array(np.full(len(ids), view, dtype=np.int32)),
                    pa.array(rows.samples.labels.astype(np.int32)),
                    pa.ListArray.from_arrays(offsets, pa.array(ids.reshape(-1))),
                    pa.ListArray.from_arrays(offsets, pa.array(probs.reshape(-1))),
                    pa.array(rows.rest(view)),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=_ROW_GROUP_ROWS)

    def read(self, folder: Path, *, k: int) -> Iterator[LabelTensors]:
        """Yield a batch a row group, lists flattened without a loop over rows."""
        with pq.ParquetFile(folder / "labels.parquet") as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=_COLUMNS, use_threads=False)
                ids, probs, rest = (table.column(name).combine_chunks() for name in _COLUMNS)
                yield tensors(
                    ids.flatten().to_numpy().reshape(-1, k),
                    probs.flatten().to_numpy().reshape(-1, k),
                    rest.to_numpy(zero_copy_only=False),
                )
