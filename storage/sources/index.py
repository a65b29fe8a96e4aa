"""The content index of a source: what each unit holds, proven unique by key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xxhash

from storage.errors import DuplicateKeyError
from storage.hashing import key_hash
from storage.sources.base import Source, SourceUnit
from storage.sources.key_spool import KeySpool, Place
from storage.sources.memo import MemoEntry, SourceMemo
from storage.sources.unit_digest import UnitDigest

__all__ = ["HASHES_PER_PASS", "IndexedUnit", "SourceIndex", "UnitDigest", "index_source"]

HASHES_PER_PASS = 32 * 2**20
"""Keys compared in one pass, at 16 bytes each; a larger source takes more passes, not more memory."""

SAVE_EVERY_SECONDS = 300.0
"""How much reading a killed run may lose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedUnit:
    """A unit and what it holds.

    Attributes:
        unit: the unit as its source lists it.
        num_samples: samples in it, unreadable ones too.
        digest: `UnitDigest` of its samples, 64 hex digits.
        key_hash: `storage.hashing.key_hash` over its keys in order.
    """

    unit: SourceUnit
    num_samples: int
    digest: str
    key_hash: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceIndex:
    """Every unit of a source in order, with its content.

    Attributes:
        units: the units.
        num_units_read: how many of them were read; the others came from the memo.
    """

    units: tuple[IndexedUnit, ...]
    num_units_read: int

    @property
    def num_samples(self) -> int:
        """Samples of all units."""
        return sum(unit.num_samples for unit in self.units)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Content:
    num_samples: int
    digest: str
    key_hash: int
    remember: bool


def index_source(
    source: Source,
    *,
    memo: SourceMemo | None = None,
    num_threads: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
    hashes_per_pass: int = HASHES_PER_PASS,
) -> SourceIndex:
    """Read every sample of a source once and return what its units hold.

    Args:
        source: the source.
        memo: units it remembers with an unchanged stat token are not read. Units with an unreadable sample are not remembered,
            since the trouble may pass without the file changing.
        num_threads: units read at the same time.
        on_progress: called with units done and units in all, from the calling thread.
        hashes_per_pass: keys compared at a time; bounds memory.

    Raises:
        SourceError: a unit cannot be read.
        DuplicateKeyError: two samples share a key; the message shows both places.
        CacheError: the memo's store cannot be reached or written.
    """
    units = source.units()
    contents: dict[int, _Content] = {}
    with KeySpool() as spool:
        if memo is not None:
            _recall(units, memo=memo, contents=contents, spool=spool)
        num_recalled = len(contents)
        report = on_progress or (lambda _done, _total: None)
        report(num_recalled, len(units))
        saved_at, num_saved = time.monotonic(), num_recalled
        try:
            missing = [number for number in range(len(units)) if number not in contents]
            for number, content, hashes in _read_units(source, units=units, numbers=missing, num_threads=num_threads):
                contents[number] = content
                spool.append(number, hashes=hashes)
                report(len(contents), len(units))
                if memo is not None and time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
                    memo.save(_entries(units, contents=contents, spool=spool))
                    saved_at, num_saved = time.monotonic(), len(contents)
        finally:
            if memo is not None and len(contents) > num_saved:
                memo.save(_entries(units, contents=contents, spool=spool))
        _refuse_duplicates(source, units=units, spool=spool, hashes_per_pass=hashes_per_pass)
    indexed = tuple(
        IndexedUnit(
            unit=unit,
            num_samples=contents[number].num_samples,
            digest=contents[number].digest,
            key_hash=contents[number].key_hash,
        )
        for number, unit in enumerate(units)
    )
    return SourceIndex(units=indexed, num_units_read=len(units) - num_recalled)


def _recall(units: Sequence[SourceUnit], *, memo: SourceMemo, contents: dict[int, _Content], spool: KeySpool) -> None:
    numbers = {(unit.name, unit.stat_token): number for number, unit in enumerate(units) if unit.stat_token}
    for entry in memo.entries():
        number = numbers.pop((entry.name, entry.stat_token), None)
        if number is None:
            continue
        contents[number] = _Content(num_samples=entry.num_samples, digest=entry.digest, key_hash=entry.key_hash, remember=True)
        spool.append(number, hashes=entry.key_hashes)


def _entries(units: Sequence[SourceUnit], *, contents: dict[int, _Content], spool: KeySpool) -> Iterator[MemoEntry]:
    for number, hashes in spool.of_units():
        unit, content = units[number], contents[number]
        if content.remember and unit.stat_token:
            yield MemoEntry(
                name=unit.name,
                stat_token=unit.stat_token,
                digest=content.digest,
                num_samples=content.num_samples,
                key_hash=content.key_hash,
                key_hashes=hashes,
            )


def _read_units(
    source: Source, *, units: Sequence[SourceUnit], numbers: Sequence[int], num_threads: int
) -> Iterator[tuple[int, _Content, npt.NDArray[np.uint64]]]:
    """Yield units as they are done; only a few results wait at a time."""
    waiting: dict[Future[tuple[_Content, npt.NDArray[np.uint64]]], int] = {}
    remaining = iter(numbers)
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            while True:
                while len(waiting) < 2 * num_threads and (number := next(remaining, None)) is not None:
                    waiting[pool.submit(_read_unit, source, units[number])] = number
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    number = waiting.pop(future)
                    yield number, *future.result()
        finally:
            for future in waiting:
                future.cancel()


def _read_unit(source: Source, unit: SourceUnit) -> tuple[_Content, npt.NDArray[np.uint64]]:
    digest = UnitDigest()
    keys: list[str] = []
    readable = True
    for sample in source.read(unit):
        digest.add(sample)
        keys.append(sample.key)
        readable = readable and sample.error is None
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), dtype=np.uint64, count=len(keys))
    content = _Content(num_samples=len(keys), digest=digest.hexdigest(), key_hash=key_hash(keys), remember=readable)
    return content, hashes


def _refuse_duplicates(source: Source, *, units: Sequence[SourceUnit], spool: KeySpool, hashes_per_pass: int) -> None:
    @lru_cache(maxsize=4)
    def keys_of(number: int) -> Sequence[str]:
        reader = source.open(units[number])
        try:
            return reader.keys
        finally:
            reader.close()

    def key_at(place: Place) -> str:
        return keys_of(place[0])[place[1]]

    found = spool.first_duplicate(key_at=key_at, hashes_per_pass=hashes_per_pass)
    if found is None:
        return
    first, second, key = found
    raise DuplicateKeyError(
        f"key {key!r} occurs twice: unit {units[first[0]].name!r}, position {first[1]}, and unit {units[second[0]].name!r}, "
        f"position {second[1]}; labels and views are found by key, so the two could not be told apart; rename one or leave it out"
    )
