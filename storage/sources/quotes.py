"""Which double quotes of delimited text open and close fields, found chunk by chunk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BOM = b"\xef\xbb\xbf"
_QUOTE, _NEWLINE, _OTHER = ord('"'), ord("\n"), ord("x")


class Quotes:
    """Goes through consecutive bytes of delimited text and remembers what the next ones need.

    A quote opens only where a field starts; elsewhere in a field without quotes it is a character like others. Two in a row
    inside quotes close and open again. Source: RFC 4180, section 2, rules 5 to 7.

    Attributes:
        is_open: whether the bytes so far end inside quotes.
    """

    def __init__(self, delimiter: bytes, *, at_file_start: bool) -> None:
        """Begin where a record begins.

        Args:
            delimiter: one byte.
            at_file_start: a byte order mark may come first.
        """
        self.is_open = False
        self._delimiter = ord(delimiter)
        self._mark = BOM if at_file_start else b""
        # What counts as the byte before the next one; a quote only if it closed.
        self._before = _NEWLINE

    def of(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the places of the next bytes' quotes that open or close.

        Args:
            data: uint8 [n].
        """
        first = self._pass_mark(data)
        if first == len(data):
            return np.empty(0, dtype=np.int64)
        quotes = np.flatnonzero(data == _QUOTE)
        opening = quotes[int(self.is_open) :: 2]
        before = self._bytes_before(opening, data=data, first=first)
        if not ((before == self._delimiter) | (before == _NEWLINE) | (before == _QUOTE)).all():
            quotes = self._one_by_one(quotes, before=self._bytes_before(quotes, data=data, first=first), first=first)
        self.is_open = bool((len(quotes) + self.is_open) % 2)
        last = int(data[-1])
        is_literal = last == _QUOTE and not (len(quotes) and quotes[-1] == len(data) - 1)
        self._before = _OTHER if is_literal else last
        return quotes

    def _pass_mark(self, data: npt.NDArray[np.uint8]) -> int:
        """Return how many of the next bytes are of the byte order mark."""
        size = min(len(self._mark), len(data))
        if not size:
            return 0
        if data[:size].tobytes() == self._mark[:size]:
            self._mark = self._mark[size:]
            return size
        # Its first bytes alone are no mark.
        self._before = _NEWLINE if self._mark == BOM else _OTHER
        self._mark = b""
        return 0

    def _bytes_before(self, places: npt.NDArray[np.int64], *, data: npt.NDArray[np.uint8], first: int) -> npt.NDArray[np.uint8]:
        before = data[places - 1]
        if len(places) and places[0] == first:
            before[0] = self._before
        return before

    def _one_by_one(self, quotes: npt.NDArray[np.int64], *, before: npt.NDArray[np.uint8], first: int) -> npt.NDArray[np.int64]:
        """Return those quotes that open or close, where some do neither.

        Args:
            before: the byte before each.
            first: the place behind a byte order mark.
        """
        is_open, found = self.is_open, []
        closed = first - 1 if self._before == _QUOTE else first - 2
        for quote, byte in zip(quotes.tolist(), before.tolist(), strict=True):
            if is_open:
                closed = quote
            elif byte not in (self._delimiter, _NEWLINE) and closed != quote - 1:
                continue
            is_open = not is_open
            found.append(quote)
        return np.array(found, dtype=np.int64)
