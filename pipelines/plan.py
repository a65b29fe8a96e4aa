"""What a request needs, what the cache already holds, and what is left to compute. Nothing runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipelines.label_task import ListedTasks, Tasks
from pipelines.planned_parts import PlannedTasks
from pipelines.tiling import CommittedViews
from storage.cache import Cache
from storage.label_set import Manifest, UsedPart, label_set_id
from storage.narrowing import breadth, why_not_narrower
from storage.part_listing import PartListing
from storage.sources import IndexedUnit
from storage.specs import MaskedTokensView, RequestSpec, TokensView
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
    tasks: Tasks = field(repr=False)
    not_lending: Mapping[str, str]
    """Requests of the same teacher on the same views that cannot serve this one, and why."""
    num_new_units: int = 0
    """Units of which nothing is there."""
    lenders: frozenset[str] = frozenset()
    """Fingerprints of other requests, whose wider labels serve."""
    num_lent_parts: int = 0
    num_lent_rows: int = 0
    """Rows that they serve, dead letters not taken off."""
    standing: Manifest | None = field(default=None, repr=False)
    """The label set that these parts are already; None: it must be committed, or nobody looked."""

    @cached_property
    def label_set(self) -> str:
        """Id of the label set that the plan makes."""
        return self.standing.id if self.standing else label_set_id(request=self.request.fingerprint(), parts=self.parts)

    @property
    def requests(self) -> frozenset[str]:
        """Fingerprints of the request and of those whose parts are used."""
        return self.lenders | {self.request.fingerprint()}

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
        return self.tasks.num_rows


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
            tasks=ListedTasks(),
            not_lending=others,
            standing=standing.manifest,
        )
    listings |= {lender: PartListing.of(cache.store, cache.request_folder(lender)) for lender in lenders}
    vouched = vouched_parts(cache, listings=listings, manifests=manifests_of(cache, request=request, name=name))
    committed = CommittedViews(cache, units=units, num_views=num_views)
    for owner, listing in listings.items():
        committed.add(owner, listing=listing, vouched=vouched[owner])
    parts, is_missing = committed.tile(views_per_part=views_per_part)
    lent = np.flatnonzero(parts.owner_of)
    return LabelPlan(
        request=request,
        num_views=num_views,
        num_units=len(units),
        num_samples=num_samples,
        parts=parts,
        tasks=PlannedTasks(parts=parts, places=np.flatnonzero(is_missing)),
        not_lending=others,
        num_new_units=len(units) - len(np.unique(parts.unit_of[~is_missing])),
        lenders=frozenset(parts.owners[owner] for owner in np.unique(parts.owner_of[lent]).tolist()),
        num_lent_parts=len(lent),
        num_lent_rows=parts.num_rows(lent),
    )
