"""The folder of a run: written before its pipelines start, read when they have ended."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions

from pipelines.engine import runs_elsewhere
from pipelines.label_task import LabelTask, Tasks
from pipelines.run_times import RunTimes
from pipelines.task_files import TaskFiles, write_tasks
from storage.cache import Cache
from storage.errors import CacheError, DeadLetterLimitError, DecantError, SourceError
from storage.label_runs.counting import RunCounter
from storage.label_runs.folder import PartsTable, RunFolder, RunInfo, RunTarget
from storage.label_runs.under_way import detached_runs, is_under_way, why_wait
from storage.mapping import map_ahead

_MOST_MESSAGES = 5
_NAMES_AT_A_TIME = 65_536
_READ_AT_ONCE = 16


class RunUnderWayError(DecantError):
    """Another run computes already what this one would."""


@dataclass(frozen=True, kw_only=True)
class SubmittedRun:
    """A run that goes on without the command that started it.

    Attributes:
        watch: the command that follows it.
        next: the command that commits its label sets in the end, if it is known.
        jobs: what the engine's pages call its jobs.
    """

    run: str
    runner: str
    num_parts: int
    num_rows: int
    jobs: tuple[str, ...]
    watch: str
    next: str | None


class RunWriter:
    """Writes down what a run is to do, while its tasks are made."""

    def __init__(self, cache: Cache, *, name: str) -> None:
        self.folder = RunFolder(store=cache.store, name=name)
        self._table = PartsTable()
        self._num_units = self._num_parts = self._num_rows = 0

    def write_tasks(self, units: Iterable[tuple[LabelTask, ...]]) -> TaskFiles:
        """Write its work units."""
        return write_tasks(self.folder.store, folder=self.folder.path, units=self._noted(units))

    def _noted(self, units: Iterable[tuple[LabelTask, ...]]) -> Iterator[tuple[LabelTask, ...]]:
        for unit in units:
            for task in unit:
                self._table.add(request=task.part.request, part=task.part.name, num_rows=task.num_rows, replaces=task.replaces)
                self._num_rows += task.num_rows
            self._num_units += 1
            self._num_parts += len(unit)
            yield unit

    def start(
        self,
        *,
        experiment: str,
        targets: Sequence[RunTarget],
        options: PipelineOptions,
        pipelines: Sequence[beam.Pipeline],
        workers: int,
        of_text: bool,
        detached: bool,
        command: str | None,
    ) -> RunInfo:
        """Write what others need to know, last."""
        info = RunInfo(
            run=self.folder.name,
            name=experiment,
            targets=tuple(targets),
            runner=str(options.view_as(StandardOptions).runner),
            local=not runs_elsewhere(options),
            detached=detached,
            workers=workers,
            host=socket.gethostname(),
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            decant=version("decant"),
            jobs=tuple(
                job for pipeline in pipelines if (job := pipeline._options.view_as(GoogleCloudOptions).job_name) is not None
            ),
            command=command,
            of_text=of_text,
            num_units=self._num_units,
            num_parts=self._num_parts,
            num_rows=self._num_rows,
        )
        return self.folder.write(info, parts=self._table.finish())


@contextlib.contextmanager
def reported_end(run: RunFolder) -> Iterator[None]:
    """Write down an error that ends the run in this process, so that who follows it need not wait until it is silent."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(CacheError):
            said = [report["message"] for report in _reports(run, run.store.names(f"{run.path}/errors")[:_MOST_MESSAGES])]
            # What workers said themselves needs no second report.
            if not any(message in str(error) for message in said):
                why = DecantError("the run was interrupted") if isinstance(error, KeyboardInterrupt) else error
                run.report(f"setup-{os.getpid()}", why, fatal=True)
        raise


def _reports(run: RunFolder, names: Iterable[str]) -> list[dict[str, Any]]:
    return [json.loads(run.store.read(name)) for name in names]


def raise_reported(run: RunFolder, *, info: RunInfo, cause: Exception | None) -> None:
    """Raise the errors that workers wrote down, the fatal one first: it is why the others stopped.

    Args:
        cause: why the pipeline failed; None: it did not, so that only parts that are missing count. What an engine tried again is
            no error.
    """
    names = run.store.names(f"{run.path}/errors")
    if not names:
        return
    if cause is None:
        counter = RunCounter(run, parts=run.parts(info))
        counts = counter.look_at_all()
        if counts.done:
            return
        if counts.done_or_failed:
            names = [name for name in names if counter.is_missing(name.rsplit("/", 1)[-1].removesuffix(".json"))]
    reports = _reports(run, names)
    reports.sort(key=lambda report: not report["fatal"])
    messages = [report["message"] for report in reports[:_MOST_MESSAGES]]
    more = (
        f"\n... and {len(reports) - _MOST_MESSAGES} more, in {run.store.url}/{run.path}/errors"
        if len(reports) > _MOST_MESSAGES
        else ""
    )
    if reports[0]["fatal"]:
        kind = DeadLetterLimitError if reports[0]["kind"] == DeadLetterLimitError.__name__ else DecantError
        raise kind(messages[0]) from cause
    raise SourceError(
        f"{len(reports)} units could not be labelled; all others are committed:\n" + "\n".join(messages) + more
    ) from cause


def read_times(run: RunFolder) -> dict[str, RunTimes]:
    """Return how long the run's units took, by request."""
    times: dict[str, RunTimes] = {}
    for data in map_ahead(run.store.read, run.store.names(f"{run.path}/times"), num_threads=_READ_AT_ONCE):
        for unit in json.loads(data):
            times.setdefault(unit["request"], RunTimes()).add(unit)
    return times


def refuse_under_way(cache: Cache, *, targets: Sequence[Tasks]) -> None:
    """Refuse to compute what a detached run computes at this moment.

    Args:
        targets: tasks of each target.

    Raises:
        RunUnderWayError: there is such a run.
    """
    requests = frozenset().union(*(tasks.requests for tasks in targets))
    for follower, snapshot in detached_runs(cache.store, requests=requests):
        if not is_under_way(snapshot):
            continue
        num_shared = sum(
            follower.counter.num_undone(request, names) for tasks in targets for request, names in _names_by_request(tasks)
        )
        if num_shared:
            raise RunUnderWayError(
                why_wait(cache.store, snapshot, num_shared=num_shared, num_missing=sum(len(tasks) for tasks in targets))
            )


def _names_by_request(tasks: Tasks) -> Iterator[tuple[str, list[str]]]:
    """Yield names of parts with their request, some thousands at a time."""
    for request in sorted(tasks.requests):
        of_request = tasks.of_request(request)
        for start in range(0, len(of_request), _NAMES_AT_A_TIME):
            yield request, [task.part.name for task in of_request[start : start + _NAMES_AT_A_TIME]]
