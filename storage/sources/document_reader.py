"""Random access to documents that are records of one file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from storage.errors import SampleError, SourceError
from storage.sources.document_records import RecordParser
from storage.sources.files import open_store, reaching
from storage.sources.records import Record, trimmed


class DocumentReader:
    """Random access to the documents of a unit by their places; holds keys, labels and places. Threads may share it.

    Args:
        url: the file.
        parser: reads a record.
    """

    def __init__(self, *, url: str, parser: RecordParser) -> None:
        self.parser = parser
        self._url = url
        self._fs, self._path = open_store(url)
        self._spool: BinaryIO | None = None
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._places: list[tuple[int, int]] = []
        self._errors: dict[int, str] = {}

    def spooled(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield bytes as they come, and keep them in a temporary file from which documents are then read."""
        # It has no name, so it goes away when it is closed, or its process dies.
        self._spool = tempfile.TemporaryFile(prefix="decant-documents-")  # noqa: SIM115 (closed by `close`)
        for chunk in chunks:
            self._spool.write(chunk)
            yield chunk
        self._spool.flush()

    def add(self, record: Record, *, key: str, label: int, error: str | None) -> None:
        """Take in the next document."""
        if error is not None:
            self._errors[len(self._keys)] = error
        self._keys.append(key)
        self._labels.append(label)
        self._places.append((record.start, record.size_bytes))

    @property
    def keys(self) -> Sequence[str]:
        """Keys in position order."""
        return self._keys

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Hard labels in position order, NO_LABEL where there is none."""
        return np.asarray(self._labels, dtype=np.int64)

    def read(self, position: int) -> bytes:
        """Return a document's bytes.

        Raises:
            SampleError: it has no text, no valid label or no valid key.
            SourceError: the file has vanished or changed.
        """
        if not 0 <= position < len(self._keys):
            raise IndexError(f"position {position} is not among the {len(self._keys)} samples of the unit")
        if position in self._errors:
            raise SampleError(f"{self._keys[position]}: {self._errors[position]}")
        start, size_bytes = self._places[position]
        document = self.parser.parse(trimmed(self._record(start, size_bytes), start=start))
        if document.data is None:
            raise SourceError(f"{self._url} has changed since it was opened; leave sources alone while they are read")
        return document.data

    def _record(self, start: int, size_bytes: int) -> bytes:
        if size_bytes == 0:
            return b""
        if self._spool is not None:
            return os.pread(self._spool.fileno(), size_bytes, start)
        with reaching(self._url, action="read"):
            data: bytes = self._fs.cat_file(self._path, start=start, end=start + size_bytes)
        if len(data) != size_bytes:
            raise SourceError(f"{self._url} has become shorter since it was opened; leave sources alone while they are read")
        return data

    def close(self) -> None:
        """Remove the temporary file, if there is one; no other file stays open between reads."""
        if self._spool is not None:
            self._spool.close()
