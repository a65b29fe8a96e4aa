"""Open a Parquet file of pictures or texts, check what it holds, and decode one row group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from storage.config.source import ParquetConfig
from storage.errors import SourceError
from storage.naming import did_you_mean
from storage.sources.files import change_token, open_store, reaching

BATCH_ROWS = 64
"""Rows decoded at a time. Small batches also keep the pictures of one batch below the 2 GiB of Arrow's binary type."""
REMOTE_BLOCK_BYTES = 1 << 20
"""What is read ahead of a column chunk in a remote store; Arrow asks for a chunk at a time."""

NO_BYTES = "the bytes are null"

_BYTES = "bytes"


_opened: WeakValueDictionary[tuple[str, str], pq.ParquetFile] = WeakValueDictionary()


def open_parquet(url: str) -> pq.ParquetFile:
    """Open a file with page checksums verified where its writer stored them.

    Readers of one file share its footer, which is kilobytes for each of its row groups, as long as one of them has it open.

    Raises:
        SourceError: the file does not exist or is no whole Parquet file.
    """
    fs, path = open_store(url)
    options: dict[str, Any] = {"page_checksum_verification": True}
    with reaching(url, action="open"):
        try:
            if isinstance(fs, LocalFileSystem | MemoryFileSystem):
                opened, info = path, fs.info(path)
                # Arrow reads ahead by threads, each of which keeps memory of its own: nothing is gained by it on a disk.
                options |= {"filesystem": fs, "pre_buffer": False}
            else:
                opened = fs.open(path, block_size=REMOTE_BLOCK_BYTES)
                info = getattr(opened, "details", {})
            token = change_token(info)
            known = _opened.get((url, token)) if token else None
            parquet = pq.ParquetFile(opened, metadata=None if known is None else known.metadata, **options)
        except (pa.ArrowInvalid, OSError) as error:
            # Stores' own OSErrors are told by `reaching`.
            if not isinstance(error, pa.ArrowInvalid) and "deserialize thrift" not in str(error):
                raise
            raise SourceError(f"{url} is truncated, damaged or no Parquet file: {error}; copy or write it again") from error
    if token:
        _opened[url, token] = parquet
    return parquet


def decode_row_group(parquet: pq.ParquetFile, *, url: str, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group, at most `BATCH_ROWS` in a batch; of a struct column only its bytes are read.

    Raises:
        SourceError: the row group does not decode, or a page's checksum differs.
    """
    types = {column: parquet.schema_arrow.field(column).type for column in columns}
    paths = [f"{column}.{_BYTES}" if pa.types.is_struct(types[column]) else column for column in columns]
    num_rows = 0
    batches = parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=paths, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{url}: row group {group} cannot be read: {error}; copy or write the file again") from error
        if batch is None:
            break
        num_rows += batch.num_rows
        yield batch
    expected = parquet.metadata.row_group(group).num_rows
    if num_rows != expected:
        raise SourceError(
            f"{url}: row group {group} gave {num_rows} rows, not {expected} as its footer says; write the file again"
        )


def stored_bytes(batch: pa.RecordBatch, *, column: str) -> pa.Array:
    """Return the bytes of pictures or texts of a batch as a binary array; null where the value, struct or its bytes are."""
    array = batch.column(column)
    if pa.types.is_struct(array.type):
        return array.flatten()[array.type.get_field_index(_BYTES)]
    if pa.types.is_string(array.type):
        return array.cast(pa.binary())
    return array.cast(pa.large_binary()) if pa.types.is_large_string(array.type) else array


def data_column(config: ParquetConfig) -> str:
    """Return the column that holds pictures or texts."""
    return config.text_column if config.text_column is not None else config.image_column


def too_long(data: bytes, *, max_bytes: int) -> str:
    """Return what is wrong with a text of more bytes than the config allows."""
    return f"it is {len(data)} bytes long, more than source.max_document_bytes = {max_bytes}"


def check_columns(schema: pa.Schema, *, url: str, config: ParquetConfig) -> None:
    """Check that the columns of a config are there and of a usable type.

    Raises:
        SourceError: a column is missing or of another type; the message names the columns there are.
    """
    if config.text_column is None:
        _check_pictures(schema, url=url, column=config.image_column)
    else:
        _check_texts(schema, url=url, column=config.text_column)
    if config.label_column is not None:
        label = _field(schema, url=url, column=config.label_column, option="label_column").type
        if not pa.types.is_integer(label):
            raise SourceError(
                f"{url}: column {config.label_column!r} is {label}, not an integer, so it holds no class labels; name the label "
                "column in source.label_column, or null for a source without labels"
            )
    if config.key_column is not None:
        key = _field(schema, url=url, column=config.key_column, option="key_column").type
        if not (pa.types.is_integer(key) or pa.types.is_string(key) or pa.types.is_large_string(key)):
            raise SourceError(
                f"{url}: column {config.key_column!r} is {key}, not a string or integer, so it holds no keys; name another "
                "source.key_column, or null for keys of file stem and row number"
            )


def _check_pictures(schema: pa.Schema, *, url: str, column: str) -> None:
    image = _field(schema, url=url, column=column, option="image_column").type
    if pa.types.is_struct(image) and image.get_field_index(_BYTES) >= 0:
        image = image.field(_BYTES).type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
        hint = ", or a column of texts in source.text_column" if pa.types.is_string(image) else ""
        raise SourceError(
            f"{url}: column {column!r} is {image}, not struct<bytes, path> or binary, so it holds no pictures; name the picture "
            f"column in source.image_column{hint}"
        )


def _check_texts(schema: pa.Schema, *, url: str, column: str) -> None:
    text = _field(schema, url=url, column=column, option="text_column").type
    if not any(
        test(text) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    ):
        raise SourceError(
            f"{url}: column {column!r} is {text}, not string or binary, so it holds no texts; name the text column in "
            "source.text_column"
        )


def class_names(schema: pa.Schema, *, url: str, column: str | None) -> tuple[str, ...] | None:
    """Return the names of the ClassLabel feature of a column, as Hugging Face datasets writes it into the schema's metadata.

    Raises:
        SourceError: the metadata are there but are no JSON.
    """
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None or column is None:
        return None
    try:
        value: Any = json.loads(stored)
    except ValueError as error:
        raise SourceError(
            f"{url}: its huggingface metadata are no JSON ({error}), give source.classes or write it again"
        ) from error
    for name in ("info", "features", column, "names"):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return tuple(value)


def _field(schema: pa.Schema, *, url: str, column: str, option: str) -> pa.Field:
    if schema.names.count(column) != 1:
        how_many = "no column" if column not in schema.names else "more than one column"
        raise SourceError(
            f"{url} has {how_many} {column!r}; name the right one in source.{option}.{did_you_mean(column, schema.names)}"
        )
    return schema.field(column)
