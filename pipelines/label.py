"""`decant label`: plan, run the missing work, commit the label set, and say what was done."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.label_report import LabelReport, make_report
from pipelines.label_task import LabelTask, work_units
from pipelines.plan import LabelPlan, make_plan
from pipelines.progress import PartProgress
from pipelines.retry import retry_tasks
from pipelines.run_times import RunTimes, summed
from pipelines.runner import (
    WorkerDiedError,
    failure_of,
    make_pipeline,
    pipeline_options,
    run_pipeline,
    runs_in_this_process,
)
from pipelines.survey import Survey, survey_run, survey_targets
from pipelines.teachers.text_base import TextTeacher
from pipelines.teachers.text_networks import head_of
from pipelines.transforms import TASKS_PER_FILE, LabelTasks, LabelUnits, shared_teacher, task_to_json
from storage.cache import Cache
from storage.config import ExperimentConfig, SourceConfig, TeacherConfig
from storage.errors import CacheError, ConfigError, CorruptError, DeadLetterLimitError, DecantError, SourceError, TeacherError
from storage.label_set import Manifest, UsedPart, commit_label_set
from storage.parts import PartRecord
from storage.sources import IndexedUnit
from storage.sources.base import Source
from storage.specs import HiddenStatesSpec, RequestSpec
from storage.standing import still_stands
from storage.upkeep.leases import hold_requests
from storage.upkeep.tags import check_experiment_name

_SHOWN_LETTERS = 5


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


def plan_run(config: ExperimentConfig, *, progress: bool, retry_dead_letters: bool = False) -> PlannedRun:
    """Survey a config of one target and find what is missing. See `plan_runs`."""
    return _plan(survey_run(config, progress=progress), retry_dead_letters=retry_dead_letters)


def plan_runs(config: ExperimentConfig, *, progress: bool, retry_dead_letters: bool = False) -> list[PlannedRun]:
    """Survey a config and find what is missing of each of its targets.

    Args:
        retry_dead_letters: count rows of dead letters as missing too, where the unit is unchanged.

    Raises:
        DecantError: anything that would stop the run, found before it starts.
    """
    surveys = survey_targets(config, progress=progress)
    return [_plan(survey, retry_dead_letters=retry_dead_letters) for survey in surveys.values()]


def _plan(survey: Survey, *, retry_dead_letters: bool) -> PlannedRun:
    config = survey.config
    plan = make_plan(
        survey.cache,
        request=survey.request,
        units=survey.units,
        num_views=config.views.count,
        views_per_part=config.generation.views_per_part,
        name=config.name,
    )
    # Where a label set stands it says that nothing is dead; otherwise records do.
    if retry_dead_letters and (plan.standing is None or plan.standing.num_dead_letters):
        units = {unit.unit.name: unit for unit in survey.units}
        plan = replace(plan, tasks=(*plan.tasks, *retry_tasks(survey.cache, parts=plan.parts, units=units, of_text=plan.of_text)))
    check_experiment_name(survey.cache, name=config.name, label_set=plan.label_set)
    return planned(survey, plan=plan)


def planned(survey: Survey, *, plan: LabelPlan) -> PlannedRun:
    """Return the run of a plan over what was surveyed."""
    return PlannedRun(
        config=survey.config,
        cache=survey.cache,
        source=survey.source,
        source_config=survey.source_config,
        teacher_config=survey.teacher_config,
        units=survey.units,
        plan=plan,
        teacher_loaded=survey.teacher_loaded,
    )


def run_label(run: PlannedRun, *, options: PipelineOptions | None = None, progress: bool = True) -> LabelReport:
    """Compute what a plan lacks and commit its label set. See `run_labels`."""
    return run_labels([run], options=options, progress=progress)[0]


def run_labels(runs: Sequence[PlannedRun], *, options: PipelineOptions | None = None, progress: bool = True) -> list[LabelReport]:
    """Compute what the plans of a config lack and commit their label sets.

    What several targets of texts lack of a unit is computed in one pass of the teacher.

    Raises:
        DecantError: the run failed; parts committed until then stay and are not computed again.
    """
    started = time.perf_counter()
    times: dict[str, RunTimes] = {}
    cache = runs[0].cache
    # What is reused may have been nobody's until now: garbage collection beside this run must leave it.
    with hold_requests(cache, requests=frozenset().union(*(run.plan.requests for run in runs))):
        if any(run.plan.tasks for run in runs):
            times = _run_tasks(runs, options=options or pipeline_options([]), progress=progress)
        seconds = time.perf_counter() - started
        for run in runs:
            _keep_head(run)
        manifests = [_commit(run) for run in runs]
    return [
        make_report(
            cache,
            plan=run.plan,
            manifest=manifest,
            seconds=seconds,
            times=summed([times[one] for one in sorted({task.part.request for task in run.plan.tasks}) if one in times]),
        )
        for run, manifest in zip(runs, manifests, strict=True)
    ]


def _keep_head(run: PlannedRun) -> None:
    """Make sure that the head that hidden states name is in the cache."""
    target = run.plan.request.target
    if not isinstance(target, HiddenStatesSpec) or target.head_sha256 is None:
        return
    with contextlib.suppress(CorruptError):
        run.cache.head(target.head_sha256)
        return
    teacher = shared_teacher(run.teacher_config)
    assert isinstance(teacher, TextTeacher)
    head = head_of(teacher)
    found = "none" if head is None else run.cache.add_head(head)
    if found != target.head_sha256:
        raise TeacherError(
            f"the head of teacher {teacher.name} has digest {found[:16]} here, {target.head_sha256[:16]} was planned: another "
            "device or library version computes it otherwise. Remove teachers/ from the cache and run the same command again"
        )


def _run_tasks(runs: Sequence[PlannedRun], *, options: PipelineOptions, progress: bool) -> dict[str, RunTimes]:
    """Compute the tasks of all plans, and return how long they took by request.

    Parts that serve others are of the request they were made for.
    """
    cache = runs[0].cache
    _check_reach(runs[0], options=options)
    for run in runs:
        cache.add_request(run.plan.request)
    times: dict[str, RunTimes] = {}
    tasks = [task for run in runs for task in run.plan.tasks]
    requests = {name: cache.request(name) for name in sorted({task.part.request for task in tasks})}
    if runs[0].plan.of_text:
        _run_pipeline(runs[0], requests=requests, tasks=tasks, options=options, progress=progress, times=times)
        return times
    for name, request in requests.items():
        mine = [task for task in tasks if task.part.request == name]
        _run_pipeline(runs[0], requests={name: request}, tasks=mine, options=options, progress=progress, times=times)
    return times


def _run_pipeline(
    run: PlannedRun,
    *,
    requests: dict[str, RequestSpec],
    tasks: list[LabelTask],
    options: PipelineOptions,
    progress: bool,
    times: dict[str, RunTimes],
) -> None:
    config, cache = run.config, run.cache
    folder = f"runs/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}"
    files = []
    groups = work_units(tasks)
    for start in range(0, len(groups), TASKS_PER_FILE):
        files.append(f"{folder}/tasks/{start // TASKS_PER_FILE:06d}.json")
        in_file = [[task_to_json(task) for task in group] for group in groups[start : start + TASKS_PER_FILE]]
        cache.store.write(files[-1], json.dumps(in_file).encode())
    label_units = LabelUnits(
        cache=cache,
        run=folder,
        requests=requests,
        teacher=run.teacher_config,
        source=run.source_config,
        generation=config.generation,
    )
    pipeline = make_pipeline(options, workers=config.generation.workers)
    _ = pipeline | beam.Create(files) | LabelTasks(store=cache.store, label_units=label_units)
    # Of several targets the parts of a unit are committed together, so one of them shows how far all are.
    most = max(requests, key=lambda name: sum(task.part.request == name for task in tasks))
    shown = [task for task in tasks if task.part.request == most]
    with PartProgress(shown, cache=cache, show=progress and sys.stderr.isatty()):
        try:
            run_pipeline(pipeline)
        except WorkerDiedError:
            raise
        except Exception as error:
            _raise_reported(cache, folder, cause=error)
            raise failure_of(error) from error
    _raise_reported(cache, folder, cause=None)
    for name in cache.store.names(f"{folder}/times"):
        for unit in json.loads(cache.store.read(name)):
            times.setdefault(unit["request"], RunTimes()).add(unit)


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
    num_letters = num_dead = num_rows = 0
    for used in run.plan.parts:
        record = run.cache.find_part(used.part)
        if record is None:
            raise _lost(run, used)
        views = range(used.first_view, used.first_view + used.num_views)
        num_rows += record.num_samples * len(views)
        for letter in record.dead_letters:
            if letter.view is None or letter.view in views:
                num_letters += 1
                num_dead += len(views) if letter.view is None else 1
                if num_letters <= _SHOWN_LETTERS:
                    shown.append(f"  {used.unit_name} {letter.key}: {letter.stage}: {letter.reason}")
        yield used, record
    limit = run.config.generation.dead_letter_limit
    if num_dead <= limit * num_rows:
        return
    if num_letters > _SHOWN_LETTERS:
        shown.append(f"  ... and {num_letters - _SHOWN_LETTERS} more")
    raise DeadLetterLimitError(
        f"{num_dead} of {num_rows} rows have no label, more than generation.dead_letter_limit {limit} allows; "
        "no label set was made, what was computed is kept:\n" + "\n".join(shown) + "\n"
        "Mend or remove these samples, or raise the limit, and run the same command again"
    )


def _lost(run: PlannedRun, used: UsedPart) -> CacheError:
    record = run.cache.record_name(used.part)
    if not run.cache.store.exists(record):
        return CacheError(
            f"part {used.part.name} of unit {used.unit_name!r} is not committed although the pipeline ended; "
            "run the same command again"
        )
    return CacheError(
        f"{run.cache.store.url}/{record}: the tar of this part, of unit {used.unit_name!r}, is missing or not as long as was "
        "committed; remove this record and run the same command again, or run decant repair"
    )


def _commit(run: PlannedRun) -> Manifest:
    run.cache.add_request(run.plan.request)
    standing = run.plan.standing
    if standing is not None and not run.plan.tasks and _is_enough(run, standing):
        run.cache.point_name(run.config.name, label_set=standing.id)
        return standing
    # Writes nothing before the last record was read: a run with too many dead letters leaves no label set.
    return commit_label_set(
        run.cache,
        identity=run.plan.label_set,
        name=run.config.name,
        request=run.plan.request,
        parts=_records(run),
        num_views=run.plan.num_views,
        classes=run.source.classes,
        source=run.source_config.model_dump(mode="json"),
    ).manifest


def _is_enough(run: PlannedRun, manifest: Manifest) -> bool:
    """Return whether a label set that stands can be taken as it is, without a look at its parts' records."""
    # A letter may be of all views of its sample; which ones are, only the records say.
    most_dead_rows = manifest.num_dead_letters * manifest.num_views
    num_rows = manifest.num_samples * manifest.num_views
    return most_dead_rows <= run.config.generation.dead_letter_limit * num_rows and still_stands(run.cache, manifest)
