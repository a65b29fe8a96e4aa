"""What a Parquet file of a cache decodes to is known before any of it is decoded: somebody else may have written it.

A footer may lie, and a few kilobytes of run lengths and dictionary places stand for 10^9 values. Arrow allocates by the headers
of pages, so these are read first.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12
_MAX_DEPTH = 4
_LENGTH = struct.Struct("<I")


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
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if num_rows is not None and metadata.num_rows != num_rows:
        raise ValueError(f"{metadata.num_rows} rows, {num_rows} were announced")
    if sum(group.num_rows for group in groups) != metadata.num_rows or any(group.num_rows < 0 for group in groups):
        raise ValueError(f"{metadata.num_rows} rows, its row groups hold others")
    if metadata.num_rows * row_bytes > len(data):
        raise ValueError(f"{metadata.num_rows} rows in {len(data)} bytes, each of which takes {row_bytes} or more")
    if "parquet-mr" in (metadata.created_by or "").lower():
        # Arrow reads beyond the columns of its early versions.
        raise ValueError(f"written by {metadata.created_by}, which no release uses")
    most = _SPARE_BYTES + _BYTES_A_BYTE * len(data)
    total = 0
    for group in groups:
        # What is kept of a row, its places in lists and dictionaries, comes on top of each column's values.
        total = _VALUE_BYTES * group.num_rows if group_by_group else total + _VALUE_BYTES * group.num_rows
        for index in range(group.num_columns):
            column = group.column(index)
            if columns is None or column.path_in_schema.partition(".")[0] in columns:
                total = _add_column(total, column, memoryview(data), most=most)


def _add_column(total: int, column: Any, data: memoryview, *, most: int) -> int:
    """Return a total with the bytes that a column of a row group decodes to.

    Raises:
        ValueError: it is above `most`.
    """
    if column.num_values <= 0:
        # Arrow reads no page of it, and where they would lie is not always said.
        return total
    name = column.path_in_schema
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


def _stored(column: Any, data: memoryview) -> memoryview:
    """Return the bytes that Arrow takes pages from."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    stop = start + column.total_compressed_size
    if not 0 <= start <= stop <= len(data):
        raise ValueError(f"column {column.path_in_schema} lies at {start} to {stop} of {len(data)} bytes")
    return data[start:stop]


def _pages(data: memoryview, *, name: str) -> Iterator[_Page]:
    at = 0
    while at < len(data):
        try:
            header, at = _read_struct(data, at)
            details = header[_DETAILS[header[1]]]
            page = _Page(
                kind=header[1],
                num_values=details[1],
                encoding=details[4 if header[1] == _DATA_V2 else 2],
                raw_bytes=header[2],
                body=data[at : at + header[3]],
            )
            at += header[3]
            if min(page.num_values, page.raw_bytes, header[3]) < 0 or page.encoding not in (_PLAIN, _RUNS, *_PLACES):
                raise ValueError(f"column {name}: {page.num_values} values of encoding {page.encoding} in {page.raw_bytes} bytes")
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"column {name}: a page's header is none that a release writes: {error!r}") from error
        yield page
    if at != len(data):
        raise ValueError(f"column {name}: its last page runs past its end")


def _longest(page: _Page, column: Any) -> int:
    """Return the bytes of the longest value of a dictionary; 0 of numbers.

    Raises:
        ValueError: it holds other values than its header says.
    """
    if column.physical_type != "BYTE_ARRAY":
        return page.raw_bytes if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
    raw: Any = page.body
    if column.compression != "UNCOMPRESSED":
        codec = pa.Codec(column.compression.lower())
        raw = memoryview(codec.decompress(pa.py_buffer(page.body), decompressed_size=page.raw_bytes))
    at = longest = 0
    for _ in range(page.num_values):
        if at + _LENGTH.size > len(raw):
            raise ValueError(f"column {column.path_in_schema}: a dictionary of fewer than {page.num_values} values")
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size + length
        longest = max(longest, length)
    return longest


def _read_struct(data: memoryview, at: int, *, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct in Thrift's compact protocol, and where it ends; of numbers only the 32-bit ones.

    What a lenient reader takes in two ways is refused: a field twice, and one that is another's type.

    Raises:
        ValueError: it is none, or holds lists or maps, which headers of pages do not.
        IndexError: it does not end.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("structs inside each other")
    fields: dict[int, Any] = {}
    last = 0
    while (head := data[at]) != 0:
        at += 1
        kind = head & 15
        if not head >> 4:
            raise ValueError("fields that do not ascend")
        last += head >> 4
        value: Any = None
        if kind in (_I16, _I32, _I64):
            value, at = _read_number(data, at)
            if kind != _I32:
                value = None
            elif not -(2**31) <= value < 2**31:
                raise ValueError(f"{value} in 32 bits")
        elif kind == _BINARY:
            length, at = _read_varint(data, at)
            at += length
        elif kind == _STRUCT:
            value, at = _read_struct(data, at, depth=depth + 1)
        elif kind in (_BYTE, _DOUBLE):
            at += 1 if kind == _BYTE else 8
        elif kind not in (_TRUE, _FALSE):
            raise ValueError(f"a field of type {kind}")
        fields[last] = value
    return fields, at + 1


def _read_number(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")
