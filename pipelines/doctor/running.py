"""Send the job, listen while it runs, and end in time."""

from __future__ import annotations

import copy
import sys
import threading
import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions
from tqdm import tqdm

from pipelines.doctor.judge_engine import Engine, Outcome
from pipelines.doctor.mailbox import Listener
from pipelines.doctor.questions import Questions
from pipelines.doctor.report import ProcessReport, reports_in, without_reports
from pipelines.doctor.transforms import ExamineWorkers, ReportsNotStoredError, remember
from pipelines.engine import failure_of, make_pipeline, run_pipeline, runner_name, runs_in_this_process
from pipelines.engine.names import LOCAL_RUNNERS

_PAUSE_SECONDS = 0.15
_POLL_SECONDS = 0.5
_END_SECONDS = 20.0
"""How long the end of a job is waited for once all its elements were heard of; engines say it late."""
_CANCEL_SECONDS = 10.0
"""How long the cancelling of a job is waited for."""
_PER_PROCESS = 4
_FEWEST_ELEMENTS = 16


def describe_engine(options: PipelineOptions) -> Engine:
    """Return where a job with these options goes."""
    said = options.get_all_options()
    portable = options.view_as(PortableOptions)
    runner = str(said.get("runner") or "")
    local = runner_name(options) in LOCAL_RUNNERS
    # Their options have values where another runner is asked for, too.
    flink = said.get("flink_master") if runner_name(options) == "flinkrunner" else None
    spark = said.get("spark_master_url") if runner_name(options) == "sparkrunner" else None
    return Engine(
        runner=runner.rsplit(".", 1)[-1],
        local=local,
        place="" if local else str(portable.job_endpoint or flink or spark or said.get("region") or ""),
        environment="" if local else str(portable.environment_type or "").upper(),
        workers_at="" if local else str(portable.environment_config or ""),
    )


def enough_elements(options: PipelineOptions, *, workers: int) -> int:
    """Return how many elements let every process of a small cluster have some."""
    said = options.get_all_options()
    counts = [workers, *(said.get(name) for name in ("parallelism", "num_workers", "max_num_workers"))]
    most = max(count for count in counts if isinstance(count, int))
    if runner_name(options) in LOCAL_RUNNERS:
        return _PER_PROCESS * most
    return max(_FEWEST_ELEMENTS, _PER_PROCESS * most)


def send_job(
    questions: Questions,
    *,
    options: PipelineOptions,
    workers: int,
    num_elements: int,
    timeout_seconds: float,
    here: ProcessReport,
    progress: bool,
) -> tuple[Listener, Outcome]:
    """Send the elements through the engine and hear what workers say.

    Args:
        here: what this process says of itself, which is not asked twice where it is a worker, too.
        progress: on terminals, show how many elements were heard of.
        timeout_seconds: after which a job on another machine is cancelled.
    """
    remember(here, questions=questions)
    # Where this process is the only worker there is nobody to leave elements to.
    alone = runs_in_this_process(options, workers=workers)
    questions = questions.model_copy(update={"pause_seconds": 0.0 if alone else _PAUSE_SECONDS})
    # Runners write into the options they are given.
    pipeline = make_pipeline(copy.deepcopy(options), workers=workers, name="doctor")
    _ = pipeline | "Elements" >> beam.Create(list(range(num_elements))) | "Doctor" >> ExamineWorkers(questions)
    listener, started = Listener(questions), time.monotonic()
    if runner_name(options) in LOCAL_RUNNERS:
        failure, timed_out = _run_here(pipeline), False
    else:
        bar = tqdm(
            total=num_elements, unit="element", desc="doctor", file=sys.stderr, disable=not (progress and sys.stderr.isatty())
        )
        with bar:
            failure, timed_out = _run_elsewhere(pipeline, listener, bar=bar, seconds=timeout_seconds)
    seconds = time.monotonic() - started
    listener.listen()
    text = "" if failure is None else f"{type(failure).__name__}: {failure}"
    listener.hear(reports_in(text))
    if failure is None or (ReportsNotStoredError.__name__ in text and listener.reports):
        return listener, Outcome(num_elements=num_elements, seconds=seconds, timed_out=timed_out)
    cause = without_reports(str(failure_of(failure, options=options)))
    return listener, Outcome(num_elements=num_elements, seconds=seconds, failure=without_reports(text), cause=cause)


def _run_here(pipeline: beam.Pipeline) -> Exception | None:
    try:
        run_pipeline(pipeline)
    except Exception as error:  # whatever the engine raises is what is to be explained
        return error
    return None


def _run_elsewhere(
    pipeline: beam.Pipeline, listener: Listener, *, bar: tqdm[None], seconds: float
) -> tuple[Exception | None, bool]:
    """Return what went wrong, and whether the job was given up."""
    failures: list[Exception] = []
    enough = threading.Event()

    def is_enough(error: str) -> bool:
        # An engine that starts failed jobs again would do so with one that fails on purpose; and the first error is of interest.
        if error and not failures:
            failures.append(RuntimeError(error))
        return enough.is_set() or bool(error)

    def run() -> None:
        try:
            run_pipeline(pipeline, until=is_enough)
        except Exception as error:
            failures.append(error)

    running = threading.Thread(target=run, daemon=True, name="decant-doctor-job")
    running.start()
    until = time.monotonic() + seconds
    try:
        while running.is_alive() and time.monotonic() < until:
            running.join(_POLL_SECONDS)
            listener.listen()
            # A bar that is not shown does not count.
            bar.update(len(listener.elements) - bar.n)
            if len(listener.elements) == bar.total:
                # All is known. A job that ends by itself looks better in the engine's pages than one that is cancelled.
                running.join(max(0.0, min(_END_SECONDS, until - time.monotonic())))
                break
        given_up = running.is_alive() and len(listener.elements) < bar.total
        failure = failures[0] if failures else None
    finally:
        enough.set()
        running.join(_CANCEL_SECONDS)
    return failure, given_up and failure is None
