"""`decant label`: plan, run the missing work, commit the label set, and say what was done."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypedDict

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from tqdm import tqdm

from pipelines.label_unit import LabelTask
from pipelines.plan import LabelPlan, make_plan
from pipelines.progress import PartProgress
from pipelines.request import check_classes, resolve_request
from pipelines.retry import num_cured_rows, retry_tasks
from pipelines.runner import (
    WorkerDiedError,
    failure_of,
    make_pipeline,
    pipeline_options,
    run_pipeline,
    runs_in_this_process,
)
from pipelines.teacher_memo import TeacherFacts, TeacherMemo
from pipelines.transforms import TASKS_PER_FILE, LabelTasks, LabelUnits, shared_teacher, task_to_json
from storage.cache import Cache
from storage.config import ExperimentConfig, SourceConfig, TeacherConfig
from storage.errors import CacheError, ConfigError, DeadLetterLimitError, DecantError, SourceError
from storage.hashing import fingerprint
from storage.label_set import LabelSet, UsedPart, commit_label_set, label_set_id
from storage.parts import PartRecord
from storage.sources import IndexedUnit, SourceMemo, index_source, open_source
from storage.sources.base import Source
from storage.specs import RequestSpec
from storage.upkeep.leases import hold_requests
from storage.upkeep.tags import check_experiment_name

_INDEX_THREADS = 4
_SHOWN_LETTERS = 5


class UnitTimes(TypedDict):
    """How long a unit took, as workers report it; `ended` is a POSIX time."""

    part: str
    num_views: int
    ended: float
    seconds: float
    teacher_seconds: float


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """Everything a run needs to know before it starts."""

    config: ExperimentConfig
    cache: Cache
    source: Source
    source_config: SourceConfig
    teacher_config: TeacherConfig
    plan: LabelPlan
    teacher_loaded: bool


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What a run did.

    Attributes:
        label_set: id of the committed label set.
        num_computed_rows: rows computed by this run; the others were there.
        num_retried_rows: those of them that were dead letters before.
        num_cured_rows: those of these that have a label now.
        bytes_per_row: bytes of parts, over rows.
        mass_kept: mean probability mass of kept classes.
        agreement: share of labelled rows whose most probable class is the hard label; None without hard labels.
        codec_kl_mean: mean KL of the exact selection to what is stored, nats.
        seconds: wall time of the pipeline, start-up included.
        rows_per_second: rows computed over the time from the first unit's start to the last one's end; start-up left out.
        teacher_rows_per_second: rows computed over seconds inside the teacher, summed over workers.
    """

    name: str
    label_set: str
    num_units: int
    num_samples: int
    num_rows: int
    num_computed_rows: int
    num_retried_rows: int
    num_cured_rows: int
    num_dead_letters: int
    parts_bytes: int
    bytes_per_row: float
    mass_kept: float
    agreement: float | None
    codec_kl_mean: float
    codec_kl_max: float
    seconds: float
    rows_per_second: float | None
    teacher_rows_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a config says, checked against the world: the request it makes and what its source holds."""

    config: ExperimentConfig
    cache: Cache
    source: Source
    source_config: SourceConfig
    teacher_config: TeacherConfig
    request: RequestSpec
    units: tuple[IndexedUnit, ...]
    teacher_loaded: bool


def survey_run(config: ExperimentConfig, *, progress: bool) -> Survey:
    """Check a config against the world. Loads the teacher only if nobody did before.

    Raises:
        DecantError: anything that would stop the run, found before it starts.
    """
    missing = [name for name in ("cache", "source", "teacher") if getattr(config, name) is None]
    if missing:
        raise ConfigError("\n".join(f"{name}: is needed to label" for name in missing))
    assert config.cache is not None
    assert config.source is not None
    assert config.teacher is not None
    cache = Cache.at(config.cache)
    cache.store.check_writable()
    source = open_source(config.source)
    memo = TeacherMemo(cache)
    facts = memo.find(config.teacher)
    loaded = facts is None
    if facts is None:
        facts = TeacherFacts.of(shared_teacher(config.teacher))
        memo.remember(config.teacher, facts=facts)
    request = resolve_request(config, facts=facts)
    source_memo = SourceMemo(f"{cache.store.url}/sources/{fingerprint(config.source.model_dump(mode='json'))[:32]}.parquet")
    with tqdm(unit="unit", desc="index", file=sys.stderr, disable=not (progress and sys.stderr.isatty())) as bar:
        index = index_source(
            source,
            memo=source_memo,
            num_threads=_INDEX_THREADS,
            on_progress=lambda done, total: _advance(bar, done=done, total=total),
        )
    check_classes(facts, source_classes=source.classes)
    return Survey(
        config=config,
        cache=cache,
        source=source,
        source_config=config.source,
        teacher_config=config.teacher,
        request=request,
        units=index.units,
        teacher_loaded=loaded,
    )


def plan_run(config: ExperimentConfig, *, progress: bool, retry_dead_letters: bool = False) -> PlannedRun:
    """Survey a config and find what is missing.

    Args:
        retry_dead_letters: count rows of dead letters as missing too, where the unit is unchanged.

    Raises:
        DecantError: anything that would stop the run, found before it starts.
    """
    survey = survey_run(config, progress=progress)
    plan = make_plan(
        survey.cache,
        request=survey.request,
        units=survey.units,
        num_views=config.views.count,
        views_per_part=config.generation.views_per_part,
    )
    if retry_dead_letters:
        units = {unit.unit.name: unit for unit in survey.units}
        plan = replace(plan, tasks=(*plan.tasks, *retry_tasks(survey.cache, parts=plan.parts, units=units)))
    identity = label_set_id(request=plan.request.fingerprint(), parts=plan.parts)
    check_experiment_name(survey.cache, name=config.name, label_set=identity)
    return planned(survey, plan=plan)


def planned(survey: Survey, *, plan: LabelPlan) -> PlannedRun:
    """Return the run of a plan over what was surveyed."""
    return PlannedRun(
        config=survey.config,
        cache=survey.cache,
        source=survey.source,
        source_config=survey.source_config,
        teacher_config=survey.teacher_config,
        plan=plan,
        teacher_loaded=survey.teacher_loaded,
    )


def run_label(run: PlannedRun, *, options: PipelineOptions | None = None, progress: bool = True) -> LabelReport:
    """Compute what the plan lacks and commit its label set.

    Raises:
        DecantError: the run failed; parts committed until then stay and are not computed again.
    """
    started = time.perf_counter()
    times: list[UnitTimes] = []
    # What is reused may have been nobody's until now: garbage collection beside this run must leave it.
    with hold_requests(run.cache, requests={run.plan.request.fingerprint(), *(used.part.request for used in run.plan.parts)}):
        if run.plan.tasks:
            times = _run_tasks(run, options=options or pipeline_options([]), progress=progress)
        seconds = time.perf_counter() - started
        label_set = _commit(run)
    return _report(run, label_set, seconds=seconds, times=times)


def _run_tasks(run: PlannedRun, *, options: PipelineOptions, progress: bool) -> list[UnitTimes]:
    cache, plan = run.cache, run.plan
    _check_reach(run, options=options)
    cache.add_request(plan.request)
    times: list[UnitTimes] = []
    for request in sorted({task.part.request for task in plan.tasks}):
        tasks = [task for task in plan.tasks if task.part.request == request]
        times += _run_request(run, request=cache.request(request), tasks=tasks, options=options, progress=progress)
    return times


def _run_request(
    run: PlannedRun, *, request: RequestSpec, tasks: list[LabelTask], options: PipelineOptions, progress: bool
) -> list[UnitTimes]:
    """Compute tasks of one request; parts that serve others are of the request they were made for."""
    config, cache = run.config, run.cache
    folder = f"runs/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
    files = []
    for start in range(0, len(tasks), TASKS_PER_FILE):
        files.append(f"{folder}/tasks/{start // TASKS_PER_FILE:06d}.json")
        in_file = [task_to_json(task) for task in tasks[start : start + TASKS_PER_FILE]]
        cache.store.write(files[-1], json.dumps(in_file).encode())
    label_units = LabelUnits(
        cache=cache,
        run=folder,
        request=request,
        teacher=run.teacher_config,
        source=run.source_config,
        generation=config.generation,
    )
    pipeline = make_pipeline(options, workers=config.generation.workers)
    _ = pipeline | beam.Create(files) | LabelTasks(store=cache.store, label_units=label_units)
    with PartProgress(tasks, cache=cache, show=progress and sys.stderr.isatty()):
        try:
            run_pipeline(pipeline)
        except WorkerDiedError:
            raise
        except Exception as error:
            _raise_reported(cache, folder, cause=error)
            raise failure_of(error) from error
    _raise_reported(cache, folder, cause=None)
    times: list[UnitTimes] = []
    for name in cache.store.names(f"{folder}/times"):
        times += json.loads(cache.store.read(name))
    return times


def _check_reach(run: PlannedRun, *, options: PipelineOptions) -> None:
    """Refuse stores that only this process can see where others work."""
    if runs_in_this_process(options, workers=run.config.generation.workers):
        return
    paths = run.source_config.path
    urls = [run.cache.store.url, *([paths] if isinstance(paths, str) else paths)]
    for url in urls:
        if url.startswith("memory://"):
            raise ConfigError(
                f"{url} lies in the memory of this process, where its workers cannot see it; set generation.workers: 1 and the "
                "local runner, or use another store"
            )


def _raise_reported(cache: Cache, folder: str, *, cause: Exception | None) -> None:
    """Raise the errors that workers wrote down, the fatal one first: it is why the others stopped."""
    reports = [json.loads(cache.store.read(name)) for name in cache.store.names(f"{folder}/errors")]
    reports.sort(key=lambda report: not report["fatal"])
    if not reports:
        return
    messages = [report["message"] for report in reports[:5]]
    more = f"\n... and {len(reports) - 5} more, in {cache.store.url}/{folder}/errors" if len(reports) > 5 else ""
    if reports[0]["fatal"]:
        raise DecantError(messages[0]) from cause
    raise SourceError(
        f"{len(reports)} units could not be labelled; all others are committed:\n" + "\n".join(messages) + more
    ) from cause


def _records(run: PlannedRun) -> Iterator[tuple[UsedPart, PartRecord]]:
    """Yield the parts of a run with their records.

    Raises:
        CacheError: a part is not committed.
        DeadLetterLimitError: after the last part, more rows have no label than the config allows.
    """
    shown: list[str] = []
    num_letters = num_dead = 0
    for used in run.plan.parts:
        record = run.cache.find_part(used.part)
        if record is None:
            raise CacheError(
                f"part {used.part.name} of unit {used.unit_name!r} is not committed although the pipeline ended; "
                "run the same command again"
            )
        views = range(used.first_view, used.first_view + used.num_views)
        for letter in record.dead_letters:
            if letter.view is None or letter.view in views:
                num_letters += 1
                num_dead += len(views) if letter.view is None else 1
                if num_letters <= _SHOWN_LETTERS:
                    shown.append(f"  {used.unit_name} {letter.key}: {letter.stage}: {letter.reason}")
        yield used, record
    limit = run.config.generation.dead_letter_limit
    if num_dead <= limit * run.plan.num_rows:
        return
    if num_letters > _SHOWN_LETTERS:
        shown.append(f"  ... and {num_letters - _SHOWN_LETTERS} more")
    raise DeadLetterLimitError(
        f"{num_dead} of {run.plan.num_rows} rows have no label, more than generation.dead_letter_limit {limit} allows; "
        "no label set was made, what was computed is kept:\n" + "\n".join(shown) + "\n"
        "Mend or remove these samples, or raise the limit, and run the same command again"
    )


def _commit(run: PlannedRun) -> LabelSet:
    run.cache.add_request(run.plan.request)
    identity = label_set_id(request=run.plan.request.fingerprint(), parts=run.plan.parts)
    # Writes nothing before the last record was read: a run with too many dead letters leaves no label set.
    return commit_label_set(
        run.cache,
        identity=identity,
        name=run.config.name,
        request=run.plan.request,
        parts=_records(run),
        num_views=run.plan.num_views,
        classes=run.source.classes,
        source=run.source_config.model_dump(mode="json"),
    )


def _report(run: PlannedRun, label_set: LabelSet, *, seconds: float, times: list[UnitTimes]) -> LabelReport:
    manifest = label_set.manifest
    statistics = manifest.statistics
    rows = max(statistics.num_rows, 1)
    timed_rows = sum(unit["num_views"] for unit in times)
    teacher_seconds = sum(unit["teacher_seconds"] for unit in times)
    agreement = statistics.num_agreeing_rows / statistics.num_labelled_rows if statistics.num_labelled_rows else None
    return LabelReport(
        name=manifest.name,
        label_set=manifest.id,
        num_units=manifest.num_units,
        num_samples=manifest.num_samples,
        num_rows=manifest.num_rows,
        num_computed_rows=run.plan.num_missing_rows,
        num_retried_rows=sum(task.num_dead_rows for task in run.plan.tasks),
        num_cured_rows=num_cured_rows(run.cache, run.plan.tasks),
        num_dead_letters=manifest.num_dead_letters,
        parts_bytes=manifest.parts_bytes,
        bytes_per_row=manifest.parts_bytes / rows,
        mass_kept=statistics.mass_kept_sum / rows,
        agreement=agreement,
        codec_kl_mean=statistics.codec_kl_sum / rows,
        codec_kl_max=statistics.codec_kl_max,
        seconds=seconds,
        rows_per_second=timed_rows / _busy_seconds(times) if times else None,
        teacher_rows_per_second=timed_rows / teacher_seconds if teacher_seconds else None,
    )


def _busy_seconds(times: list[UnitTimes]) -> float:
    """Return the wall time from the first unit's start to the last one's end."""
    return max(unit["ended"] for unit in times) - min(unit["ended"] - unit["seconds"] for unit in times)


def _advance(bar: tqdm[None], *, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)
