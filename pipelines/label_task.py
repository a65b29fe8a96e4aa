"""One work unit of labelling, as plans make it and workers take it. Imports no framework: a plan needs none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from storage.sources.base import SourceUnit
from storage.specs import PartSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTask:
    """One work unit: a source unit and the range of views that is missing, or in which rows are missing.

    Attributes:
        replaces: name of the part's tar whose dead letters are tried again; None: the part is computed as a whole.
        num_dead_rows: rows that are tried again.
    """

    unit: SourceUnit
    part: PartSpec
    num_samples: int
    replaces: str | None = None
    num_dead_rows: int = 0

    @property
    def num_rows(self) -> int:
        """Rows to compute, dead letters not taken off."""
        return self.num_dead_rows if self.replaces is not None else self.num_samples * self.part.num_views


def work_units(tasks: Iterable[LabelTask]) -> list[tuple[LabelTask, ...]]:
    """Put tasks together that are computed in one pass of the teacher: of the same unit and views, for different requests.

    In the order of their first tasks. A task that tries dead letters again stands alone.
    """
    groups: dict[tuple[object, ...], list[LabelTask]] = {}
    for task in tasks:
        name: tuple[object, ...] = (task.unit.name, task.part.unit_digest, task.part.first_view, task.part.num_views)
        if task.replaces is not None:
            name = (*name, task.part.request)
        groups.setdefault(name, []).append(task)
    return [tuple(group) for group in groups.values()]
