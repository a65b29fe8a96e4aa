"""Documents that are whole files of plain text."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.config.source import TextConfig
from storage.errors import SampleError
from storage.sources.base import NO_LABEL, Sample, SourceUnit
from storage.sources.compression import content, is_compressed, without_suffix
from storage.sources.documents import file_endings, refuse_equal_names
from storage.sources.files import expand_files, open_store, reaching, unit_token
from storage.sources.image_folder import READ_AHEAD, READ_THREADS, file_problem
from storage.sources.unit_cuts import unit_ranges


class DocumentFilesSource:
    """Plain text, one document a file, at most `unit_size` of them a unit.

    The key is the file's name below the source's path, without the ending of its compression.
    """

    def __init__(self, config: TextConfig) -> None:
        self._config = config

    @property
    def classes(self) -> tuple[str, ...] | None:
        """None: plain text has no labels."""
        return None

    def units(self) -> list[SourceUnit]:
        """List the files in the order of the config's path, globs and folders sorted; names count documents over all paths.

        Raises:
            SourceError: nothing is found, or a name cannot be a key.
            DuplicateKeyError: two files would have the same key.
        """
        files = expand_files(self._config.path, suffixes=file_endings("text"))
        refuse_equal_names(files)
        units: list[SourceUnit] = []
        start = 0
        for root, of_root in groupby(files, key=attrgetter("root")):
            found = list(of_root)
            names = [file.name for file in found]
            for place in unit_ranges(names, unit_size=self._config.unit_size, ends=self._config.unit_ends):
                of_unit = names[place.start : place.stop]
                tokens = [file.token for file in found[place.start : place.stop]]
                units.append(
                    SourceUnit(
                        name=f"{start:05d}-{start + len(of_unit):05d}",
                        locator={"root": root, "files": of_unit},
                        stat_token=unit_token([of_unit, self._config.max_document_bytes], tokens=tokens),
                    )
                )
                start += len(of_unit)
        return units

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Yield a unit's documents in order; a few are fetched ahead by threads.

        Raises:
            SourceError: the folder has vanished or the store cannot be reached.
        """
        names: list[str] = unit.locator["files"]
        reader = self.open(unit)
        pending: deque[Future[tuple[bytes | None, str | None]]] = deque()
        with ThreadPoolExecutor(READ_THREADS) as pool:
            try:
                for position, key in enumerate(reader.keys):
                    for ahead in range(position + len(pending), min(position + READ_AHEAD, len(names))):
                        pending.append(pool.submit(reader.fetch, ahead))
                    data, error = pending.popleft().result()
                    yield Sample(position=position, key=key, label=NO_LABEL, data=data, error=error)
            finally:
                for future in pending:
                    future.cancel()

    def open(self, unit: SourceUnit) -> DocumentFilesReader:
        """Open a unit for random access; each file is fetched on its own."""
        return DocumentFilesReader(unit.locator, max_document_bytes=self._config.max_document_bytes)


class DocumentFilesReader:
    """Random access to one unit of files. Threads may share it."""

    def __init__(self, locator: dict[str, Any], *, max_document_bytes: int) -> None:
        self._fs, self._root = open_store(locator["root"])
        self._names: list[str] = locator["files"]
        self._max_bytes = max_document_bytes
        self._keys = [without_suffix(name) for name in self._names]

    @property
    def keys(self) -> Sequence[str]:
        """Keys in position order."""
        return self._keys

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """NO_LABEL for each document."""
        return np.full(len(self._names), NO_LABEL, dtype=np.int64)

    def read(self, position: int) -> bytes:
        """Return a document's bytes.

        Raises:
            SampleError: the file has vanished, may not be read, is damaged or too long.
            SourceError: the folder has vanished or the store cannot be reached.
        """
        if not 0 <= position < len(self._names):
            raise IndexError(f"position {position} is not among the {len(self._names)} samples of the unit")
        data, error = self.fetch(position)
        if data is None:
            raise SampleError(f"{self._keys[position]}: {error}")
        return data

    def fetch(self, position: int) -> tuple[bytes | None, str | None]:
        """Return a document's bytes, or why there are none.

        Raises:
            SourceError: the folder has vanished or the store cannot be reached.
        """
        path = f"{self._root.rstrip('/')}/{self._names[position]}"
        with reaching(self._fs.unstrip_protocol(path), action="read"):
            try:
                # No more than the first byte too many; what is compressed may be as long as it likes to be.
                end = None if is_compressed(path) else self._max_bytes + 1
                stored: bytes = self._fs.cat_file(path, start=0, end=end)
            except OSError as error:
                return None, file_problem(error, fs=self._fs, root=self._root)
        try:
            return content(stored, name=self._names[position], max_bytes=self._max_bytes), None
        except SampleError as error:
            return None, str(error)

    def close(self) -> None:
        """Release files; none stay open between reads."""
