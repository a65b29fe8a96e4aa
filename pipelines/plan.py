"""What a request needs, what the cache already holds, and what is left to compute. Nothing runs here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.label_unit import LabelTask
from storage.cache import Cache
from storage.label_set import UsedPart
from storage.narrowing import why_not_narrower
from storage.sources import IndexedUnit
from storage.specs import PartSpec, RequestSpec


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """The parts of a label set, in order, and the tasks that make the missing ones."""

    request: RequestSpec
    num_views: int
    parts: tuple[UsedPart, ...] = field(repr=False)
    tasks: tuple[LabelTask, ...] = field(repr=False)
    unit_samples: Mapping[str, int] = field(repr=False)
    """Samples of every unit by its name."""
    not_lending: Mapping[str, str]
    """Requests of the same teacher on the same views that cannot serve this one, and why."""

    @property
    def num_units(self) -> int:
        """Units of the source."""
        return len(self.unit_samples)

    @property
    def num_samples(self) -> int:
        """Samples of the source."""
        return sum(self.unit_samples.values())

    @property
    def num_rows(self) -> int:
        """Rows of the whole label set, dead letters not taken off."""
        return self.num_samples * self.num_views

    @property
    def num_lent_rows(self) -> int:
        """Rows that wider labels of other requests serve, dead letters not taken off."""
        own = self.request.fingerprint()
        return sum(used.num_views * self.unit_samples[used.unit_name] for used in self.parts if used.part.request != own)

    @property
    def num_missing_rows(self) -> int:
        """Rows that must be computed."""
        return sum(task.num_rows for task in self.tasks)


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


def find_lenders(cache: Cache, *, request: RequestSpec) -> tuple[list[str], dict[str, str]]:
    """Return the requests whose parts serve a request once narrowed, the narrowest first, and why others do not.

    Others are those of the same teacher on the same views.
    """
    lenders: list[tuple[int, str]] = []
    others: dict[str, str] = {}
    for fingerprint, stored in cache.requests():
        if stored == request or (stored.teacher, stored.view) != (request.teacher, request.view):
            continue
        reason = why_not_narrower(stored.target, asked=request.target)
        if reason is None:
            lenders.append((stored.target.max_entries, fingerprint))
        else:
            others[fingerprint] = reason
    return [fingerprint for _, fingerprint in sorted(lenders)], others


def make_plan(
    cache: Cache, *, request: RequestSpec, units: Sequence[IndexedUnit], num_views: int, views_per_part: int
) -> LabelPlan:
    """Compare a request with a cache.

    Raises:
        CacheError: the cache cannot be read, or holds a record this release cannot read.
    """
    fingerprint = request.fingerprint()
    lenders, others = find_lenders(cache, request=request)
    digests = [unit.digest for unit in units]
    covered = {owner: cache.covering_parts(request=owner, unit_digests=digests) for owner in (fingerprint, *lenders)}
    parts: list[UsedPart] = []
    tasks: list[LabelTask] = []
    for unit in units:

        def part_of(owner: str, views: tuple[int, int], unit_digest: str = unit.digest) -> PartSpec:
            return PartSpec(request=owner, unit_digest=unit_digest, first_view=views[0], num_views=views[1] - views[0])

        def committed(owner: str, unit_digest: str = unit.digest) -> list[tuple[int, int]]:
            listed = covered[owner].get(unit_digest, ())
            return [views for views in listed if cache.find_part(part_of(owner, views, unit_digest)) is not None]

        existing = committed(fingerprint)
        lent: dict[tuple[int, int], str] = {}
        if not _covers(existing, num_views=num_views):
            for owner in lenders:
                lent = dict.fromkeys(committed(owner), owner) | lent
        for used, known in view_ranges(num_views=num_views, views_per_part=views_per_part, existing=existing, lent=lent):
            owner = fingerprint if known is None or known in existing else lent[known]
            part = part_of(owner, known or used)
            if known is None:
                tasks.append(LabelTask(unit=unit.unit, part=part, num_samples=unit.num_samples))
            parts.append(UsedPart(unit_name=unit.unit.name, part=part, first_view=used[0], num_views=used[1] - used[0]))
    return LabelPlan(
        request=request,
        num_views=num_views,
        parts=tuple(parts),
        tasks=tuple(tasks),
        unit_samples={unit.unit.name: unit.num_samples for unit in units},
        not_lending=others,
    )
