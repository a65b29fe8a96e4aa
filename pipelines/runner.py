"""Run a pipeline on any Beam runner, without the traps of the local one."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import FrameType, TracebackType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import create_runner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from storage import errors
from storage.errors import ConfigError, DecantError

LOCAL_RUNNER = "FnApiRunner"

_SWITCHING_RUNNERS = {"directrunner", "switchingdirectrunner"}
"""Beam's default among them: they would first try to download and execute a binary."""

_LOCAL_RUNNERS = {"fnapirunner", "bundlebaseddirectrunner"}
_REFUSED_RUNNERS = {"daskrunner": "it drops elements of ordinary pipelines without an error"}
_CONNECT_SECONDS = 20
_SAFE_RUNNERS = "FnApiRunner, FlinkRunner, SparkRunner or DataflowRunner"


_ERROR_LINE = re.compile(r"^(?P<name>[\w.]+(?:Error|Exception|Interrupt|Exit)): ", re.MULTILINE)

_WHERE = re.compile(r"\s*\[while running '[^']*'\]\s*$")


class WorkerDiedError(DecantError):
    """A worker process on this machine ended before its work did."""


def pipeline_options(arguments: Sequence[str]) -> PipelineOptions:
    """Return Beam options: the user's own, and the local runner by name where none is given.

    Raises:
        ConfigError: a runner that does not exist or is known to lose data, or arguments Beam does not know.
    """
    options = _parse(arguments)
    standard = options.view_as(StandardOptions)
    if standard.runner is None or _short_name(options) in _SWITCHING_RUNNERS:
        standard.runner = LOCAL_RUNNER
    reason = _REFUSED_RUNNERS.get(_short_name(options))
    if reason is not None:
        raise ConfigError(f"--runner {standard.runner}: refused, {reason}. Use {_SAFE_RUNNERS}")
    try:
        create_runner(standard.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(f"--runner {standard.runner}: there is no such runner here ({error}). Use {_SAFE_RUNNERS}") from error
    _check_job_service(options)
    return options


def _check_job_service(options: PipelineOptions) -> None:
    """Refuse a job service that does not answer; Beam would try for minutes, and then not say what it tried."""
    endpoint = options.view_as(PortableOptions).job_endpoint
    host, separator, port = (endpoint or "").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"--job_endpoint {endpoint}: no job service answers there ({error}); start it, or correct host and port"
        ) from error


