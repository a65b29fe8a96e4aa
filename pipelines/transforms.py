"""The Beam side: tasks by reference, one element a work unit, no data through any shuffle."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator

import apache_beam as beam
import torch
from apache_beam.metrics import Metrics

from pipelines.dead_letter_limit import DeadLetterLimit
from pipelines.doctor.machine import cpu_threads
from pipelines.label_task import LabelTask
from pipelines.label_unit import LabelledUnit, UnitLabeller
from pipelines.labellers import label_unit, labeller_of, make_labeller
from pipelines.retry import relabel, retry
from pipelines.run_times import PassedRows, UnitTimes
from pipelines.task_files import TaskFiles, read_tasks
from pipelines.teachers import load_any_teacher
from pipelines.teachers.base import Teacher
from pipelines.teachers.text_base import TextTeacher
from pipelines.text.labelling import TextUnitLabeller
from pipelines.worker_check import SETUP, Expected, another_cache, check_cache, naming_worker
from storage.cache import Cache
from storage.config import GenerationConfig, SourceConfig, TeacherConfig
from storage.errors import AnotherCacheError, CacheError, DeadLetterLimitError, DecantError, MismatchError, SourceError
from storage.filesystem import Store
from storage.label_runs.heartbeat import BEAT_SECONDS, Heartbeat
from storage.parts import PartRecord
from storage.sources import open_source
from storage.specs import RequestSpec
from storage.teacher_files import local_files

_TIMES_AT_ONCE = 100
_LAST_BEAT_SECONDS = 5.0
"""A run ends a moment after a beat, so that others see when."""
_teachers: dict[str, Teacher | TextTeacher] = {}
_teachers_lock = threading.Lock()


def shared_teacher(config: TeacherConfig) -> Teacher | TextTeacher:
    """Return the teacher of this process; it is loaded once, shared by all threads, and loaded anew when its files change."""
    marks = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in local_files(config) if file.is_file()]
    name = f"{config.model_dump_json()} {marks}"
    with _teachers_lock:
        if name not in _teachers:
            _teachers.clear()
            _teachers[name] = load_any_teacher(config)
        return _teachers[name]


class ReadTasks(beam.DoFn):
    """Task file names to tasks: the job graph does not grow with the number of units."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def process(self, name: str) -> Iterator[tuple[LabelTask, ...]]:
        """Yield the work units of one file."""
        try:
            with naming_worker():
                units = read_tasks(self._store, name=name)
        except FileNotFoundError as error:
            raise another_cache(self._store) from error
        yield from units


