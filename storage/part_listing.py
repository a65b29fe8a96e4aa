"""What a listing shows of a request's parts: hashes of names, so that a million of them take seconds and some megabytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from storage.errors import CacheError
from storage.filesystem import Store, filesystem_of

Hashes = npt.NDArray[np.uint64]
UNIT_DIGITS = 32
"""Digits of a unit's digest that begin the names of its parts."""
_NAMES_AT_A_TIME = 65_536
_RECORD = ".json"
_FACTORS = np.random.Philox(key=5).random_raw(512) | np.uint64(1)
"""Odd, so that names that differ in one word never share a hash. 4,096 bytes: no name of a file is longer."""
_PART_NAME = rf"^[0-9a-f]{{{UNIT_DIGITS}}}\.v(?P<first>[0-9]{{1,9}})-(?P<last>[0-9]{{1,9}})$"
_TAR_ENDING = len(".0123456789abcdef.tar")


def file_names(store: Store, folder: str) -> Iterator[list[str]]:
    """Yield the names of the files directly in a folder, some thousands at a time, in no order. A hint, as `Store.names` is.

    Raises:
        CacheError: the store cannot be listed.
    """
    if not isinstance(filesystem_of(store.url)[0], LocalFileSystem):
        start = len(folder) + 1
        names = (name[start:] for name in store.names(folder) if "/" not in name[start:])
        while batch := list(islice(names, _NAMES_AT_A_TIME)):
            yield batch
        return
    try:
        # No look at each file: that would take most of the time.
        with os.scandir(store.path(folder)) as entries:
            while batch := [entry.name for entry in islice(entries, _NAMES_AT_A_TIME)]:
                yield batch
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise CacheError(f"cannot list {store.url}/{folder}: {error.strerror}; check that the store can be reached") from error


@dataclass(frozen=True, kw_only=True)
class CoveredViews:
    """Views of units that listed parts cover, in arrays. Units of one content share their parts.

    Attributes:
        first_units: int64 [contents], the first unit of each content.
        content_of: int32 [units], the content of each unit.
        contents, firsts, lasts: int32 [parts], sorted: the content that a part is of, and its views [first, last).
        names: hashes of the parts' names.
    """

    first_units: npt.NDArray[np.int64]
    content_of: npt.NDArray[np.int32]
    contents: npt.NDArray[np.int32]
    firsts: npt.NDArray[np.int32]
    lasts: npt.NDArray[np.int32]
    names: Hashes

    def take(self, chosen: npt.NDArray[np.bool_]) -> CoveredViews:
        """Return what some of the parts cover."""
        columns = {name: getattr(self, name)[chosen] for name in ("contents", "firsts", "lasts", "names")}
        return replace(self, **columns)


