"""What a Parquet file of a cache decodes to is known before any of it is decoded: somebody else may have written it.

A footer may lie, and a few kilobytes of run lengths and dictionary places stand for 10^9 values. Arrow allocates by the headers
of pages, so these are read first. What the footer says of columns is read here too: pyarrow ends the whole process where the
statistics of one are not what they should be.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.thrift_compact import BINARY, I32, I64, LIST, STRUCT, read_struct

_BYTES_A_BYTE = 64
"""Names that share long beginnings, and numbers that are alike, take so many times the bytes of their file, and no more."""
_SPARE_BYTES = 64 << 20
_VALUE_BYTES = 16
"""A number, or the place of a string, and the levels that say in which list it stands."""

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_DETAILS = {_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}
"""The field of a page's header that holds what only pages of its type have."""
_PLAIN, _RUNS = 0, 3
_PLACES = (2, 8)
"""Encodings of pages that hold places in a dictionary."""

_BYTE_ARRAY, _FIXED_BYTES = 6, 7
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 5: "lz4", 6: "zstd", 7: "lz4_raw"}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Column:
    """A column of a row group, as the footer has it."""

    name: str
    physical_type: int
    codec: int
    num_values: int
    num_bytes: int
    data_page_offset: int
    dictionary_page_offset: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Page:
    kind: int
    num_values: int
    encoding: int
    raw_bytes: int
    body: memoryview


def check_size(
    parquet: pq.ParquetFile,
    data: bytes | memoryview,
    *,
    num_rows: int | None = None,
    row_bytes: int = 0,
    columns: Collection[str] | None = None,
    group_by_group: bool = False,
) -> None:
    """Refuse a file that decodes to more than its bytes can have come from.

    Args:
        data: the file.
        num_rows: rows that whoever names the file announces; None: nobody does.
        row_bytes: a row takes at least so many bytes of the file, whatever compresses it.
        columns: that will be read; None: all.
        group_by_group: whether one row group is held at a time.

    Raises:
        ValueError: it does, or has other rows than were announced, or is written in a way that no release writes.
    """
    metadata = parquet.metadata
    groups = _columns(memoryview(data))
    if num_rows is not None and metadata.num_rows != num_rows:
        raise ValueError(f"{metadata.num_rows} rows, {num_rows} were announced")
    if sum(rows for rows, _ in groups) != metadata.num_rows or any(rows < 0 for rows, _ in groups):
        raise ValueError(f"{metadata.num_rows} rows, its row groups hold others")
    if metadata.num_rows * row_bytes > len(data):
        raise ValueError(f"{metadata.num_rows} rows in {len(data)} bytes, each of which takes {row_bytes} or more")
    if "parquet-mr" in (metadata.created_by or "").lower():
        # Arrow reads beyond the columns of its early versions.
        raise ValueError(f"written by {metadata.created_by}, which no release uses")
    most = _SPARE_BYTES + _BYTES_A_BYTE * len(data)
    total = 0
    for num_rows_of_group, found in groups:
        # What is kept of a row, its places in lists and dictionaries, comes on top of each column's values.
        total = _VALUE_BYTES * num_rows_of_group if group_by_group else total + _VALUE_BYTES * num_rows_of_group
        for column in found:
            if columns is None or column.name.partition(".")[0] in columns:
                total = _add_column(total, column, memoryview(data), most=most)


def _columns(data: memoryview) -> list[tuple[int, list[_Column]]]:
    """Return the rows of each row group, and its columns.

    Raises:
        ValueError: the footer is none that a release writes.
    """
    (length,) = _LENGTH.unpack(data[-8:-4])
    try:
        footer, end = read_struct(data[len(data) - 8 - length : -8], 0)
        if end != length:
            raise ValueError(f"a footer of {end} bytes, not {length}")
        groups = []
        for group in _structs(footer.need(4, LIST)):
            found = [_column(chunk.need(3, STRUCT)) for chunk in _structs(group.need(1, LIST))]
            groups.append((group.need(3, I64), found))
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"the footer is none that a release writes: {error!r}") from error
    return groups


def _structs(found: tuple[int, list[Any]]) -> list[Any]:
    kind, values = found
    if values and kind != STRUCT:
        raise ValueError(f"a list of type {kind}")
    return values


