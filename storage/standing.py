"""What committed label sets say of parts, so that a plan need not read the record of every one.

A label set that is whole names parts that were committed. Such a part counts as long as a listing shows its record and its tar:
one that was removed is made anew; one whose bytes are damaged is found where they are read, by readers and `decant cache verify`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.cache import Cache
from storage.errors import CorruptError, MismatchError
from storage.hashing import digest
from storage.label_set import Manifest, UsedPart, read_manifest
from storage.parquet_bounds import check_size
from storage.part_listing import UNIT_DIGITS, Hashes, PartListing, name_hashes, part_names
from storage.parts_table import ROW_BYTES
from storage.sources import IndexedUnit
from storage.specs import PartSpec, RequestSpec

_ROWS_AT_A_TIME = 65_536
_RECORD_COST = 100
"""Reading a part's record costs more than so many rows of a table."""


@dataclass(frozen=True, kw_only=True)
class StandingParts(Sequence[UsedPart]):
    """The parts of a label set as a plan names them, made when they are asked for: a million of them would weigh a gigabyte.

    Attributes:
        units: of the source, in order.
        unit_of: int32 [parts], the unit of each part.
        first_views, num_views: int32 [parts], the views that are used.
    """

    request: str
    units: Sequence[IndexedUnit]
    unit_of: npt.NDArray[np.int32]
    first_views: npt.NDArray[np.int32]
    num_views: npt.NDArray[np.int32]
    tar_names: pa.Array = field(repr=False)

    def __len__(self) -> int:
        return len(self.unit_of)

    @overload
    def __getitem__(self, index: int) -> UsedPart: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[UsedPart]: ...

    def __getitem__(self, index: int | slice) -> UsedPart | Sequence[UsedPart]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        unit = self.units[self.unit_of[index]]
        first, last = part_views(self.tar_names[index].as_py().split(".", 2)[1])
        return UsedPart(
            unit_name=unit.unit.name,
            part=PartSpec(request=self.request, unit_digest=unit.digest, first_view=first, num_views=last - first),
            first_view=int(self.first_views[index]),
            num_views=int(self.num_views[index]),
        )


@dataclass(frozen=True, kw_only=True)
class StandingLabelSet:
    """A label set that is all that is asked for, whole, and with all its parts in the cache."""

    manifest: Manifest
    parts: StandingParts = field(repr=False)


def part_views(text: str) -> tuple[int, int]:
    """Return the views [first, last) that a part's name says, from its piece `v<first>-<last>`.

    Raises:
        ValueError: it says none.
    """
    first, _, last = text.removeprefix("v").partition("-")
    return int(first), int(last)


def manifests_of(cache: Cache, *, request: RequestSpec, name: str | None) -> Iterator[Manifest]:
    """Yield the whole manifests of label sets of a request's teacher and views, first the one that a name points at.

    Raises:
        CacheError: the store failed.
    """
    first: str | None = None
    if name is not None:
        with contextlib.suppress(CorruptError):
            named = cache.find_name(name)
            first = None if named is None else named.label_set
    seen = set()
    for label_set in _ids(cache, first=first):
        if label_set in seen:
            continue
        seen.add(label_set)
        with contextlib.suppress(CorruptError, MismatchError):
            manifest = read_manifest(cache, label_set=label_set)
            if (manifest.request.teacher, manifest.request.view) == (request.teacher, request.view):
                yield manifest


def _ids(cache: Cache, *, first: str | None) -> Iterator[str]:
    # Others are listed only if the first is not enough.
    if first is not None:
        yield first
    yield from cache.label_set_ids()


def find_standing(
    cache: Cache,
    *,
    request: str,
    units: Sequence[IndexedUnit],
    num_views: int,
    listing: PartListing,
    manifests: Iterable[Manifest],
) -> StandingLabelSet | None:
    """Return the label set that a plan of these units and views would make again from what is in the cache, if there is one.

    Args:
        request: fingerprint; label sets that hold parts of another are left to a plan that looks at each part.
        listing: of the request's folder.

    Raises:
        CacheError: the store failed.
    """
    for manifest in manifests:
        if (manifest.num_views, manifest.num_units) != (num_views, len(units)) or manifest.request.fingerprint() != request:
            continue
        table = _read_table(cache, manifest, columns=["unit_name", "request", "first_view", "num_views", "tar_name"])
        if table is None or not _class_means_are_whole(cache, manifest):
            continue
        parts = _parts_of(table, request=request, units=units, num_views=num_views, listing=listing)
        if parts is not None:
            return StandingLabelSet(manifest=manifest, parts=parts)
    return None


def still_stands(cache: Cache, manifest: Manifest) -> bool:
    """Return whether a label set is there as it was; inside a hold of its request, gc leaves it and its parts from then on."""
    try:
        return read_manifest(cache, label_set=manifest.id) == manifest
    except (CorruptError, MismatchError):
        return False


