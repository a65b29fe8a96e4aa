"""Cut bytes into records: lines, or CSV records whose quoted fields may hold line ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.errors import SourceError
from storage.sources.quotes import BOM, Quotes

_IS_SPACE = np.zeros(256, dtype=np.bool_)
_IS_SPACE[list(b" \t\n\r\v\f")] = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordStyle:
    """How records end.

    Attributes:
        quoted_by: delimiter of fields that may stand in double quotes, between which a line end is part of its record; None:
            quotes are characters like others.
        skip_blank: lines of nothing but ASCII white space are no records.
    """

    quoted_by: bytes | None = None
    skip_blank: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One record.

    Attributes:
        line: number of its first line in the file, from 1.
        start: its first byte in the file, as decompressed.
        size_bytes: its size without the line end.
        data: the record without its line end, and without a byte order mark; None where it is longer than the limit.
    """

    line: int
    start: int
    size_bytes: int
    data: bytes | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordRun:
    """A contiguous run of records of a file.

    Attributes:
        start: first byte.
        end: byte behind the last one.
        line: number of the first line, from 1.
        first_record: how many records come before.
        num_records: records in it.
    """

    start: int
    end: int
    line: int
    first_record: int
    num_records: int


def trimmed(data: bytes, *, start: int) -> bytes:
    """Return a record without the carriage return before its line end and, at the start of a file, the byte order mark."""
    data = data.removeprefix(BOM) if start == 0 else data
    return data[:-1] if data.endswith(b"\r") else data


class _Ends:
    """Finds record ends chunk by chunk; holds only how quotes stand and whether the line so far is blank."""

    def __init__(self, style: RecordStyle, *, start: int) -> None:
        self._style = style
        self._quotes = None if style.quoted_by is None else Quotes(style.quoted_by, at_file_start=start == 0)
        self._is_blank = True

    @property
    def in_quotes(self) -> bool:
        """Whether a quote is open."""
        return self._quotes is not None and self._quotes.is_open

    def of(self, chunk: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return the positions of all line ends, and for each whether a record ends there, and whether that record counts."""
        data = np.frombuffer(chunk, dtype=np.uint8)
        lines = np.flatnonzero(data == ord("\n")).astype(np.int64)
        is_end = np.ones(len(lines), dtype=np.bool_)
        if self._quotes is not None:
            was_open = self._quotes.is_open
            is_end = (np.searchsorted(self._quotes.of(data), lines) + was_open) % 2 == 0
        counts = is_end
        if self._style.skip_blank:
            counts = is_end & ~self._blank(chunk, data=data, lines=lines)
        return lines, is_end, counts

    def _blank(self, chunk: bytes, *, data: npt.NDArray[np.uint8], lines: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return bool [lines], whether each line holds nothing but white space; remember the same of what follows them."""
        starts = np.concatenate([np.zeros(1, dtype=np.int64), lines + 1])
        # Only lines that begin with white space, or are empty, are looked at one by one.
        blank: npt.NDArray[np.bool_] = _IS_SPACE[data[starts[:-1]]]
        for number in np.flatnonzero(blank).tolist():
            blank[number] = not chunk[starts[number] : lines[number]].strip()
        rest_is_blank = not chunk[starts[-1] :].strip()
        if len(lines):
            blank[0] &= self._is_blank
        self._is_blank = rest_is_blank and (bool(len(lines)) or self._is_blank)
        return blank

    @property
    def rest_counts(self) -> bool:
        """Whether what stands behind the last line end is a record, if it is anything."""
        return not (self._style.skip_blank and self._is_blank)


def iter_records(
    chunks: Iterable[bytes], *, style: RecordStyle, max_record_bytes: int, url: str, start: int = 0, line: int = 1
) -> Iterator[Record]:
    """Yield the records of consecutive bytes, holding one chunk and one record, or less of one that is too long.

    Args:
        chunks: the bytes, in pieces of any size.
        style: how records end.
        max_record_bytes: longer records come without their data.
        url: for messages.
        start: place of the first byte in its file.
        line: number of the first line.

    Raises:
        SourceError: the bytes end inside quotes.
    """
    ends = _Ends(style, start=start)
    held: list[bytes] = []
    size, position, first_line = 0, start, line

    def record(counted: int, last: bytes) -> Record:
        data = None
        if counted <= max_record_bytes:
            data = trimmed(b"".join([*held, last]), start=position)
        return Record(line=first_line, start=position, size_bytes=counted, data=data)

    for chunk in chunks:
        lines, is_end, counts = ends.of(chunk)
        before = 0
        for number in np.flatnonzero(is_end).tolist():
            end = int(lines[number])
            size += end - before
            if counts[number]:
                yield record(size, chunk[before:end])
            position += size + 1
            first_line = line + number + 1
            before, size = end + 1, 0
            held.clear()
        line += len(lines)
        size += len(chunk) - before
        if size <= max_record_bytes:
            held.append(chunk[before:])
        else:
            held.clear()
    if ends.in_quotes:
        raise SourceError(
            f"{url}: a quote that opens in the record on line {first_line} never closes, so all that follows would be one "
            "record; correct the line, or use source.quoting: none"
        )
    if size and ends.rest_counts:
        yield record(size, b"")


def find_runs(
    chunks: Iterable[bytes], *, style: RecordStyle, run_records: int, url: str, start: int = 0, line: int = 1
) -> list[RecordRun]:
    """Return where runs of so many records begin and end, the last with what is left; reads everything, splits nothing.

    Raises:
        SourceError: the bytes end inside quotes.
    """
    ends = _Ends(style, start=start)
    runs: list[RecordRun] = []
    offset, num_records, size = start, 0, 0
    run_start, run_line, run_records_before = start, line, 0

    def close(end: int, next_line: int, num: int) -> None:
        nonlocal run_start, run_line, run_records_before
        runs.append(
            RecordRun(
                start=run_start,
                end=end,
                line=run_line,
                first_record=run_records_before,
                num_records=num - run_records_before,
            )
        )
        run_start, run_line, run_records_before = end, next_line, num

    for chunk in chunks:
        lines, _, counts = ends.of(chunk)
        counted = np.flatnonzero(counts)
        last = (num_records // run_records + 1) * run_records - num_records - 1
        for index in range(last, len(counted), run_records):
            number = int(counted[index])
            close(offset + int(lines[number]) + 1, line + number + 1, num_records + index + 1)
        num_records += len(counted)
        line += len(lines)
        size = len(chunk) - (int(lines[-1]) + 1) if len(lines) else size + len(chunk)
        offset += len(chunk)
    if ends.in_quotes:
        raise SourceError(
            f"{url}: a quote that opens behind line {run_line} never closes, so all that follows would be one record; "
            "correct it, or use source.quoting: none"
        )
    num_records += bool(size and ends.rest_counts)
    if num_records > run_records_before:
        close(offset, line, num_records)
    return runs
