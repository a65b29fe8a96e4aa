"""Label one source unit of pictures for several targets of a teacher, in one pass of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.label_task import LabelTask
from pipelines.label_unit import LabelledUnit, UnitLabeller
from pipelines.picture_features import FeatureUnitLabeller
from pipelines.shared_pass import SharedPass
from pipelines.teachers.base import Teacher
from pipelines.unit_reading import Reading, rendered_batches
from pipelines.vectors import wanted_of
from storage.config import GenerationConfig
from storage.sources.base import Source
from storage.specs import RequestSpec, SoftLabelsSpec


@dataclass(kw_only=True)
class PictureUnitLabeller:
    """Labels units of pictures with one teacher, for several targets: read, rendered and computed once.

    Bytes are those of each target labelled alone.

    Attributes:
        requests: of the teacher's, over one view, by fingerprint.
        alone: what labels for each of them.
    """

    teacher: Teacher
    source: Source
    requests: dict[str, RequestSpec]
    config: GenerationConfig
    alone: dict[str, UnitLabeller | FeatureUnitLabeller] = field(init=False)
    _shared: SharedPass = field(init=False, repr=False)
    _together: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.alone = {
            name: (UnitLabeller if isinstance(request.target, SoftLabelsSpec) else FeatureUnitLabeller)(
                teacher=self.teacher, source=self.source, request=request, config=self.config
            )
            for name, request in self.requests.items()
        }
        wanted = wanted_of([request.target for request in self.requests.values()])
        self._shared = SharedPass(teacher=self.teacher, wanted=wanted)
        self._together = {name: replace(labeller, teacher=self._shared) for name, labeller in self.alone.items()}

    def label(self, tasks: Sequence[LabelTask]) -> list[LabelledUnit]:
        """Return the parts of a work unit.

        Args:
            tasks: of one unit and range of views, each for another request.

        Raises:
            SourceError: the unit cannot be read, or no longer holds what was indexed.
            TeacherError: the teacher fails on every sample of a batch and on black pictures, or runs out of memory.
        """
        first = tasks[0]
        if len(tasks) == 1:
            return [self.alone[first.part.request].label(first)]
        try:
            return self._label(tasks)
        finally:
            self._shared.forget()

    def _label(self, tasks: Sequence[LabelTask]) -> list[LabelledUnit]:
        started, first = time.perf_counter(), tasks[0]
        labellers = [self._together[task.part.request] for task in tasks]
        growing = [labeller.begin(task) for labeller, task in zip(labellers, tasks, strict=True)]
        sizes = tuple(labeller.block_rows(task) for labeller, task in zip(labellers, tasks, strict=True))
        reading, request = Reading.of(first), self.requests[first.part.request]
        for batch in rendered_batches(self.source, first, reading=reading, request=request, config=self.config, block_rows=sizes):
            for made in growing:
                made.dead_letters += [item.dead_letter for item in batch if item.dead_letter is not None]
            for index in range(first.part.num_views):
                for labeller, made in zip(labellers, growing, strict=True):
                    labeller.add(made, batch, index=index)
        table = reading.finish(first)
        teacher_seconds = sum(made.teacher_seconds for made in growing) / len(growing)
        found = [labeller.finish(made, table=table, started=started) for labeller, made in zip(labellers, growing, strict=True)]
        return [replace(labelled, teacher_seconds=teacher_seconds) for labelled in found]