def _column(fields: Any) -> _Column:
    kind, names = fields.need(3, LIST)
    if kind != BINARY:
        raise ValueError(f"a path of type {kind}")
    return _Column(
        name=".".join(bytes(name).decode() for name in names),
        physical_type=fields.need(1, I32),
        codec=fields.need(4, I32),
        num_values=fields.need(5, I64),
        num_bytes=fields.need(7, I64),
        data_page_offset=fields.need(9, I64),
        dictionary_page_offset=fields.get(11, I64),
    )


def _add_column(total: int, column: _Column, data: memoryview, *, most: int) -> int:
    """Return a total with the bytes that a column of a row group decodes to.

    Raises:
        ValueError: it is above `most`.
    """
    if column.num_values <= 0:
        # Arrow reads no page of it, and where they would lie is not always said.
        return total
    name = column.name
    longest = 0
    for page in _pages(_stored(column, data), name=name):
        total += page.raw_bytes + _VALUE_BYTES * page.num_values
        if page.kind != _DICTIONARY and page.encoding in _PLACES:
            total += longest * page.num_values
        if total > most:
            raise ValueError(f"column {name} decodes to more than {most} bytes, which a file of {len(data)} bytes cannot hold")
        if page.kind == _DICTIONARY:
            longest = max(longest, _longest(page, column))
    return total


def _stored(column: _Column, data: memoryview) -> memoryview:
    """Return the bytes that Arrow takes pages from."""
    start = column.data_page_offset
    if column.dictionary_page_offset is not None and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    stop = start + column.num_bytes
    if not 0 <= start <= stop <= len(data):
        raise ValueError(f"column {column.name} lies at {start} to {stop} of {len(data)} bytes")
    return data[start:stop]


def _pages(data: memoryview, *, name: str) -> Iterator[_Page]:
    at = 0
    while at < len(data):
        try:
            header, at = read_struct(data, at)
            kind, num_bytes = header.need(1, I32), header.need(3, I32)
            details = header.need(_DETAILS[kind], STRUCT)
            page = _Page(
                kind=kind,
                num_values=details.need(1, I32),
                encoding=details.need(4 if kind == _DATA_V2 else 2, I32),
                raw_bytes=header.need(2, I32),
                body=data[at : at + num_bytes],
            )
            at += num_bytes
            if min(page.num_values, page.raw_bytes, num_bytes) < 0 or page.encoding not in (_PLAIN, _RUNS, *_PLACES):
                raise ValueError(f"column {name}: {page.num_values} values of encoding {page.encoding} in {page.raw_bytes} bytes")
        except (IndexError, KeyError) as error:
            raise ValueError(f"column {name}: a page's header is none that a release writes: {error!r}") from error
        yield page
    if at != len(data):
        raise ValueError(f"column {name}: its last page runs past its end")


def _longest(page: _Page, column: _Column) -> int:
    """Return the bytes of the longest value of a dictionary; 0 of numbers.

    Raises:
        ValueError: it holds other values than its header says.
    """
    if column.physical_type != _BYTE_ARRAY:
        return page.raw_bytes if column.physical_type == _FIXED_BYTES else 0
    raw: Any = page.body
    if column.codec:
        if column.codec not in _CODECS:
            raise ValueError(f"column {column.name} is compressed in way {column.codec}")
        codec = pa.Codec(_CODECS[column.codec])
        raw = memoryview(codec.decompress(pa.py_buffer(page.body), decompressed_size=page.raw_bytes))
    equal = _LENGTH.unpack_from(raw)[0] if len(raw) >= _LENGTH.size else 0
    if 0 < page.num_values * (_LENGTH.size + equal) == len(raw):
        # Digests are all of one length, which is seen at once.
        lengths = np.frombuffer(raw, dtype=np.uint8).reshape(page.num_values, -1)[:, : _LENGTH.size]
        if (lengths == lengths[0]).all():
            return int(equal)
    at = longest = 0
    for _ in range(page.num_values):
        if at + _LENGTH.size > len(raw):
            raise ValueError(f"column {column.name}: a dictionary of fewer than {page.num_values} values")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size + length
        longest = max(longest, length)
    return longest
