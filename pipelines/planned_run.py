"""What is known of a run of one target before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.plan import LabelPlan
from storage.cache import Cache
from storage.config import ExperimentConfig, SourceConfig, TeacherConfig
from storage.sources import IndexedUnit
from storage.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """Everything a run needs to know before it starts."""

    config: ExperimentConfig
    cache: Cache
    source: Source
    source_config: SourceConfig
    teacher_config: TeacherConfig
    units: tuple[IndexedUnit, ...]
    plan: LabelPlan
    teacher_loaded: bool
