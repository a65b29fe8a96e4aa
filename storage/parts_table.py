"""The table of a label set's parts: its columns, and the checks that let readers index by what it says."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.block_bounds import MAX_BLOCK_SAMPLES
from storage.errors import FormatError
from storage.parquet_bounds import check_size
from storage.parts import TAR_NAME
from storage.samples import MAX_UNIT_SAMPLES

_EXTENT = {"offset": pa.int64(), "num_bytes": pa.int64(), "checksum": pa.string()}
_BLOCK = _EXTENT | {"view": pa.int32(), "first_sample": pa.int32(), "num_samples": pa.int32(), "num_rows": pa.int32()}
PARTS_SCHEMA = pa.schema(
    {
        "unit_name": pa.string(),
        "unit_digest": pa.string(),
        "request": pa.string(),
        "num_samples": pa.int64(),
        "first_view": pa.int32(),
        "num_views": pa.int32(),
        "tar_name": pa.string(),
        "tar_bytes": pa.int64(),
        "tar_sha256": pa.string(),
        "samples": pa.struct(_EXTENT),
        "blocks": pa.list_(pa.struct(_BLOCK)),
    }
)
ROW_BYTES = 32
"""A row takes no fewer in the file: it holds a sha256 of its own, which nothing compresses."""
PARTS_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "write_statistics": False,
    "store_schema": False,
    "use_dictionary": ["request"],
}
"""How the table is written. Readers know the schema, and digests fill no dictionary: what these take weighs in small tables, and
looking through dictionaries takes longer than the rest of reading a large one."""
_RUN = 8
"""Row groups that are read at a time."""
_FINGERPRINT = "^[0-9a-f]{64}$"


def read_parts_table(data: bytes, *, num_parts: int, num_views: int, origin: str) -> pa.Table:
    """Return the table of its Parquet bytes, whose numbers readers may allocate by.

    Args:
        num_parts: parts of the label set.
        num_views: views of the label set.

    Raises:
        FormatError: not such a table, or of other parts or views than the label set's, or a value is missing or out of its range.
    """
    try:
        # Not pq.read_table: it leaves Python objects to Arrow's threads, which abort a process that ends at that moment.
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as parquet:
            check_size(parquet, data, num_rows=num_parts, row_bytes=ROW_BYTES)
            groups = range(parquet.num_row_groups)
            # Run by run: what a check makes of a column is small, and fewer, larger pieces waste less memory.
            runs = [
                _checked(parquet.read_row_groups(groups[first : first + _RUN], use_threads=False), origin=origin)
                for first in groups[::_RUN]
            ]
        table = pa.concat_tables(runs) if runs else PARTS_SCHEMA.empty_table()
        if table.num_rows != num_parts:
            raise ValueError(f"{table.num_rows} rows, its footer says {num_parts}")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{origin}: not a table of parts that this release can read: {error}") from error
    last_views = [pc.max(_blocks(run).field("view")).as_py() for run in runs]
    last_view = max((view for view in last_views if view is not None), default=None)
    if last_view is not None and last_view != num_views - 1:
        raise FormatError(f"{origin}: its last block is of view {last_view}; the label set has {num_views} views")
    return table


def _blocks(table: pa.Table) -> pa.StructArray:
    return table.column("blocks").combine_chunks().flatten()


def _checked(table: pa.Table, *, origin: str) -> pa.Table:
    """Return some rows whose values are in their ranges.

    Raises:
        ArrowInvalid: not the columns that their types say.
        FormatError: a value is missing or out of its range.
    """
    table = table.cast(PARTS_SCHEMA).combine_chunks()
    table.validate(full=True)
    blocks, samples = _blocks(table), table.column("samples").combine_chunks()
    columns = {name: table.column(name) for name in table.column_names} | {"blocks[]": blocks}
    columns |= {f"blocks[].{name}": blocks.field(name) for name in _BLOCK}
    columns |= {f"samples.{name}": samples.field(name) for name in _EXTENT}
    for name, column in columns.items():
        if column.null_count:
            raise FormatError(f"{origin}: {column.null_count} values of {name} are missing")
        least = 1 if name == "blocks[].num_samples" else 0
        if pa.types.is_integer(column.type) and len(column) and pc.min(column).as_py() < least:
            raise FormatError(f"{origin}: {name} {pc.min(column).as_py()}")
    for what, numbers, most in (
        ("samples of a part", columns["num_samples"], MAX_UNIT_SAMPLES),
        ("samples of a block", columns["blocks[].num_samples"], MAX_BLOCK_SAMPLES),
        ("rows of a block", columns["blocks[].num_rows"], MAX_BLOCK_SAMPLES),
    ):
        if pc.any(pc.greater(numbers, most)).as_py():
            raise FormatError(f"{origin}: up to {pc.max(numbers).as_py()} {what}, which may hold {most}")
    for name, pattern, what in (("tar_name", TAR_NAME, "the name of a part's tar"), ("request", _FINGERPRINT, "a fingerprint")):
        strangers = table.filter(pc.invert(pc.match_substring_regex(table.column(name), pattern)))
        if strangers.num_rows:
            raise FormatError(f"{origin}: {strangers.column(name)[0].as_py()!r} is not {what}")
    return table
