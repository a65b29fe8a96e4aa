"""Run a pipeline to its end on any engine."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.engine.flink import FlinkMaster
from pipelines.engine.flink_job import FlinkWatch
from pipelines.engine.flink_uploads import no_uploads_left
from pipelines.engine.following import RESUME, EngineLostError, Watch
from pipelines.engine.job_service import watch_job_service
from pipelines.engine.local import watched_workers
from pipelines.engine.names import runner_name

_LOOK_SECONDS = 2
_LAST_WORDS_SECONDS = 5


def run_pipeline(pipeline: beam.Pipeline, *, until: Callable[[str], bool] | None = None) -> Any:
    """Run a pipeline to its end and return Beam's result.

    A job elsewhere is cancelled when the user interrupts this process; it goes on when this process is killed.

    Args:
        until: is asked again and again while a job runs elsewhere, and told its last error so far, "" where there is none;
            once it says true the job is cancelled.

    Raises:
        WorkerDiedError: a worker process of the local runner died.
        EngineLostError: the engine went away.
        KeyboardInterrupt: the user interrupted the run, wherever Beam was.
    """
    # Beam overwrites runner and master while it submits.
    here = isinstance(pipeline.runner, FnApiRunner | BundleBasedDirectRunner)
    watch = None if here else _watch_of(pipeline._options)
    with watched_workers(), _beam_speaks_as_itself():
        if here:
            result = pipeline.run()
            result.wait_until_finish()
        else:
            result = _hand_over(pipeline, watch=watch)
            _follow(result, watch=watch, until=until)
    return result


def submit_pipeline(pipeline: beam.Pipeline) -> Any:
    """Hand a pipeline to an engine that goes on without this process, and return Beam's result, not waiting for the end.

    Raises:
        EngineLostError: the engine does not answer.
        KeyboardInterrupt: the user interrupted it; a job that came up all the same was cancelled.
    """
    with _beam_speaks_as_itself():
        return _hand_over(pipeline, watch=_watch_of(pipeline._options))


def _hand_over(pipeline: beam.Pipeline, *, watch: Watch | None) -> Any:
    with no_uploads_left(pipeline):
        try:
            return pipeline.run()
        except KeyboardInterrupt:
            if watch is not None:
                # The engine may have been asked already, and start the job when nobody waits for it any more.
                watch.cancel_what_comes()
            raise


def _watch_of(options: PipelineOptions) -> Watch | None:
    master = FlinkMaster.of(options) if runner_name(options) == "flinkrunner" else None
    name = options.view_as(GoogleCloudOptions).job_name
    if master is not None and name is not None:
        return FlinkWatch(master, job_name=name)
    return watch_job_service(options)


def _follow(result: Any, *, watch: Watch | None, until: Callable[[str], bool] | None) -> None:
    """Wait until a job has ended, by Beam's word or by the engine's own."""
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            result.wait_until_finish()
        except BaseException as error:
            failures.append(error)

    waiting = threading.Thread(target=wait, name="decant-job", daemon=True)
    waiting.start()
    try:
        while waiting.is_alive() or (failures and watch is not None and watch.sees_job):
            if waiting.is_alive():
                waiting.join(_LOOK_SECONDS)
            else:
                # One request of Beam's that fails ends its waiting, and says nothing of the job.
                time.sleep(_LOOK_SECONDS)
            if watch is not None and (waiting.is_alive() or failures) and watch.look():
                return
            if until is not None and waiting.is_alive() and until("" if watch is None else watch.error_so_far()):
                _cancel(result, watch=watch)
                return
    except KeyboardInterrupt:
        _cancel(result, watch=watch)
        raise
    if failures and isinstance(failures[0], grpc.RpcError):
        # It falls before a watch has looked often enough to be sure.
        raise EngineLostError(
            f"the connection to Beam's job service broke while the job ran ({_in_words(failures[0])}): it, or its "
            f"machine, has ended. Start it again. {RESUME}"
        ) from failures[0]
    if failures:
        raise failures[0]


def _in_words(error: grpc.RpcError) -> str:
    details = getattr(error, "details", None)
    return str(details()) if callable(details) else type(error).__name__


def _cancel(result: Any, *, watch: Watch | None) -> None:
    if watch is not None:
        watch.cancel()

    def cancel() -> None:
        with contextlib.suppress(Exception):
            result.cancel()

    cancelling = threading.Thread(target=cancel, daemon=True)
    cancelling.start()
    cancelling.join(_LAST_WORDS_SECONDS)


@contextlib.contextmanager
def _beam_speaks_as_itself() -> Iterator[None]:
    """Hold what Beam logs for a job, through the root logger, to the level of Beam's own logger."""
    beams = logging.getLogger("apache_beam")

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.module != "portable_runner" or beams.isEnabledFor(record.levelno)

    root = logging.getLogger()
    root.addFilter(is_wanted)
    try:
        yield
    finally:
        root.removeFilter(is_wanted)
