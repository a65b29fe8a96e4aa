"""The Beam side: tasks by reference, one element a work unit, no data through any shuffle."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import apache_beam as beam
import torch
from apache_beam.metrics import Metrics

from pipelines.label_unit import LabelledUnit, LabelTask, UnitLabeller
from pipelines.retry import retry
from pipelines.teacher_memo import local_files
from pipelines.teachers import load_teacher
from pipelines.teachers.base import Teacher
from storage.cache import Cache
from storage.config import GenerationConfig, SourceConfig, TeacherConfig
from storage.errors import CacheError, DecantError, MismatchError, SourceError
from storage.filesystem import Store
from storage.parts import PartRecord
from storage.sources import open_source
from storage.sources.base import SourceUnit
from storage.specs import PartSpec, RequestSpec

TASKS_PER_FILE = 1000
_teachers: dict[str, Teacher] = {}
_teachers_lock = threading.Lock()


def shared_teacher(config: TeacherConfig) -> Teacher:
    """Return the teacher of this process; it is loaded once, shared by all threads, and loaded anew when its files change."""
    marks = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in local_files(config) if file.is_file()]
    name = f"{config.model_dump_json()} {marks}"
    with _teachers_lock:
        if name not in _teachers:
            _teachers.clear()
            _teachers[name] = load_teacher(config)
        return _teachers[name]


def task_to_json(task: LabelTask) -> dict[str, Any]:
    """Return the JSON form of a task, as it lies in a run's task files."""
    return {**asdict(task), "part": task.part.to_json()}


def task_from_json(data: dict[str, Any]) -> LabelTask:
    """Return the task of its JSON form."""
    return LabelTask(**{**data, "unit": SourceUnit(**data["unit"]), "part": PartSpec.model_validate(data["part"])})


class ReadTasks(beam.DoFn):
    """Task file names to tasks: the job graph does not grow with the number of units."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def process(self, name: str) -> Iterator[LabelTask]:
        """Yield the tasks of one file."""
        for task in json.loads(self._store.read(name)):
            yield task_from_json(task)


class LabelUnits(beam.DoFn):
    """Tasks to committed parts. Yields the part's name.

    A unit that cannot be read is reported in the run's folder and the others go on; an error that would hit every unit stops.
    """

    def __init__(
        self,
        *,
        cache: Cache,
        run: str,
        request: RequestSpec,
        teacher: TeacherConfig,
        source: SourceConfig,
        generation: GenerationConfig,
    ) -> None:
        self._cache = cache
        self._run = run
        self._request = request
        self._teacher_config = teacher
        self._source_config = source
        self._generation = generation

    def setup(self) -> None:
        """Load the teacher, once a process, and prove that it is the one that was planned."""
        threads = self._generation.torch_threads or max(1, (os.cpu_count() or 1) // self._generation.workers)
        torch.set_num_threads(threads)
        try:
            teacher = shared_teacher(self._teacher_config)
            planned, loaded = self._request.teacher.to_json(), teacher.spec.to_json()
            if loaded != planned:
                differing = [
                    f"{name} {loaded[name]!r} (planned: {planned[name]!r})" for name in planned if loaded[name] != planned[name]
                ]
                raise MismatchError(
                    f"this worker loaded another teacher than was planned: {', '.join(differing)}. Give every worker the same "
                    "checkpoint and the same library versions, and run the same command again"
                )
            self._labeller = UnitLabeller(
                teacher=teacher, source=open_source(self._source_config), request=self._request, config=self._generation
            )
        except DecantError as error:
            self._report(f"setup-{uuid.uuid4().hex[:8]}", error, fatal=True)
            raise

    def start_bundle(self) -> None:
        """Forget the times of the bundle before."""
        self._times: list[dict[str, Any]] = []

    def process(self, task: LabelTask) -> Iterator[str]:
        """Label and commit one unit."""
        existing = self._cache.find_part(task.part)
        if existing is not None and existing.tar_name != task.replaces:
            Metrics.counter("decant", "units_reused").inc()
            yield task.part.name
            return
        try:
            if existing is None:
                labelled = self._labeller.label(task)
                record = self._cache.commit_part(labelled.data, record=labelled.record)
            else:
                filled = self._retry(task, existing)
                if filled is None:
                    Metrics.counter("decant", "units_uncured").inc()
                    yield task.part.name
                    return
                labelled = filled
                record = self._cache.replace_part(filled.data, record=filled.record, replaces=existing.tar_name)
        except SourceError as error:
            self._report(task.part.name, error, fatal=False)
            Metrics.counter("decant", "units_failed").inc()
            return
        except DecantError as error:
            self._report(task.part.name, error, fatal=True)
            raise
        Metrics.counter("decant", "units_labelled").inc()
        Metrics.counter("decant", "rows").inc(record.statistics.num_rows)
        Metrics.counter("decant", "dead_letters").inc(len(record.dead_letters))
        self._times.append(
            {
                "part": task.part.name,
                "num_views": task.num_rows,
                "ended": time.time(),
                "seconds": labelled.seconds,
                "teacher_seconds": labelled.teacher_seconds,
            }
        )
        yield task.part.name

    def _retry(self, task: LabelTask, existing: PartRecord) -> LabelledUnit | None:
        data = self._cache.store.read(self._cache.tar_name(existing))
        return retry(self._labeller, task, data=data, record=existing)

    def finish_bundle(self) -> None:
        """Write how long the bundle's units took."""
        if self._times:
            name = f"{self._run}/times/{uuid.uuid4().hex}.json"
            self._cache.store.write(name, json.dumps(self._times).encode())

    def _report(self, name: str, error: Exception, *, fatal: bool) -> None:
        """Write an error down for the process that started the run. A fatal one is raised as well, and may be the store's own."""
        report = {
            "unit": name,
            "fatal": fatal,
            "kind": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        with contextlib.suppress(CacheError) if fatal else contextlib.nullcontext():
            self._cache.store.write(f"{self._run}/errors/{name}.json", json.dumps(report).encode())


class LabelTasks(beam.PTransform):
    """Task file names to names of committed parts."""

    def __init__(self, *, store: Store, label_units: LabelUnits) -> None:
        super().__init__()
        self._store = store
        self._label_units = label_units

    def expand(self, files: beam.PCollection) -> beam.PCollection:
        """Spread tasks over workers, then label."""
        return (
            files
            | "ReadTasks" >> beam.ParDo(ReadTasks(self._store))
            # Without it the tasks fuse with their source into one bundle on one worker.
            | "SpreadTasks" >> beam.Reshuffle()
            | "LabelUnits" >> beam.ParDo(self._label_units)
        )
