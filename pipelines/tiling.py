"""How the views of every unit are put together from parts that are committed and parts that must be made."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipelines.planned_parts import Ints, PlannedParts
from storage.cache import Cache
from storage.part_listing import CoveredViews, Hashes, PartListing, within
from storage.sources import IndexedUnit
from storage.specs import PartSpec


def view_ranges(
    *, num_views: int, views_per_part: int, existing: Collection[tuple[int, int]], lent: Collection[tuple[int, int]] = ()
) -> list[tuple[tuple[int, int], tuple[int, int] | None]]:
    """Tile views [0, num_views) with existing ranges first, lent ones next, and new ranges cut at multiples of `views_per_part`.

    Cuts do not depend on what exists, so that an interrupted run and its continuation make the parts of an uninterrupted one.

    Args:
        existing: half-open ranges of committed parts.
        lent: those of parts that were made for a wider request.

    Returns:
        (range used, range of the committed part or None where a new part is needed), in order, without overlap.
    """
    tiles: list[tuple[tuple[int, int], tuple[int, int] | None]] = []
    position = 0
    while position < num_views:
        best = _covering(existing, position=position)
        stop = num_views if best is None else min(best[1], num_views)
        if best is None:
            stop = min([stop, *(known[0] for known in existing if known[0] > position)])
            best = _covering(lent, position=position)
            if best is not None:
                stop = min(stop, best[1])
            else:
                boundary = (position // views_per_part + 1) * views_per_part
                stop = min([stop, boundary, *(known[0] for known in lent if known[0] > position)])
        tiles.append(((position, stop), best))
        position = stop
    return tiles


def _covering(ranges: Collection[tuple[int, int]], *, position: int) -> tuple[int, int] | None:
    covering = [known for known in ranges if known[0] <= position < known[1]]
    return max(covering, key=lambda known: (known[1], -known[0])) if covering else None


def _covers(ranges: Collection[tuple[int, int]], *, num_views: int) -> bool:
    position = 0
    while position < num_views:
        best = _covering(ranges, position=position)
        if best is None:
            return False
        position = best[1]
    return True


class CommittedViews:
    """Which views of which units are committed, for a request and for those that lend to it, the first first.

    Contents, not units, are looked at: units of one content share their parts.
    """

    def __init__(self, cache: Cache, *, units: Sequence[IndexedUnit], num_views: int) -> None:
        self._cache = cache
        self._units = units
        self._digests = [unit.digest for unit in units]
        self._num_views = num_views
        self._owners: list[str] = []
        self._of_owner: list[_ViewsOfContents] = []

    def add(self, owner: str, *, listing: PartListing, vouched: Hashes) -> None:
        """Find what is committed of a request that comes after those that were added.

        Args:
            vouched: hashes of names of parts that need no look at their record.
        """
        covered = listing.covered(self._digests)
        self._first_units, self._content_of = covered.first_units, covered.content_of
        if self._of_owner:
            covered = covered.take(~self._is_whole[covered.contents])
        is_there = within(covered.names, vouched)
        unsure = np.flatnonzero(~is_there)
        found = self._cache.are_committed(self._listed(owner, covered=covered, places=unsure))
        is_there[unsure] = np.fromiter(found, dtype=np.bool_, count=len(unsure))
        self._owners.append(owner)
        self._of_owner.append(_ViewsOfContents(covered.take(is_there)))

    @cached_property
    def _is_whole(self) -> npt.NDArray[np.bool_]:
        """Bool [contents]: the first request has all views."""
        return self._of_owner[0].is_whole(self._num_views)

    def _listed(self, owner: str, *, covered: CoveredViews, places: npt.NDArray[np.intp]) -> Iterator[PartSpec]:
        for place in places.tolist():
            unit = self._units[self._first_units[covered.contents[place]]]
            first, last = int(covered.firsts[place]), int(covered.lasts[place])
            yield PartSpec(request=owner, unit_digest=unit.digest, first_view=first, num_views=last - first)

    def tile(self, *, views_per_part: int) -> tuple[PlannedParts, npt.NDArray[np.bool_]]:
        """Return the parts that are all views of all units, and bool [parts]: it is missing."""
        tilings: dict[tuple[bytes, ...], int] = {}
        tables: list[Ints] = []
        num_contents = len(self._first_units)
        tiling_of_content = np.zeros(num_contents, dtype=np.int32)
        for content in range(num_contents):
            ranges = tuple(views.of(content) for views in self._of_owner)
            if ranges not in tilings:
                tilings[ranges] = len(tables)
                tables.append(self._tiles(ranges, views_per_part=views_per_part))
            tiling_of_content[content] = tilings[ranges]
        tiling_of = tiling_of_content[self._content_of]
        counts = np.array([len(table) for table in tables], dtype=np.int32)
        starts = np.cumsum(counts) - counts
        counts_of_units = counts[tiling_of]
        unit_of = np.repeat(np.arange(len(self._units), dtype=np.int32), counts_of_units)
        first_parts = np.cumsum(counts_of_units) - counts_of_units
        rows = np.arange(len(unit_of)) - first_parts[unit_of] + starts[tiling_of][unit_of]
        found = np.concatenate([np.empty((0, 6), dtype=np.int32), *tables])[rows]
        parts = PlannedParts(
            units=self._units,
            owners=tuple(self._owners),
            unit_of=unit_of,
            owner_of=found[:, 0],
            made=found[:, 1:3],
            used=found[:, 3:5],
        )
        return parts, found[:, 5] != 0

    def _tiles(self, ranges: tuple[bytes, ...], *, views_per_part: int) -> Ints:
        """Return int32 [parts, 6]: owner, first view and number of the part, those of what is used, whether it is missing."""
        own, *others = (_pairs(one) for one in ranges)
        lent: dict[tuple[int, int], int] = {}
        for owner, of_owner in enumerate(others, start=1):
            lent = dict.fromkeys(of_owner, owner) | lent
        tiles = view_ranges(num_views=self._num_views, views_per_part=views_per_part, existing=own, lent=lent)
        rows = []
        for used, known in tiles:
            owner = 0 if known is None or known in own else lent[known]
            made = known or used
            rows.append((owner, made[0], made[1] - made[0], used[0], used[1] - used[0], known is None))
        return np.array(rows, dtype=np.int32).reshape(-1, 6)


class _ViewsOfContents:
    """View ranges by content."""

    def __init__(self, covered: CoveredViews) -> None:
        self._ranges = np.stack([covered.firsts, covered.lasts], axis=1)
        self._bounds = np.searchsorted(covered.contents, np.arange(len(covered.first_units) + 1)).tolist()

    def of(self, content: int) -> bytes:
        """Return the ranges of a content, as bytes that `_pairs` reads."""
        return self._ranges[self._bounds[content] : self._bounds[content + 1]].tobytes()

    def is_whole(self, num_views: int) -> npt.NDArray[np.bool_]:
        """Return bool [contents]: all views are there."""
        covering: dict[bytes, bool] = {}
        found = np.zeros(len(self._bounds) - 1, dtype=np.bool_)
        for content in range(len(found)):
            ranges = self.of(content)
            if ranges not in covering:
                covering[ranges] = _covers(_pairs(ranges), num_views=num_views)
            found[content] = covering[ranges]
        return found


def _pairs(ranges: bytes) -> list[tuple[int, int]]:
    return [(first, last) for first, last in np.frombuffer(ranges, dtype=np.int32).reshape(-1, 2).tolist()]
