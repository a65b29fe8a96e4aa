"""What a request needs, what the cache already holds, and what is left to compute. Nothing runs here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.label_unit import LabelTask
from storage.cache import Cache
from storage.label_set import UsedPart
from storage.sources import IndexedUnit
from storage.specs import PartSpec, RequestSpec


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """The parts of a label set, in order, and the tasks that make the missing ones."""

    request: RequestSpec
    num_views: int
    parts: tuple[UsedPart, ...] = field(repr=False)
    tasks: tuple[LabelTask, ...] = field(repr=False)
    num_units: int
    num_samples: int

    @property
    def num_rows(self) -> int:
        """Rows of the whole label set, dead letters not taken off."""
        return self.num_samples * self.num_views

    @property
    def num_missing_rows(self) -> int:
        """Rows that must be computed."""
        return sum(task.num_samples * task.part.num_views for task in self.tasks)


def view_ranges(
    *, num_views: int, views_per_part: int, existing: Sequence[tuple[int, int]]
) -> list[tuple[tuple[int, int], tuple[int, int] | None]]:
    """Tile views [0, num_views) with existing ranges first, and new ranges cut at multiples of `views_per_part`.

    Cuts do not depend on what exists, so that an interrupted run and its continuation make the parts of an uninterrupted one.

    Args:
        existing: half-open ranges of committed parts.

    Returns:
        (range used, range of the committed part or None where a new part is needed), in order, without overlap.
    """
    tiles: list[tuple[tuple[int, int], tuple[int, int] | None]] = []
    position = 0
    while position < num_views:
        covering = [known for known in existing if known[0] <= position < known[1]]
        if covering:
            best = max(covering, key=lambda known: (known[1], -known[0]))
            stop = min(best[1], num_views)
            tiles.append(((position, stop), best))
        else:
            boundary = (position // views_per_part + 1) * views_per_part
            later = [known[0] for known in existing if known[0] > position]
            stop = min([boundary, num_views, *later])
            tiles.append(((position, stop), None))
        position = stop
    return tiles


def make_plan(
    cache: Cache, *, request: RequestSpec, units: Sequence[IndexedUnit], num_views: int, views_per_part: int
) -> LabelPlan:
    """Compare a request with a cache.

    Raises:
        CacheError: the cache cannot be read, or holds a record this release cannot read.
    """
    fingerprint = request.fingerprint()
    covered = cache.covering_parts(request=fingerprint, unit_digests=[unit.digest for unit in units])
    parts: list[UsedPart] = []
    tasks: list[LabelTask] = []
    for unit in units:

        def part_of(views: tuple[int, int], unit_digest: str = unit.digest) -> PartSpec:
            return PartSpec(request=fingerprint, unit_digest=unit_digest, first_view=views[0], num_views=views[1] - views[0])

        existing = [views for views in covered.get(unit.digest, ()) if cache.find_part(part_of(views)) is not None]
        for used, known in view_ranges(num_views=num_views, views_per_part=views_per_part, existing=existing):
            part = part_of(known or used)
            if known is None:
                tasks.append(LabelTask(unit=unit.unit, part=part, num_samples=unit.num_samples))
            parts.append(UsedPart(unit_name=unit.unit.name, part=part, first_view=used[0], num_views=used[1] - used[0]))
    return LabelPlan(
        request=request,
        num_views=num_views,
        parts=tuple(parts),
        tasks=tuple(tasks),
        num_units=len(units),
        num_samples=sum(unit.num_samples for unit in units),
    )
