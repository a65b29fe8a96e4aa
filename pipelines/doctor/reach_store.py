"""Whether a process can use the cache: the submitter's greeting is read, a file written, read back, created once, and removed."""

from __future__ import annotations

import contextlib
import statistics
import time
import uuid

from pipelines.doctor.bounded import NoAnswerError, answer_within
from pipelines.doctor.questions import Questions
from pipelines.doctor.report import ClockReading, StoreReach
from storage.errors import DecantError
from storage.filesystem import Store

_NUM_READS = 5
_PROBE = b"decant doctor was here"
_WHOLE_SECONDS, _FINE_SECONDS = 1.0, 0.02
"""What a store's times are cut to: object stores say whole seconds; a kernel's clock for files ticks every few milliseconds."""


def examine_store(questions: Questions, *, seconds: float) -> tuple[StoreReach, ClockReading | None]:
    """Return what this process can do with the store of some questions, and its clock beside the store's.

    Args:
        seconds: after which the store counts as one that does not answer; what had been found by then is kept.
    """
    assert questions.store is not None
    found = _Findings(url=questions.store)
    try:
        answer_within(seconds, lambda: _examine(questions, found))
    except (DecantError, NoAnswerError, OSError, ValueError) as error:
        found.fail(str(error))
    except Exception as error:  # clients of stores raise their own errors, which share no base class
        found.fail(f"{type(error).__name__}: {error}")
    return found.reach(), found.clock


class _Findings:
    """What is known so far; a thread that hangs may leave it half."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.elsewhere = False
        self.read_seconds: float | None = None
        self.write_seconds: float | None = None
        self.creates_at_once: bool | None = None
        self.clock: ClockReading | None = None
        self._read_problem: str | None = None
        self._write_problem: str | None = None

    def fail(self, problem: str) -> None:
        if self.read_seconds is None:
            self._read_problem = problem
        else:
            self._write_problem = problem

    def reach(self) -> StoreReach:
        return StoreReach(
            url=self.url,
            elsewhere=self.elsewhere,
            read_problem=self._read_problem,
            write_problem=self._write_problem,
            creates_at_once=self.creates_at_once,
            read_seconds=self.read_seconds,
            write_seconds=self.write_seconds,
        )


def _examine(questions: Questions, found: _Findings) -> None:
    store = Store(found.url)
    times = []
    for _ in range(_NUM_READS):
        started = time.perf_counter()
        try:
            greeting = store.read(questions.greeting)
        except FileNotFoundError:
            found.elsewhere = True
            return
        times.append(time.perf_counter() - started)
    if greeting != questions.id.encode():
        found.elsewhere = True
        return
    found.read_seconds = statistics.median(times)
    name = f"{questions.folder}/probes/{uuid.uuid4().hex}"
    try:
        before, started = time.time(), time.perf_counter()
        store.write(name, _PROBE)
        found.write_seconds = time.perf_counter() - started
        after = time.time()
        if store.read(name) != _PROBE:
            found.fail(f"{found.url} does not give back what was written to it")
            return
        stored = store.look(name).modified
        resolution = _WHOLE_SECONDS if stored == int(stored) else _FINE_SECONDS
        found.clock = ClockReading(before=before, stored=stored, resolution_seconds=resolution, after=after)
        created = [store.create(f"{name}-once", _PROBE) for _ in range(2)]
        found.creates_at_once = store.creates_at_once
        if created != [True, False]:
            found.fail(f"{found.url} created the same file twice, or not at all ({created}): commits would not be safe there")
    finally:
        for leaving in (name, f"{name}-once"):
            with contextlib.suppress(DecantError):
                store.remove(leaving)
