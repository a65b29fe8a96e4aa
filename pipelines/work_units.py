"""What workers compute in one pass of the teacher, out of what plans lack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby

from pipelines.label_task import LabelTask
from pipelines.planned_parts import PlannedTasks
from storage.sources import IndexedUnit


def work_units(targets: Sequence[Sequence[LabelTask]], *, units: Sequence[IndexedUnit]) -> Iterator[tuple[LabelTask, ...]]:
    """Put tasks together that are computed in one pass of the teacher: of the same unit and views, for different targets.

    Of one target nothing is held; of several, places of units. A task that tries dead letters again stands alone.

    Args:
        targets: tasks of each target.
        units: of the source, in whose order the work comes.
    """
    if len(targets) == 1:
        yield from ((task,) for task in targets[0])
        return
    places = {unit.unit.name: place for place, unit in enumerate(units)}

    def where(task: LabelTask) -> tuple[object, ...]:
        alone = "" if task.replaces is None else task.part.request
        return places[task.unit.name], task.part.unit_digest, task.part.first_view, task.part.num_views, alone

    # Sorting holds tasks; those of a plan are in order already, and made when they are asked for.
    in_order = (tasks if isinstance(tasks, PlannedTasks) else sorted(tasks, key=where) for tasks in targets)
    for _, together in groupby(merge(*in_order, key=where), key=where):
        # Rows that one target lends another are tried again for both.
        yield tuple(dict.fromkeys(together))
