"""What label sets refer to, as hashes: eight bytes a part, so that a cache of millions of them fits into memory.

A hash that two names share keeps a file too many, never one too few.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from storage.cache import Cache
from storage.errors import CorruptError, FormatError
from storage.filesystem import StoredFile
from storage.hashing import digest
from storage.label_set import read_manifest
from storage.parquet_bounds import check_size
from storage.parts_table import ROW_BYTES

Hashes = npt.NDArray[np.uint64]
_BATCH_PARTS = 1 << 16
_COLUMNS = ["request", "tar_name"]
_TABLE = re.compile(r"parts-([0-9a-f]{16})\.parquet")


def hashes_of(names: Iterable[str]) -> Hashes:
    """Return xxh3-64 of each name."""
    return np.fromiter((xxhash.xxh3_64_intdigest(name.encode()) for name in names), dtype=np.uint64)


def stem_of(tar_name: str) -> str:
    """Return the part's name from that of its tar, `<part>.<digest>.tar`."""
    return tar_name.rsplit(".", 2)[0]


@dataclass(frozen=True, kw_only=True)
class References:
    """What some label sets name.

    Attributes:
        tars: sorted hashes of `<request>/<tar name>`.
        parts: sorted hashes of `<request>/<part>`.
        requests: fingerprints of the requests that were asked for, or whose parts are used.
    """

    tars: Hashes = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    parts: Hashes = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    requests: frozenset[str] = frozenset()

    @classmethod
    def merged(cls, several: Iterable[References]) -> Self:
        """Return the references of all, read one by one."""
        tars, parts = _Union(), _Union()
        requests: set[str] = set()
        for one in several:
            tars.add(one.tars)
            parts.add(one.parts)
            requests |= one.requests
        return cls(tars=tars.hashes(), parts=parts.hashes(), requests=frozenset(requests))

    def hold_tars(self, request: str, tar_names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return bool [names]: which tars of a request are named."""
        return within(hashes_of(f"{request}/{name}" for name in tar_names), self.tars)

    def hold_parts(self, request: str, parts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return bool [parts]: which parts of a request are used, whatever the name of their tar."""
        return within(hashes_of(f"{request}/{part}" for part in parts), self.parts)


class _Union:
    """A growing set of hashes; merges when as many are new as were there, so that many small sets cost little."""

    def __init__(self) -> None:
        self._merged: Hashes = np.empty(0, dtype=np.uint64)
        self._new: list[Hashes] = []
        self._num_new = 0

    def add(self, hashes: Hashes) -> None:
        self._new.append(hashes)
        self._num_new += len(hashes)
        if self._num_new > max(len(self._merged), 1 << 20):
            self.hashes()

    def hashes(self) -> Hashes:
        self._merged = np.unique(np.concatenate([self._merged, *self._new]))
        self._new, self._num_new = [], 0
        return self._merged


def within(hashes: Hashes, among: Hashes) -> npt.NDArray[np.bool_]:
    """Return bool [hashes]: which are among some others, which are sorted."""
    if not len(among):
        return np.zeros(len(hashes), dtype=np.bool_)
    places = np.minimum(np.searchsorted(among, hashes), len(among) - 1)
    found: npt.NDArray[np.bool_] = among[places] == hashes
    return found


def references_of(cache: Cache, *, label_set: str, files: Iterable[StoredFile]) -> References:
    """Return what a label set names; without a manifest, what its tables of parts name: they may be all that is left of it.

    Args:
        files: those in its folder.

    Raises:
        CorruptError: its manifest or a table cannot be read, so that nobody knows what it names.
        MismatchError: the manifest is that of another label set.
    """
    folder = f"label_sets/{label_set}"
    names = [file.name.removeprefix(f"{folder}/") for file in files]
    if "manifest.json" in names:
        manifest = read_manifest(cache, label_set=label_set)
        table = _table_references(cache, f"{folder}/{manifest.parts_file}", sha256=manifest.parts_sha256)
        return References.merged([table, References(requests=frozenset({manifest.request.fingerprint()}))])
    tables = [(name, match[1]) for name in names if (match := _TABLE.fullmatch(name)) is not None]
    return References.merged(_table_references(cache, f"{folder}/{name}", sha256=sha256) for name, sha256 in tables)


def _table_references(cache: Cache, name: str, *, sha256: str) -> References:
    origin = f"{cache.store.url}/{name}"
    try:
        data = cache.store.read(name)
    except FileNotFoundError as error:
        raise CorruptError(f"{origin} is missing") from error
    if not digest(data).startswith(sha256):
        raise CorruptError(f"{origin} is damaged (its sha256 is not the one that was committed)")
    tars, parts = _Union(), _Union()
    requests: set[str] = set()
    try:
        with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as parquet:
            check_size(parquet, data, row_bytes=ROW_BYTES, columns=_COLUMNS)
            for batch in parquet.iter_batches(batch_size=_BATCH_PARTS, columns=_COLUMNS, use_threads=False):
                of, tar_names = batch.column("request").to_pylist(), batch.column("tar_name").to_pylist()
                requests.update(of)
                tars.add(hashes_of(f"{request}/{tar}" for request, tar in zip(of, tar_names, strict=True)))
                parts.add(hashes_of(f"{request}/{stem_of(tar)}" for request, tar in zip(of, tar_names, strict=True)))
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError) as error:
        raise FormatError(f"{origin}: not a table of parts that this release can read: {error}") from error
    return References(tars=tars.hashes(), parts=parts.hashes(), requests=frozenset(requests))
