"""`decant label`: plan, run the missing work, commit the label set, and say what was done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.committing import commit, keep_head
from pipelines.dead_letter_limit import DeadLetterLimit
from pipelines.detaching import check_detachable, confirm
from pipelines.engine import (
    EngineLostError,
    WorkerDiedError,
    check_reach,
    failure_of,
    make_pipeline,
    pipeline_options,
    resource_hints,
    run_pipeline,
    runs_elsewhere,
    submit_pipeline,
    waits_for_dead_workers,
    workers_per_machine,
)
from pipelines.label_report import LabelReport, make_report
from pipelines.label_run import RunWriter, SubmittedRun, raise_reported, read_times, refuse_under_way, reported_end
from pipelines.label_task import ListedTasks
from pipelines.local_paths import absolute_source, absolute_teacher, absolute_url
from pipelines.plan import LabelPlan, make_plan
from pipelines.planned_run import PlannedRun
from pipelines.progress import RunProgress
from pipelines.retry import retry_tasks
from pipelines.run_times import RunTimes, summed
from pipelines.silent_workers import SilentWorkers
from pipelines.survey import Survey, survey_run, survey_targets
from pipelines.transforms import LabelTasks, LabelUnits, NameTaskFiles
from pipelines.work_units import work_units
from pipelines.worker_check import has_refused
from storage.cache import Cache
from storage.config import ExperimentConfig
from storage.errors import AnotherCacheError, DecantError
from storage.label_runs.folder import RunFolder, RunInfo, RunTarget, new_run_name
from storage.label_runs.under_way import release_ended
from storage.upkeep.leases import hold_requests, leave_hold, release_hold
from storage.upkeep.tags import check_experiment_name


def plan_run(config: ExperimentConfig, *, progress: bool, retry_dead_letters: bool = False, writes: bool = False) -> PlannedRun:
    """Survey a config of one target and find what is missing. See `plan_runs`."""
    return _plan(survey_run(config, progress=progress, writes=writes), retry_dead_letters=retry_dead_letters)


def plan_runs(
    config: ExperimentConfig, *, progress: bool, retry_dead_letters: bool = False, writes: bool = False
) -> list[PlannedRun]:
    """Survey a config and find what is missing of each of its targets.

    Args:
        retry_dead_letters: count rows of dead letters as missing too, where the unit is unchanged.
        writes: refuse at once a cache that cannot be written, as a run of the plan would when all is surveyed.

    Raises:
        DecantError: anything that would stop the run, found before it starts.
    """
    surveys = survey_targets(config, progress=progress, writes=writes)
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
        retried = retry_tasks(survey.cache, parts=plan.parts, units=units, of_text=plan.of_text)
        plan = replace(plan, tasks=ListedTasks((*plan.tasks, *retried)))
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


def run_label(
    run: PlannedRun, *, options: PipelineOptions | None = None, progress: bool = True, anyway: bool = False
) -> LabelReport:
    """Compute what a plan lacks and commit its label set. See `run_labels`."""
    return run_labels([run], options=options, progress=progress, anyway=anyway)[0]


def run_labels(
    runs: Sequence[PlannedRun],
    *,
    options: PipelineOptions | None = None,
    progress: bool = True,
    line_seconds: float | None = None,
    anyway: bool = False,
    command: str | None = None,
) -> list[LabelReport]:
    """Compute what the plans of a config lack and commit their label sets.

    What several targets lack of a unit is computed in one pass of the teacher.

    Args:
        line_seconds: how often a line about progress is written to standard error, in place of a bar; None: a bar, on terminals.
        anyway: also compute what a detached run computes at this moment.
        command: what goes on with the run if it ends, for those who watch it.

    Raises:
        RunUnderWayError: a detached run computes the same.
        DecantError: the run failed; parts committed until then stay and are not computed again.
    """
    began = time.perf_counter()
    times: dict[str, RunTimes] = {}
    cache, name = runs[0].cache, new_run_name()
    # What is reused may have been nobody's until now: garbage collection beside this run must leave it.
    with hold_requests(cache, requests=_held(runs), run=name):
        if any(run.plan.tasks for run in runs):
            if not anyway:
                refuse_under_way(cache, targets=[run.plan.tasks for run in runs])
            started = _start(runs, name=name, options=options or pipeline_options([]), command=command, detached=False)
            times = _run_to_the_end(started, progress=progress, line_seconds=line_seconds)
        seconds = time.perf_counter() - began
        for run in runs:
            keep_head(run)
        manifests = [commit(run) for run in runs]
    release_ended(cache.store, requests=_held(runs))
    return [
        make_report(
            cache,
            name=run.config.name,
            plan=run.plan,
            manifest=manifest,
            seconds=seconds,
            times=summed([times[one] for one in sorted(run.plan.tasks.requests) if one in times]),
        )
        for run, manifest in zip(runs, manifests, strict=True)
    ]


def submit_labels(
    runs: Sequence[PlannedRun], *, options: PipelineOptions, anyway: bool = False, command: str | None = None
) -> SubmittedRun:
    """Hand what the plans of a config lack to an engine that goes on without this process, and return at once.

    Nothing is committed but parts: when all are there, `run_labels` on a new plan commits the label sets.

    Args:
        options: as `check_detachable` takes them.
        anyway, command: as for `run_labels`.

    Raises:
        RunUnderWayError: a detached run computes the same.
        DecantError: the engine did not take it.
    """
    check_detachable(options)
    cache, name = runs[0].cache, new_run_name()
    try:
        leave_hold(cache, run=name, requests=_held(runs))
        if not anyway:
            refuse_under_way(cache, targets=[run.plan.tasks for run in runs])
        for run in runs:
            keep_head(run)
        started = _start(runs, name=name, options=options, command=command, detached=True)
    except BaseException:
        release_hold(cache.store, run=name)
        raise
    # From here on an engine may work on it, so that the hold stays.
    with reported_end(started.folder):
        for pipeline in started.pipelines:
            try:
                confirm(submit_pipeline(pipeline))
            except DecantError:
                raise
            except Exception as error:
                raise failure_of(error, options=options) from error
    info = started.info
    return SubmittedRun(
        run=name,
        runner=info.runner,
        num_parts=info.num_parts,
        num_rows=info.num_rows,
        jobs=info.jobs,
        watch=f"decant cache watch {cache.store.url} {name}",
        next=command,
    )


def _held(runs: Sequence[PlannedRun]) -> frozenset[str]:
    return frozenset().union(*(run.plan.requests for run in runs))


@dataclass(frozen=True, kw_only=True)
class _StartedRun:
    """A run that is written down, and what does it."""

    folder: RunFolder
    info: RunInfo
    pipelines: tuple[beam.Pipeline, ...]


def _start(
    runs: Sequence[PlannedRun], *, name: str, options: PipelineOptions, command: str | None, detached: bool
) -> _StartedRun:
    """Write down the tasks of all plans, and make the pipeline that does them, all targets of a unit in one pass of the teacher.

    Parts that serve others are of the request they were made for.
    """
    first, cache = runs[0], runs[0].cache
    check_reach(
        options,
        cache=cache.store.url,
        source=first.source_config,
        teacher=first.teacher_config,
        generation=first.config.generation,
    )
    for run in runs:
        cache.add_request(run.plan.request)
    requests = {one: cache.request(one) for one in sorted(frozenset().union(*(run.plan.tasks.requests for run in runs)))}
    writer = RunWriter(cache, name=name)
    seen, teacher, source = cache, first.teacher_config, first.source_config
    if runs_elsewhere(options):
        # A worker's working folder is another.
        seen, teacher, source = Cache.at(absolute_url(cache.store.url)), absolute_teacher(teacher), absolute_source(source)
    hints = resource_hints(options, generation=first.config.generation)
    workers = workers_per_machine(options, workers=first.config.generation.workers)
    generation = first.config.generation.model_copy(update={"workers": workers})
    units = work_units([run.plan.tasks for run in runs if run.plan.tasks], units=first.units)
    files = writer.write_tasks(units)
    label_units = LabelUnits(
        cache=seen,
        run=writer.folder.path,
        requests=requests,
        teacher=teacher,
        source=source,
        generation=generation,
        held=sorted(_held(runs)),
        limit=_dead_letter_limit(runs),
    )
    pipeline = make_pipeline(options, workers=first.config.generation.workers, name=first.config.name)
    _ = pipeline | NameTaskFiles(files) | LabelTasks(store=seen.store, label_units=label_units, hints=hints)
    info = writer.start(
        experiment=first.config.name if len(runs) == 1 else first.config.name.rpartition(".")[0],
        targets=[
            RunTarget(name=run.config.name, request=run.plan.request.fingerprint(), label_set=run.plan.label_set) for run in runs
        ],
        options=options,
        pipelines=[pipeline],
        workers=first.config.generation.workers,
        of_text=first.plan.of_text,
        detached=detached,
        command=command,
    )
    return _StartedRun(folder=writer.folder, info=info, pipelines=(pipeline,))


def _dead_letter_limit(runs: Sequence[PlannedRun]) -> DeadLetterLimit:
    # How many sequences a cut or packed text becomes shows when it is labelled, and with it what share of them is lost.
    whole = [run.plan for run in runs if getattr(run.plan.request.view, "layout", "truncate") == "truncate"]
    return DeadLetterLimit(
        share=runs[0].config.generation.dead_letter_limit,
        num_rows={plan.request.fingerprint(): plan.num_rows for plan in whole},
    )


def _run_to_the_end(started: _StartedRun, *, progress: bool, line_seconds: float | None) -> dict[str, RunTimes]:
    """Run the pipelines of a run, and return how long its units took by request."""
    folder, info = started.folder, started.info
    with reported_end(folder), RunProgress(folder, info=info, show=progress, line_seconds=line_seconds):
        for pipeline in started.pipelines:
            workers = SilentWorkers(folder, info=info) if waits_for_dead_workers(pipeline._options) else None
            # Of a worker with another cache nothing but the engine tells.
            heard: list[str] = []

            def is_over(error: str, workers: SilentWorkers | None = workers, heard: list[str] = heard) -> bool:
                if AnotherCacheError.__name__ in error:
                    heard.append(error)
                return bool(heard) or has_refused(folder) or (workers is not None and workers.look())

            options = pipeline._options
            try:
                run_pipeline(pipeline, until=is_over)
            except (WorkerDiedError, EngineLostError):
                raise
            except Exception as error:
                raise_reported(folder, info=info, cause=error)
                raise failure_of(error, options=options) from error
            if heard:
                raise failure_of(RuntimeError(heard[0]), options=options)
        raise_reported(folder, info=info, cause=None)
    return read_times(folder)
