"""The table of a label set's parts: its columns, and the checks that let readers index by what it says."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import FormatError

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
_FINGERPRINT = "^[0-9a-f]{64}$"
_TAR_NAME = r"^[0-9a-f]{32}\.v[0-9]{5,}-[0-9]{5,}\.[0-9a-f]{16}\.tar$"


def read_parts_table(data: bytes, *, num_views: int, origin: str) -> pa.Table:
    """Return the table of its Parquet bytes.

    Args:
        num_views: views of the label set.

    Raises:
        FormatError: not such a table, a value is missing or negative, or its views are not those of the label set.
    """
    try:
        # Not pq.read_table: it leaves Python objects to Arrow's threads, which abort a process that ends at that moment.
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as parquet:
            table = parquet.read(use_threads=False).cast(PARTS_SCHEMA)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise FormatError(f"{origin}: not a table of parts that this release can read: {error}") from error
    blocks = table.column("blocks").combine_chunks().flatten()
    samples = table.column("samples").combine_chunks()
    columns = {name: table.column(name) for name in table.column_names} | {"blocks[]": blocks}
    columns |= {f"blocks[].{name}": blocks.field(name) for name in _BLOCK}
    columns |= {f"samples.{name}": samples.field(name) for name in _EXTENT}
    for name, column in columns.items():
        if column.null_count:
            raise FormatError(f"{origin}: {column.null_count} values of {name} are missing")
        if pa.types.is_integer(column.type) and len(column) and pc.min(column).as_py() < 0:
            raise FormatError(f"{origin}: {name} {pc.min(column).as_py()}")
    last_view = pc.max(blocks.field("view")).as_py()
    if last_view is not None and last_view != num_views - 1:
        raise FormatError(f"{origin}: its last block is of view {last_view}; the label set has {num_views} views")
    for name, pattern, what in (("tar_name", _TAR_NAME, "the name of a part's tar"), ("request", _FINGERPRINT, "a fingerprint")):
        strangers = table.filter(pc.invert(pc.match_substring_regex(table.column(name), pattern)))
        if strangers.num_rows:
            raise FormatError(f"{origin}: {strangers.column(name)[0].as_py()!r} is not {what}")
    return table
