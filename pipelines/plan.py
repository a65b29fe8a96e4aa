"""What a request needs, what the cache already holds, and what is left to compute. Nothing runs here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from pipelines.label_task import LabelTask
from storage.cache import Cache
from storage.label_set import Manifest, UsedPart, label_set_id
from storage.narrowing import breadth, why_not_narrower
from storage.part_listing import PartListing
from storage.sources import IndexedUnit
from storage.specs import MaskedTokensView, PartSpec, RequestSpec, TokensView
from storage.standing import find_standing, manifests_of, vouched_parts


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """The parts of a label set, in order, and the tasks that make the missing ones."""

    request: RequestSpec
    num_views: int
    num_units: int
    num_samples: int
    """Samples of the source."""
    parts: Sequence[UsedPart] = field(repr=False)
    tasks: tuple[LabelTask, ...] = field(repr=False)
    not_lending: Mapping[str, str]
    """Requests of the same teacher on the same views that cannot serve this one, and why."""
    num_lent_rows: int = 0
    """Rows that wider labels of other requests serve, dead letters not taken off."""
    standing: Manifest | None = field(default=None, repr=False)
    """The label set that these parts are already; None: it must be committed, or nobody looked."""

    @cached_property
    def label_set(self) -> str:
        """Id of the label set that the plan makes."""
        return self.standing.id if self.standing else label_set_id(request=self.request.fingerprint(), parts=self.parts)

    @cached_property
    def requests(self) -> frozenset[str]:
        """Fingerprints of the request and of those whose parts are used."""
        others = () if self.standing else (used.part.request for used in self.parts)
        return frozenset({self.request.fingerprint(), *others})

    @property
    def of_text(self) -> bool:
        """Whether samples are documents, which become token sequences when they are labelled: rows are counted in documents."""
        return isinstance(self.request.view, TokensView | MaskedTokensView)

    @property
    def num_rows(self) -> int:
        """Rows of the whole label set, dead letters not taken off."""
        return self.num_samples * self.num_views

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
            lenders.append((breadth(stored.target), fingerprint))
        else:
            others[fingerprint] = reason
    return [fingerprint for _, fingerprint in sorted(lenders)], others


def make_plan(
    cache: Cache,
    *,
    request: RequestSpec,
    units: Sequence[IndexedUnit],
    num_views: int,
    views_per_part: int,
    name: str | None = None,
) -> LabelPlan:
    """Compare a request with a cache.

    Parts that a whole label set names are there if a listing shows them (`storage.standing`); the records of others are read.

    Args:
        name: of the experiment, whose last label set is looked at first; None: any of the cache.

    Raises:
        CacheError: the cache cannot be read, or holds a record this release cannot read.
    """
    fingerprint = request.fingerprint()
    lenders, others = find_lenders(cache, request=request)
    num_samples = sum(unit.num_samples for unit in units)
    listings = {fingerprint: PartListing.of(cache.store, cache.request_folder(fingerprint))}
    standing = find_standing(
        cache,
        request=fingerprint,
        units=units,
        num_views=num_views,
        listing=listings[fingerprint],
        manifests=manifests_of(cache, request=request, name=name),
    )
    if standing is not None:
        return LabelPlan(
            request=request,
            num_views=num_views,
            num_units=len(units),
            num_samples=num_samples,
            parts=standing.parts,
            tasks=(),
            not_lending=others,
            standing=standing.manifest,
        )
    listings |= {lender: PartListing.of(cache.store, cache.request_folder(lender)) for lender in lenders}
    vouched = vouched_parts(cache, listings=listings, manifests=manifests_of(cache, request=request, name=name))
    digests = [unit.digest for unit in units]
    covered = {owner: listing.ranges(digests) for owner, listing in listings.items()}
    parts: list[UsedPart] = []
    tasks: list[LabelTask] = []
    num_lent_rows = 0
    for unit in units:

        def part_of(owner: str, views: tuple[int, int], unit_digest: str = unit.digest) -> PartSpec:
            return PartSpec(request=owner, unit_digest=unit_digest, first_view=views[0], num_views=views[1] - views[0])

        def committed(owner: str, unit_digest: str = unit.digest) -> list[tuple[int, int]]:
            listed = [(views, part_of(owner, views, unit_digest)) for views in covered[owner].get(unit_digest, ())]
            return [views for views, part in listed if part.name in vouched[owner] or cache.find_part(part) is not None]

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
            num_lent_rows += (used[1] - used[0]) * unit.num_samples if owner != fingerprint else 0
    return LabelPlan(
        request=request,
        num_views=num_views,
        num_units=len(units),
        num_samples=num_samples,
        parts=tuple(parts),
        tasks=tuple(tasks),
        not_lending=others,
        num_lent_rows=num_lent_rows,
    )
