"""Ask this process everything, within a time that does not grow with what is broken."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.doctor.bounded import NoAnswerError, answer_within
from pipelines.doctor.device import examine_device
from pipelines.doctor.machine import code_digest, examine_machine, installed_packages, own_address
from pipelines.doctor.questions import Questions
from pipelines.doctor.reach_source import examine_source
from pipelines.doctor.reach_store import examine_store
from pipelines.doctor.reach_teacher import examine_teacher
from pipelines.doctor.report import Device, ProcessReport, Reach

T = TypeVar("T")


def examine(questions: Questions) -> ProcessReport:
    """Return what this process says of itself. Nothing is raised: what fails is part of the answer."""
    started, until = time.time(), time.monotonic() + questions.limit_seconds

    def bounded(action: Callable[[], T], *, otherwise: Callable[[str], T]) -> T:
        # Half of what is left: a check that hangs leaves time for those after it.
        try:
            return answer_within(max(1.0, (until - time.monotonic()) / 2), action)
        except NoAnswerError as error:
            return otherwise(str(error))
        except Exception as error:  # a check that fails in an unforeseen way must not hide what others find
            return otherwise(f"{type(error).__name__}: {error}")

    cache = clock = source = teacher = None
    if questions.store is not None:
        cache, clock = examine_store(questions, seconds=questions.limit_seconds / 2)
    asked_source, asked_teacher = questions.source, questions.teacher
    if asked_source is not None:
        source = bounded(lambda: examine_source(asked_source), otherwise=lambda why: Reach(problems=(f"source: {why}",)))
    asked_device = None if asked_teacher is None else asked_teacher.device
    device = bounded(
        lambda: examine_device(asked_device),
        otherwise=lambda why: Device(asked=asked_device, problem=f"torch does not come up: {why}"),
    )
    if asked_teacher is not None:
        teacher = bounded(lambda: examine_teacher(asked_teacher), otherwise=lambda why: Reach(problems=(f"teacher: {why}",)))
    return ProcessReport(
        host=socket.gethostname(),
        address=own_address(),
        pid=os.getpid(),
        started=started,
        now=time.time(),
        python=platform.python_version(),
        packages=installed_packages(),
        code=code_digest(),
        machine=examine_machine(),
        device=device,
        cache=cache,
        source=source,
        teacher=teacher,
        clock=clock,
    )