def _parse(arguments: Sequence[str]) -> PipelineOptions:
    remedy = "see `decant label --help` and Beam's pipeline options"
    # Beam drops what does not look like an option without a word.
    for before, word in pairwise(["", *arguments]):
        if not word.startswith("--") and (word.startswith("-") or not before.startswith("--") or "=" in before):
            raise ConfigError(f"{word!r} is neither an option nor the value of one; {remedy}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = PipelineOptions(list(arguments))
            unknown = options.get_all_options(retain_unknown_options=True).keys() - options.get_all_options().keys()
    except SystemExit as error:
        problem = said.getvalue().strip().rsplit("\n", 1)[-1].partition("error: ")[2]
        raise ConfigError(f"Beam cannot read {shlex.join(arguments)}: {problem}; {remedy}") from error
    if unknown:
        names = ", ".join(sorted(f"--{name}" for name in unknown))
        raise ConfigError(f"neither decant nor Beam knows {names}; {remedy}")
    return options


def _short_name(options: PipelineOptions) -> str:
    """Return the runner's class name in lower case; Beam takes it with its package, and without the ending."""
    name = str(options.view_as(StandardOptions).runner).rsplit(".", 1)[-1].lower()
    return name if name.endswith("runner") else f"{name}runner"


def runs_in_this_process(options: PipelineOptions, *, workers: int) -> bool:
    """Return whether a pipeline made with these arguments sees this process's memory."""
    in_memory = options.view_as(DirectOptions).direct_running_mode == "in_memory"
    return _short_name(options) in _LOCAL_RUNNERS and workers == 1 and in_memory


def make_pipeline(options: PipelineOptions, *, workers: int) -> beam.Pipeline:
    """Return an empty pipeline; on the local runner, one that runs in `workers` processes of this machine."""
    if workers == 1 or _short_name(options) not in _LOCAL_RUNNERS:
        return beam.Pipeline(options=options)
    # FnApiRunner's own multi-process mode starts noisy workers that outlive a killed run. With ours its mode stays "in_memory",
    # about which it warns.
    logging.getLogger("apache_beam.runners.portability.fn_api_runner.fn_runner").setLevel(logging.ERROR)
    # Workers import what this process can import, a user's own factory too.
    path = shlex.quote(os.pathsep.join(entry for entry in sys.path if entry))
    # An interrupt from the terminal goes to every process of the group; it is this one's to end the run.
    command = f"trap '' INT; exec env PYTHONPATH={path} {shlex.quote(sys.executable)} -m pipelines.local_worker"
    environment = SubprocessSDKEnvironment.from_command_string(command)
    options.view_as(StandardOptions).runner = None
    options._all_options["direct_num_workers"] = workers
    return beam.Pipeline(runner=FnApiRunner(default_environment=environment), options=options)


class _Watchdog:
    """Turns the death of a local worker process, after which Beam would wait for ever, into an interrupt of the main thread.

    Beam starts each worker from a thread that raises when the process ends with a status other than 0. It also takes an interrupt
    by the user for an error of the function that it hit; so that one is noted here.
    """

    def __init__(self) -> None:
        self.message: str | None = None
        self.interrupted = False
        self._hook = threading.excepthook
        self._handler = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> _Watchdog:
        threading.excepthook = self._on_thread_error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._handler)
        # After a failure Beam's threads still fall, one by one; what they say is no news.
        if error is None:
            threading.excepthook = self._hook

    def _on_thread_error(self, arguments: threading.ExceptHookArgs) -> None:
        if "Worker subprocess exited" in str(arguments.exc_value):
            if self.message is None and not self.interrupted:
                self.message = str(arguments.exc_value)
                _hush_beam()
                # A real signal: only that wakes a main thread that waits for a lock.
                main_thread = threading.main_thread().ident
                assert main_thread is not None
                signal.pthread_kill(main_thread, signal.SIGINT)
        # A connection that falls is never the cause, and may be seen before it.
        elif not arguments.exc_type.__module__.startswith("grpc"):
            self._hook(arguments)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.message is not None:
            raise KeyboardInterrupt
        # An ignored signal stays ignored: a run in the background of a shell.
        if callable(self._handler):
            self.interrupted = True
            _hush_beam()
            self._handler(number, frame)


def _hush_beam() -> None:
    """Keep Beam from logging how it falls, once the reason is known."""
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def _watched_workers() -> Iterator[None]:
    watchdog = _Watchdog()
    try:
        with watchdog:
            yield
    except (KeyboardInterrupt, Exception) as error:
        if watchdog.interrupted:
            raise KeyboardInterrupt from error
        if watchdog.message is None:
            raise
        raise WorkerDiedError(
            f"a worker process died ({watchdog.message}); if nobody killed it, the machine ran out of memory: lower --workers or "
            "generation.batch_size. What was committed is whole: run the same command again to go on"
        ) from error


def run_pipeline(pipeline: beam.Pipeline) -> Any:
    """Run a pipeline to its end and return Beam's result.

    Raises:
        WorkerDiedError: a worker process of the local runner died.
        KeyboardInterrupt: the user interrupted the run, wherever Beam was.
    """
    with _watched_workers():
        result = pipeline.run()
        result.wait_until_finish()
    return result


def failure_of(error: Exception) -> DecantError:
    """Return what went wrong in a worker, out of the traceback that Beam gives as an error's text."""
    text = _WHERE.sub("", str(error).strip()) or repr(error)
    if isinstance(error, DecantError):
        return type(error)(text)
    found = list(_ERROR_LINE.finditer(text))
    if not found:
        return DecantError(f"the pipeline failed: {text}")
    kind = getattr(errors, found[-1]["name"].removeprefix(f"{errors.__name__}."), None)
    if isinstance(kind, type) and issubclass(kind, DecantError):
        return kind(text[found[-1].end() :].strip())
    return DecantError(f"the pipeline failed: {text[found[-1].start() :].strip()}")
