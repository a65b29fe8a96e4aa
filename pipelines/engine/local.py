"""Workers on this machine: processes that die with their parent, and whose death ends the run with a clear word."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from storage.errors import ConfigError, DecantError

_EXIT_INTERRUPTED = 130
_ENDED_AT_ONCE = b"decant: interrupted twice, ended at once; what was committed is whole: run the same command again to go on\n"
_CONNECTIONS = ("grpc", "requests", "urllib3")


class WorkerDiedError(DecantError):
    """A worker process on this machine ended before its work did."""


def local_pipeline(options: PipelineOptions, *, workers: int) -> beam.Pipeline:
    """Return an empty pipeline that runs in `workers` processes of this machine."""
    # FnApiRunner's own multi-process mode starts noisy workers that outlive a killed run. With ours its mode stays "in_memory",
    # about which it warns.
    logging.getLogger("apache_beam.runners.portability.fn_api_runner.fn_runner").setLevel(logging.ERROR)
    # Workers import what this process can import, a user's own factory too.
    path = shlex.quote(os.pathsep.join(entry for entry in sys.path if entry))
    # An interrupt from the terminal goes to every process of the group; it is this one's to end the run.
    command = f"trap '' INT; exec env PYTHONPATH={path} {shlex.quote(sys.executable)} -m pipelines.local_worker"
    environment = SubprocessSDKEnvironment.from_command_string(command)
    options = copy.deepcopy(options)
    options.view_as(StandardOptions).runner = None
    options._all_options["direct_num_workers"] = workers
    return beam.Pipeline(runner=FnApiRunner(default_environment=environment), options=options)


def require_main_thread() -> None:
    """Refuse worker processes of this machine where nobody could be told of their death.

    Raises:
        ConfigError: this is not the main thread.
    """
    thread = threading.current_thread()
    if thread is not threading.main_thread():
        raise ConfigError(
            f"worker processes of this machine were asked for in thread {thread.name!r}: when one of them dies, Beam waits for "
            "ever, and only the main thread can be woken. Call it from the main thread, start decant label as a process of its "
            "own, or set generation.workers: 1, which starts none"
        )


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
        elif not arguments.exc_type.__module__.startswith(_CONNECTIONS):
            self._hook(arguments)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.message is not None:
            raise KeyboardInterrupt
        # An ignored signal stays ignored: a run in the background of a shell.
        if not callable(self._handler):
            return
        if self.interrupted:
            # Beam waits for what its workers do at this moment. Torn out of that it would leave them, and wait at exit for ever;
            # they die with this process, and a run may be killed anywhere.
            os.write(2, _ENDED_AT_ONCE)
            os._exit(_EXIT_INTERRUPTED)
        self.interrupted = True
        _hush_beam()
        self._handler(number, frame)


def _hush_beam() -> None:
    """Keep Beam from logging how it falls, once the reason is known."""
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def watched_workers() -> Iterator[None]:
    """Raise `WorkerDiedError` where a block waits for a local worker that is gone, KeyboardInterrupt where the user ended it."""
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