@dataclass(frozen=True, kw_only=True)
class PartListing:
    """Files of a request, by hashes of their names.

    Attributes:
        records: sorted hashes of the names of parts that have a record.
        tars: sorted hashes of the names of tars.
        doubled: sorted hashes of the names of parts of which there are several tars.
    """

    store: Store
    folder: str
    records: Hashes
    tars: Hashes
    doubled: Hashes

    @classmethod
    def of(cls, store: Store, folder: str) -> Self:
        """List the folder of a request."""
        records, tars, parts_of_tars = ([np.empty(0, dtype=np.uint64)] for _ in range(3))
        for names in _listed(store, folder):
            records.append(name_hashes(_records(names)))
            tar_names = names.filter(pc.ends_with(names, pattern=".tar"))
            tars.append(name_hashes(tar_names))
            parts_of_tars.append(name_hashes(part_names(tar_names)))
        parts = np.sort(np.concatenate(parts_of_tars))
        return cls(
            store=store,
            folder=folder,
            records=np.sort(np.concatenate(records)),
            tars=np.sort(np.concatenate(tars)),
            doubled=np.unique(parts[1:][parts[1:] == parts[:-1]]),
        )

    def shows(self, tar_names: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        """Return bool for each name of a part's tar: it is there, its part has a record, and no other tar is of that part.

        Where there are two tars, only the record says which of them counts.
        """
        parts = name_hashes(part_names(tar_names))
        shown: npt.NDArray[np.bool_] = within(name_hashes(tar_names), self.tars) & within(parts, self.records)
        return shown & ~within(parts, self.doubled)

    def other_records(self, tar_names: pa.Array | pa.ChunkedArray) -> list[str]:
        """Return the names of parts that have a record and are not those of some tars, all of which are shown."""
        if len(self.records) <= len(tar_names):
            return []
        known = np.sort(name_hashes(part_names(tar_names)))
        others: list[str] = []
        for names in _listed(self.store, self.folder):
            found = _records(names)
            others += found.filter(pa.array(~within(name_hashes(found), known))).to_pylist()
        return others

    def covered(self, unit_digests: Sequence[str]) -> CoveredViews:
        """Return the views that parts with a record cover, by the contents of units."""
        hashes = [np.empty(0, dtype=np.uint64)]
        for start in range(0, len(unit_digests), _NAMES_AT_A_TIME):
            digits = [unit_digest[:UNIT_DIGITS] for unit_digest in unit_digests[start : start + _NAMES_AT_A_TIME]]
            hashes.append(name_hashes(pa.array(digits, type=pa.string())))
        known, first_units, content_of = np.unique(np.concatenate(hashes), return_index=True, return_inverse=True)
        found: list[tuple[npt.NDArray[Any], ...]] = []
        for names in _listed(self.store, self.folder):
            parts = _records(names)
            parts = parts.filter(pc.match_substring_regex(parts, pattern=_PART_NAME))
            of_units = name_hashes(pc.utf8_slice_codeunits(parts, start=0, stop=UNIT_DIGITS))
            asked = within(of_units, known)
            parts = parts.filter(pa.array(asked))
            views = pc.extract_regex(parts, pattern=_PART_NAME)
            first, last = (views.field(name).cast(pa.int32()).to_numpy() for name in ("first", "last"))
            found.append((np.searchsorted(known, of_units[asked]).astype(np.int32), first, last, name_hashes(parts)))
        nothing = np.empty(0, dtype=np.int32)
        contents, firsts, lasts, names = (
            np.concatenate(column) for column in zip((nothing, nothing, nothing, self.records[:0]), *found, strict=True)
        )
        order = np.lexsort((lasts, firsts, contents))
        order = order[lasts[order] > firsts[order]]
        return CoveredViews(
            first_units=first_units,
            content_of=content_of.astype(np.int32),
            contents=contents[order],
            firsts=firsts[order],
            lasts=lasts[order],
            names=names[order],
        )

    def ranges(self, unit_digests: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        """Return, for each unit digest, the view ranges [first, last) of its parts that have a record, in order."""
        covered = self.covered(unit_digests)
        found: dict[str, list[tuple[int, int]]] = {}
        rows = zip(covered.contents.tolist(), covered.firsts.tolist(), covered.lasts.tolist(), strict=True)
        for content, first, last in rows:
            found.setdefault(unit_digests[covered.first_units[content]], []).append((first, last))
        return found


def _listed(store: Store, folder: str) -> Iterator[pa.Array]:
    for batch in file_names(store, folder):
        yield pa.array(batch, type=pa.string())


def _records(names: pa.Array) -> pa.Array:
    found = names.filter(pc.and_not(pc.ends_with(names, pattern=_RECORD), pc.equal(names, "spec.json")))
    return pc.utf8_slice_codeunits(found, start=0, stop=-len(_RECORD))


def part_names(tar_names: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the name of each tar's part."""
    return pc.utf8_slice_codeunits(tar_names, start=0, stop=-_TAR_ENDING)


def within(hashes: Hashes, among: Hashes) -> npt.NDArray[np.bool_]:
    """Return bool [hashes]: which are among some others, which are sorted."""
    if not len(among):
        return np.zeros(len(hashes), dtype=np.bool_)
    places = np.minimum(np.searchsorted(among, hashes), len(among) - 1)
    found: npt.NDArray[np.bool_] = among[places] == hashes
    return found


def name_hashes(names: pa.Array | pa.ChunkedArray) -> Hashes:
    """Return 64 bits of each name: the sum of its words of 8 bytes, each mixed with a constant of its place.

    Where two of a million names share a hash, which happens once in tens of millions of caches, one file counts for the other.
    """
    chunks = names.chunks if isinstance(names, pa.ChunkedArray) else [names]
    hashes = [np.empty(0, dtype=np.uint64)]
    for chunk in chunks:
        hashes += [_hash_some(chunk.slice(start, _NAMES_AT_A_TIME)) for start in range(0, len(chunk), _NAMES_AT_A_TIME)]
    return np.concatenate(hashes)


def _hash_some(names: pa.Array) -> Hashes:
    lengths = pc.binary_length(names).to_numpy(zero_copy_only=False)
    hashes = np.empty(len(names), dtype=np.uint64)
    for length in np.unique(lengths).tolist():
        of_length = lengths == length
        same = names if of_length.all() else names.filter(pa.array(of_length))
        # Names of one length lie one behind the other, as rows of a table of bytes.
        _, offsets, text = same.buffers()
        first = int(np.frombuffer(offsets, dtype=np.int32, count=1, offset=4 * same.offset)[0])
        rows = np.frombuffer(text, dtype=np.uint8, count=len(same) * length, offset=first).reshape(len(same), length)
        words = np.zeros((len(same), -(-length // 8) * 8), dtype=np.uint8)
        words[:, :length] = rows
        factors = _FACTORS[: words.shape[1] // 8]
        mixed = words.view("<u8") * factors
        mixed ^= mixed >> np.uint64(32)
        mixed *= factors
        hashes[of_length] = mixed.sum(axis=1, dtype=np.uint64) + np.uint64(length)
    return hashes
