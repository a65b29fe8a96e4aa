"""Structs in Thrift's compact protocol, in which Parquet writes its footer and the headers of its pages.

What a lenient reader takes in two ways is refused: a field twice, and one that is another's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_TRUE, _FALSE, _BYTE, _I16, I32, I64, _DOUBLE, BINARY, LIST, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 12
_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a struct: their types and values, by number."""

    found: dict[int, tuple[int, Any]]

    def get(self, number: int, kind: int) -> Any:
        """Return the value of a field; None where there is none.

        Raises:
            ValueError: the field is of another type, which readers pass over.
        """
        if number not in self.found:
            return None
        there, value = self.found[number]
        if there != kind:
            raise ValueError(f"field {number} is of type {there}, not {kind}")
        return value

    def need(self, number: int, kind: int) -> Any:
        """Return the value of a field.

        Raises:
            ValueError: it is not there, or of another type.
        """
        if number not in self.found:
            raise ValueError(f"field {number} is missing")
        return self.get(number, kind)


def read_struct(data: memoryview, at: int, *, depth: int = 0) -> tuple[Fields, int]:
    """Return the fields of a struct, and where it ends.

    Raises:
        ValueError: it is none, holds maps, or nests deeper than any of Parquet's.
        IndexError: it does not end.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("structs inside each other")
    fields: dict[int, tuple[int, Any]] = {}
    last = 0
    while (head := data[at]) != 0:
        at += 1
        kind = head & 15
        if not head >> 4:
            raise ValueError("fields that do not ascend")
        last += head >> 4
        value, at = (None, at) if kind in (_TRUE, _FALSE) else _read_value(data, at, kind=kind, depth=depth)
        fields[last] = (kind, value)
    return Fields(fields), at + 1


def _read_value(data: memoryview, at: int, *, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (_I16, I32, I64):
        return _read_number(data, at, kind=kind)
    if kind == BINARY:
        length, at = _read_varint(data, at)
        if at + length > len(data):
            raise IndexError(f"{length} bytes at {at} of {len(data)}")
        return data[at : at + length], at + length
    if kind == LIST:
        return _read_list(data, at, depth=depth)
    if kind == STRUCT:
        return read_struct(data, at, depth=depth + 1)
    if kind in (_TRUE, _FALSE, _BYTE):
        return None, at + 1
    if kind == _DOUBLE:
        return None, at + 8
    raise ValueError(f"a field of type {kind}")


def _read_list(data: memoryview, at: int, *, depth: int) -> tuple[tuple[int, list[Any]], int]:
    """Return the type of a list's values and the values."""
    if depth > _MAX_DEPTH:
        raise ValueError("lists inside each other")
    head = data[at]
    count, kind, at = head >> 4, head & 15, at + 1
    if count == 15:
        count, at = _read_varint(data, at)
    values = []
    # Every value takes a byte or more: a count that lies ends with the data.
    for _ in range(count):
        value, at = _read_value(data, at, kind=kind, depth=depth + 1)
        values.append(value)
    return (kind, values), at


def _read_number(data: memoryview, at: int, *, kind: int) -> tuple[int, int]:
    raw, at = _read_varint(data, at)
    value = (raw >> 1) ^ -(raw & 1)
    bits = {_I16: 16, I32: 32, I64: 64}[kind]
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ValueError(f"{value} in {bits} bits")
    return value, at


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")
