"""Run a pipeline on any Beam runner, without the traps of the local one."""

from __future__ import annotations

import contextlib
import _thread
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from storage.errors import ConfigError, DecantError

LOCAL_RUNNER = "FnApiRunner"
"""Beam's default would first try to download and execute a binary."""

_LOCAL_RUNNERS = {"fnapirunner", "directrunner", "bundlebaseddirectrunner", "switchingdirectrunner"}
_REFUSED_RUNNERS = {"daskrunner": "it drops elements of ordinary pipelines without an error"}


class WorkerDiedError(DecantError):
    """A worker process on this machine ended before its work did."""


def pipeline_options(arguments: Sequence[str], *, workers: int) -> PipelineOptions:
    """Return Beam options: the user's own, and the local runner by name where none is given.

    Raises:
        ConfigError: a runner that is known to lose data, or arguments Beam does not know.
    """
    given = [*arguments]
    runner = next((argument.split("=", 1)[1] for argument in given if argument.startswith("--runner=")), None)
    if runner is None and "--runner" in given:
        runner = given[min(given.index("--runner") + 1, len(given) - 1)]
    if runner is None:
        given.append(f"--runner={LOCAL_RUNNER}")
        runner = LOCAL_RUNNER
    name = runner.rsplit(".", 1)[-1].lower()
    if name in _REFUSED_RUNNERS:
        raise ConfigError(f"--runner {runner}: refused, {_REFUSED_RUNNERS[name]}. Use FnApiRunner, FlinkRunner, SparkRunner or DataflowRunner")
    if name in _LOCAL_RUNNERS and workers > 1:
        given += ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    options = PipelineOptions(given)
    unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
    if unknown:
        raise ConfigError(f"unknown arguments: {', '.join(sorted(f'--{name}' for name in unknown))}; see `decant label --help`")
    return options


def is_local(options: PipelineOptions) -> bool:
    """Return whether the pipeline runs in this process and its children."""
    runner = options.view_as(StandardOptions).runner or LOCAL_RUNNER
    return runner.rsplit(".", 1)[-1].lower() in _LOCAL_RUNNERS


class _Watchdog:
    """Turns the death of a local worker process, after which Beam would wait for ever, into an interrupt of the main thread.

    Beam starts each worker from a thread that raises when the process ends with a status other than 0.
    """

    def __init__(self) -> None:
        self.message: str | None = None

    def __call__(self, arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if error is None or "Worker subprocess exited" not in str(error):
            threading.__excepthook__(arguments)
            return
        if self.message is None:
            self.message = str(error)
            _thread.interrupt_main()


@contextlib.contextmanager
def watch_workers() -> Iterator[_Watchdog]:
    """Watch the worker processes of the local runner while the body runs.

    Raises:
        WorkerDiedError: one of them died.
    """
    watchdog = _Watchdog()
    before = threading.excepthook
    threading.excepthook = watchdog
    try:
        yield watchdog
    except (KeyboardInterrupt, RuntimeError) as error:
        if watchdog.message is None:
            raise
        raise WorkerDiedError(
            f"a worker process died ({watchdog.message}); if nobody killed it, the machine ran out of memory: lower --workers or "
            "generation.batch_size. What was committed is whole: run the same command again to go on"
        ) from error
    finally:
        threading.excepthook = before


def run_pipeline(pipeline: beam.Pipeline, *, local: bool) -> Any:
    """Run a pipeline to its end and return Beam's result.

    Raises:
        WorkerDiedError: a local worker process died.
    """
    with watch_workers() if local else contextlib.nullcontext():
        result = pipeline.run()
        result.wait_until_finish()
    return result