class LabelUnits(beam.DoFn):
    """Work units to committed parts. Yields the parts' names.

    A unit that cannot be read is reported in the run's folder and the others go on; an error that would hit every unit stops.
    """

    def __init__(
        self,
        *,
        cache: Cache,
        run: str,
        requests: dict[str, RequestSpec],
        teacher: TeacherConfig,
        source: SourceConfig,
        generation: GenerationConfig,
        held: Iterable[str] = (),
        limit: DeadLetterLimit | None = None,
    ) -> None:
        self._cache = cache
        self._run = run
        self._requests = requests
        self._teacher_config = teacher
        self._source_config = source
        self._generation = generation
        self._held = tuple(held)
        self._limit = limit
        self._expected = Expected.of_this_process(teacher=teacher, source=source)

    def setup(self) -> None:
        """Prove that this worker is as the process that built the job, load the teacher, once a process, and prove that, too."""
        torch.set_num_threads(self._generation.torch_threads or max(1, cpu_threads() // self._generation.workers))
        self._heartbeat = Heartbeat(self._cache, run=self._run.rpartition("/")[2], requests=self._held)
        try:
            self._expected.check_versions(allow_differences=self._generation.allow_version_differences)
            check_cache(self._cache, request=next(iter(self._requests)))
            self._expected.check_paths()
            # Loading may take minutes.
            with self._heartbeat.working():
                self._load()
        except AnotherCacheError:
            # A report would lie where nobody looks, on a disk of this worker's own.
            raise
        except DecantError as error:
            self._report(f"{SETUP}{uuid.uuid4().hex[:8]}", error, fatal=True)
            raise

    def _load(self) -> None:
        teacher = shared_teacher(self._teacher_config)
        for request in self._requests.values():
            _check_teacher(teacher, request=request)
        source = open_source(self._source_config)
        self._labeller = make_labeller(teacher, source=source, requests=self._requests, config=self._generation)

    def start_bundle(self) -> None:
        """Forget what is known of the bundle before."""
        self._times: list[UnitTimes] = []
        self._passed: Counter[str] = Counter()

    def process(self, tasks: tuple[LabelTask, ...]) -> Iterator[str]:
        """Label and commit one unit, for one or several requests."""
        existing = {task: self._cache.find_part(task.part) for task in tasks}
        missing = []
        for task, record in existing.items():
            if record is not None and record.tar_name != task.replaces:
                Metrics.counter("decant", "units_reused").inc()
                self._passed[task.part.request] += self._num_rows(task, record)
                yield task.part.name
            else:
                missing.append(task)
        if not missing:
            # Where another run did the work, going past its parts may take long, too.
            self._heartbeat.beat(after_seconds=BEAT_SECONDS)
            return
        if len(self._times) >= _TIMES_AT_ONCE:
            # A bundle may be all that a worker gets.
            self._write_times()
        with self._heartbeat.working():
            try:
                yield from self._compute(missing, existing=existing)
            except SourceError as error:
                self._report(missing[0].part.name, error, fatal=False)
                Metrics.counter("decant", "units_failed").inc()
            except DeadLetterLimitError as error:
                # Of no unit: an engine that starts the job again would only lose more rows.
                self._report(f"{SETUP}{uuid.uuid4().hex[:8]}", error, fatal=True)
                raise
            except DecantError as error:
                self._report(missing[0].part.name, error, fatal=True)
                raise

    def _compute(self, tasks: list[LabelTask], *, existing: dict[LabelTask, PartRecord | None]) -> Iterator[str]:
        replaced = existing[tasks[0]]
        if replaced is not None:
            (task,) = tasks
            filled = self._retry(task, replaced)
            if filled is None:
                Metrics.counter("decant", "units_uncured").inc()
                self._cache.store.write(f"{self._run}/uncured/{task.part.request}.{task.part.name}.json", b"{}")
            else:
                record = self._cache.replace_part(filled.data, record=filled.record, replaces=replaced.tar_name)
                self._count(task, filled, record)
            yield task.part.name
            return
        committed = []
        for task, unit in zip(tasks, label_unit(self._labeller, tasks), strict=True):
            record = self._cache.commit_part(unit.data, record=unit.record)
            self._count(task, unit, record)
            committed += [record] if record.dead_letters else []
            yield task.part.name
        for record in committed if self._limit is not None else ():
            assert self._limit is not None
            self._limit.check(self._cache, run=self._run, record=record)

    def _count(self, task: LabelTask, labelled: LabelledUnit, record: PartRecord) -> None:
        Metrics.counter("decant", "units_committed").inc()
        Metrics.counter("decant", "rows").inc(record.statistics.num_rows)
        Metrics.counter("decant", "dead_letters").inc(len(record.dead_letters))
        Metrics.distribution("decant", "unit_milliseconds").update(round(1000 * labelled.seconds))
        Metrics.distribution("decant", "teacher_milliseconds").update(round(1000 * labelled.teacher_seconds))
        self._times.append(
            {
                "part": task.part.name,
                "request": task.part.request,
                "num_views": self._num_rows(task, record),
                "ended": time.time(),
                "seconds": labelled.seconds,
                "teacher_seconds": labelled.teacher_seconds,
            }
        )

    def _num_rows(self, task: LabelTask, record: PartRecord) -> int:
        # How many sequences a unit of texts has shows when it is labelled.
        of_text = isinstance(self._labeller, TextUnitLabeller)
        return record.num_samples * task.part.num_views if of_text else task.num_rows

    def _retry(self, task: LabelTask, existing: PartRecord) -> LabelledUnit | None:
        """Return the part with rows for dead letters that have a label now; None where none has."""
        labeller = labeller_of(self._labeller, request=task.part.request)
        if not isinstance(labeller, UnitLabeller):
            return relabel(labeller, task, record=existing)
        data = self._cache.store.read(self._cache.tar_name(existing))
        return retry(labeller, task, data=data, record=existing)

    def finish_bundle(self) -> None:
        """Write how long the bundle's units took, and how many rows it passed over."""
        if self._write_times():
            self._heartbeat.beat(after_seconds=_LAST_BEAT_SECONDS)

    def _write_times(self) -> bool:
        """Write what is known of units since it was written last, and return whether units are among it."""
        passed: list[PassedRows] = [{"request": request, "num_passed_rows": rows} for request, rows in self._passed.items()]
        if self._times or passed:
            name = f"{self._run}/times/{uuid.uuid4().hex}.json"
            self._cache.store.write(name, json.dumps([*self._times, *passed]).encode())
        had_units = bool(self._times)
        self._times, self._passed = [], Counter()
        return had_units

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


def _check_teacher(teacher: Teacher | TextTeacher, *, request: RequestSpec) -> None:
    """Refuse a teacher that is not the one that was planned."""
    planned, loaded = request.teacher.to_json(), teacher.spec.to_json()
    if loaded != planned:
        differing = [
            f"{name} {loaded.get(name)!r} (planned: {planned[name]!r})" for name in planned if loaded.get(name) != planned[name]
        ]
        raise MismatchError(
            f"this worker loaded another teacher than was planned: {', '.join(differing)}. Give every worker the same "
            "checkpoint and the same library versions, and run the same command again"
        )


class NameTaskFiles(beam.PTransform):
    """The names of a run's task files. What the job graph says of them is one element, however many they are."""

    def __init__(self, files: TaskFiles) -> None:
        super().__init__()
        self._files = files

    def expand(self, start: beam.Pipeline) -> beam.PCollection:
        """Name the files on a worker."""
        # The names are not spread as well: of two reshuffles with only functions between, Flink's optimizer drops the second, and
        # all tasks of a file would go to one worker.
        return start | beam.Create([self._files]) | beam.FlatMap(TaskFiles.names)


class LabelTasks(beam.PTransform):
    """Task file names to names of committed parts."""

    def __init__(self, *, store: Store, label_units: LabelUnits, hints: dict[str, str] | None = None) -> None:
        """Label with what some hints say that workers need.

        Args:
            hints: Beam's resource hints.
        """
        super().__init__()
        self._hints = hints or {}
        self._store = store
        self._label_units = label_units

    def expand(self, files: beam.PCollection) -> beam.PCollection:
        """Spread tasks over workers, then label."""
        return (
            files
            | "ReadTasks" >> beam.ParDo(ReadTasks(self._store))
            # Without it the tasks fuse with their source into one bundle on one worker.
            | "SpreadTasks" >> beam.Reshuffle()
            | "LabelUnits" >> beam.ParDo(self._label_units).with_resource_hints(**self._hints)
        )