def vouched_parts(cache: Cache, *, listings: Mapping[str, PartListing], manifests: Iterable[Manifest]) -> dict[str, Hashes]:
    """Return sorted hashes of the names of parts that label sets name and listings show, by request.

    Args:
        listings: by request.

    Raises:
        CacheError: the store failed.
    """
    found = {request: np.empty(0, dtype=np.uint64) for request in listings}
    num_left = sum(len(listing.records) for listing in listings.values())
    for manifest in manifests:
        # A long table that says little more than is known already costs more than the records.
        if manifest.num_parts > _RECORD_COST * num_left:
            continue
        table = _read_table(cache, manifest, columns=["request", "tar_name"])
        if table is None:
            continue
        for request, listing in listings.items():
            names = table.column("tar_name").filter(pc.equal(table.column("request"), request))
            shown = name_hashes(part_names(names.filter(pa.array(listing.shows(names)))))
            found[request] = np.union1d(found[request], shown)
        num_left = sum(len(listing.records) - len(found[request]) for request, listing in listings.items())
    return found


def _read_table(cache: Cache, manifest: Manifest, *, columns: list[str]) -> pa.Table | None:
    """Return columns of a label set's table; None if it is not what was committed."""
    try:
        data = cache.store.read(f"label_sets/{manifest.id}/{manifest.parts_file}")
    except FileNotFoundError:
        return None
    if digest(data) != manifest.parts_sha256:
        return None
    try:
        with pq.ParquetFile(pa.BufferReader(data), read_dictionary=["request"], pre_buffer=False) as parquet:
            if not set(columns) <= set(parquet.schema_arrow.names):
                return None
            check_size(parquet, data, num_rows=manifest.num_parts, row_bytes=ROW_BYTES, columns=columns)
            table = parquet.read(columns=columns, use_threads=False)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
    # Of a table that somebody made: a value that is missing is no name and no number.
    return None if any(table.column(name).null_count for name in columns) else table


def _class_means_are_whole(cache: Cache, manifest: Manifest) -> bool:
    if not manifest.class_means_file:
        return True
    try:
        return digest(cache.store.read(f"label_sets/{manifest.id}/{manifest.class_means_file}")) == manifest.class_means_sha256
    except FileNotFoundError:
        return False


def _parts_of(
    table: pa.Table, *, request: str, units: Sequence[IndexedUnit], num_views: int, listing: PartListing
) -> StandingParts | None:
    """Return the parts of a table if they are all views of all units, all are shown, and no other part could take a place."""
    if not pc.all(pc.equal(table.column("request"), request)).as_py():
        return None
    first_views, view_counts = (
        table.column(name).to_numpy().astype(np.int32, copy=False) for name in ("first_view", "num_views")
    )
    unit_of = np.cumsum(first_views == 0, dtype=np.int32) - np.int32(1)
    if not _cover(first_views, view_counts, unit_of, num_views=num_views, num_units=len(units)):
        return None
    for start in range(0, table.num_rows, _ROWS_AT_A_TIME):
        if not _same_units(table.slice(start, _ROWS_AT_A_TIME), unit_of[start : start + _ROWS_AT_A_TIME], units=units):
            return None
    tar_names = table.column("tar_name")
    if not listing.shows(tar_names).all() or _others_serve(tar_names, units=units, num_views=num_views, listing=listing):
        return None
    return StandingParts(
        request=request,
        units=units,
        unit_of=unit_of,
        first_views=first_views,
        num_views=view_counts,
        tar_names=tar_names.combine_chunks(),
    )


def _cover(
    first_views: npt.NDArray[np.int32],
    view_counts: npt.NDArray[np.int32],
    unit_of: npt.NDArray[np.int32],
    *,
    num_views: int,
    num_units: int,
) -> bool:
    """Return whether the parts of every unit tile its views, in order."""
    if not len(unit_of):
        return num_units == 0
    last_views = first_views + view_counts
    ends = np.append(unit_of[1:] != unit_of[:-1], True)
    return bool(
        unit_of[0] == 0
        and unit_of[-1] == num_units - 1
        and (last_views[ends] == num_views).all()
        and (last_views[:-1][~ends[:-1]] == first_views[1:][~ends[:-1]]).all()
    )


def _same_units(rows: pa.Table, unit_of: npt.NDArray[np.int32], *, units: Sequence[IndexedUnit]) -> bool:
    first, last = int(unit_of[0]), int(unit_of[-1]) + 1
    places = pa.array(unit_of - first)
    asked = units[first:last]
    one_each = len(asked) == len(unit_of)
    names = pa.array([unit.unit.name for unit in asked], type=pa.string())
    if not rows.column("unit_name").combine_chunks().equals(names if one_each else names.take(places)):
        return False
    # A part's name begins with 128 bits of the digest of its unit's content.
    digits = pa.array([unit.digest[:UNIT_DIGITS] for unit in asked], type=pa.string())
    found = _unit_digits(rows.column("tar_name").combine_chunks())
    return bool(found.equals(digits if one_each else digits.take(places)))


def _unit_digits(names: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pc.utf8_slice_codeunits(names, start=0, stop=UNIT_DIGITS)


def _others_serve(
    tar_names: pa.Array | pa.ChunkedArray, *, units: Sequence[IndexedUnit], num_views: int, listing: PartListing
) -> bool:
    """Return whether the cache holds other parts of these units' views: a plan may choose among them.

    Args:
        tar_names: of parts that are all shown.
    """
    others = [name.partition(".") for name in listing.other_records(tar_names)]
    if not others:
        return False
    asked = {unit.digest[:UNIT_DIGITS] for unit in units}
    for unit, _, views in others:
        with contextlib.suppress(ValueError):
            if unit in asked and part_views(views)[0] < num_views:
                return True
    return False
