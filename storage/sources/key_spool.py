"""Find keys that occur twice, however many there are: 64-bit hashes on disk, sorted in ranges that fit in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import TracebackType

import numpy as np
import numpy.typing as npt

from storage.errors import DecantError

_CHUNK_HASHES = 1 << 22
_HASHES_AT_A_TIME = 1024

Place = tuple[int, int]
"""A unit's number and a position inside the unit."""


class KeySpool:
    """Key hashes of many units in a temporary file, 8 bytes a key; closing it removes the file."""

    def __init__(self) -> None:
        """Make the file.

        Raises:
            DecantError: the folder for temporary files takes none.
        """
        with _room_needed():
            self._file = tempfile.TemporaryFile(prefix="decant-keys-")  # noqa: SIM115 (closed by __exit__)
        self._units: list[int] = []
        self._starts: list[int] = [0]

    def __enter__(self) -> KeySpool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # Closing writes what is left; nobody needs it now, and a full disk was told of already.
        with suppress(OSError):
            self._file.close()

    def append(self, unit: int, *, hashes: npt.NDArray[np.uint64]) -> None:
        """Add the key hashes (uint64 [num_samples]) of a unit, once for each unit, in any order of units.

        Raises:
            DecantError: the folder for temporary files is full.
        """
        with _room_needed():
            self._file.seek(0, 2)
            self._file.write(hashes.tobytes())
        self._units.append(unit)
        self._starts.append(self._starts[-1] + len(hashes))

    def of_units(self) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
        """Yield the units in the order they were added, with their hashes."""
        spool = self._mapped()
        for unit, start, stop in zip(self._units, self._starts[:-1], self._starts[1:], strict=True):
            yield unit, spool[start:stop]

    def _mapped(self) -> npt.NDArray[np.uint64]:
        with _room_needed():
            self._file.flush()
        if self._starts[-1] == 0:
            return np.empty(0, dtype=np.uint64)
        return np.memmap(self._file, dtype=np.uint64, mode="r", shape=(self._starts[-1],))

    def first_duplicate(self, *, key_at: Callable[[Place], str], hashes_per_pass: int) -> tuple[Place, Place, str] | None:
        """Return two places that hold the same key, and the key, or None if all keys differ.

        Equal hashes are only a hint: `key_at` fetches the keys themselves. Memory is about 16 bytes times `hashes_per_pass`.
        """
        spool = self._mapped()
        num_passes = max(1, -(-len(spool) // hashes_per_pass))
        edges = [number * 2**64 // num_passes for number in range(num_passes + 1)]
        for low, high in pairwise(edges):
            repeated = _repeated(spool, low=low, last=high - 1)
            for start in range(0, len(repeated), _HASHES_AT_A_TIME):
                found = self._confirm(spool, hashes=repeated[start : start + _HASHES_AT_A_TIME], key_at=key_at)
                if found is not None:
                    return found
        return None

    def _confirm(
        self, spool: npt.NDArray[np.uint64], *, hashes: npt.NDArray[np.uint64], key_at: Callable[[Place], str]
    ) -> tuple[Place, Place, str] | None:
        places: dict[int, list[Place]] = {}
        for start in range(0, len(spool), _CHUNK_HASHES):
            chunk = spool[start : start + _CHUNK_HASHES]
            for row in np.flatnonzero(np.isin(chunk, hashes)).tolist():
                places.setdefault(int(chunk[row]), []).append(self._place(start + row))
        # The pair that is complete first in the order of units is the one a person finds first.
        for group in sorted((sorted(group) for group in places.values()), key=lambda group: group[1]):
            seen: dict[str, Place] = {}
            for place in group:
                key = key_at(place)
                if key in seen:
                    return seen[key], place, key
                seen[key] = place
        return None

    def _place(self, row: int) -> Place:
        index = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._units[index], row - self._starts[index]


@contextmanager
def _room_needed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DecantError(
            f"the folder for temporary files cannot be written to ({type(error).__name__}: {error.strerror or error}), and the "
            "source's keys are compared there, 8 bytes a sample; make room there, or name another folder in TMPDIR"
        ) from error


def _repeated(spool: npt.NDArray[np.uint64], *, low: int, last: int) -> npt.NDArray[np.uint64]:
    """Return, sorted, the hashes from `low` to `last` that occur more than once."""
    selected: list[npt.NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
    for start in range(0, len(spool), _CHUNK_HASHES):
        chunk = spool[start : start + _CHUNK_HASHES]
        selected.append(chunk[(chunk >= np.uint64(low)) & (chunk <= np.uint64(last))])
    hashes = np.concatenate(selected)
    hashes.sort()
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
