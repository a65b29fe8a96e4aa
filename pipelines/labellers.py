"""What labels units: by teacher and target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from pipelines.label_task import LabelTask
from pipelines.label_unit import LabelledUnit, UnitLabeller
from pipelines.picture_features import FeatureUnitLabeller
from pipelines.picture_labelling import PictureUnitLabeller
from pipelines.teachers.base import Teacher
from pipelines.teachers.text_base import TextTeacher
from pipelines.text.labelling import TextUnitLabeller
from storage.config import GenerationConfig
from storage.sources.base import Source
from storage.specs import RequestSpec, SoftLabelsSpec

Labeller: TypeAlias = UnitLabeller | FeatureUnitLabeller | PictureUnitLabeller | TextUnitLabeller


def make_labeller(
    teacher: Teacher | TextTeacher, *, source: Source, requests: dict[str, RequestSpec], config: GenerationConfig
) -> Labeller:
    """Return what labels units for some requests of a teacher over one view."""
    if isinstance(teacher, TextTeacher):
        return TextUnitLabeller(teacher=teacher, source=source, requests=requests, config=config)
    if len(requests) > 1:
        return PictureUnitLabeller(teacher=teacher, source=source, requests=requests, config=config)
    (request,) = requests.values()
    if isinstance(request.target, SoftLabelsSpec):
        return UnitLabeller(teacher=teacher, source=source, request=request, config=config)
    return FeatureUnitLabeller(teacher=teacher, source=source, request=request, config=config)


def label_unit(labeller: Labeller, tasks: Sequence[LabelTask]) -> list[LabelledUnit]:
    """Return the parts of tasks of one unit and range of views, one for each request.

    Raises:
        SourceError: the unit cannot be read, or no longer holds what was indexed.
        TeacherError: the teacher fails on every sample of a batch, or runs out of memory.
    """
    if isinstance(labeller, TextUnitLabeller | PictureUnitLabeller):
        return labeller.label(tasks)
    return [labeller.label(task) for task in tasks]


def labeller_of(labeller: Labeller, *, request: str) -> Labeller:
    """Return what labels units for one request alone, by its fingerprint."""
    return labeller.alone[request] if isinstance(labeller, PictureUnitLabeller) else labeller
