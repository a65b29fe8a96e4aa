"""`decant doctor`: ask this process and every worker, and judge what they say."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.doctor.bounded import NoAnswerError, answer_within
from pipelines.doctor.clocks import Offset, offset_to_submitter
from pipelines.doctor.examine import examine
from pipelines.doctor.findings import HERE, Finding, Heard, gathered
from pipelines.doctor.judge_engine import Engine, Outcome, judge_engine
from pipelines.doctor.judge_machines import judge_devices, judge_disks, judge_memory
from pipelines.doctor.judge_reach import judge_cache, judge_clocks, judge_source, judge_teacher
from pipelines.doctor.judge_versions import judge_versions
from pipelines.doctor.mailbox import Listener, greeted
from pipelines.doctor.questions import Questions
from pipelines.doctor.reach_source import ask_about_source
from pipelines.doctor.reach_teacher import ask_about_teacher
from pipelines.doctor.report import ProcessReport
from pipelines.doctor.surroundings import judge_surroundings
from pipelines.local_paths import absolute_source, absolute_teacher, absolute_url
from storage.config import ExperimentConfig
from storage.errors import DecantError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

TIMEOUT_SECONDS = 120.0
_JUDGES = (
    judge_versions,
    judge_devices,
    judge_memory,
    judge_disks,
    judge_cache,
    judge_source,
    judge_teacher,
    judge_clocks,
)
_LISTING_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was said, and what it means.

    Attributes:
        name: of the experiment; None: no config was given.
        engine, outcome: None where nothing was sent.
    """

    name: str | None
    heard: Heard
    engine: Engine | None
    outcome: Outcome | None
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        """What would keep labels from being made."""
        return [finding for finding in self.findings if finding.level == "error"]


def check_up(
    config: ExperimentConfig | None,
    *,
    options: PipelineOptions | None,
    workers: int = 1,
    num_elements: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    progress: bool = False,
) -> Examination:
    """Examine this process and, through an engine, the workers that would label.

    Args:
        config: whose cache, source and teacher are looked for; None: none are.
        options: Beam's; None: no job is sent.
        workers: processes on this machine, on the local runner.
        num_elements: what the job is cut into; None: by the number of workers that the options tell.
        timeout_seconds: after which a job on another machine is cancelled.
        progress: on terminals, show how far such a job is.
    """
    findings: list[Finding] = []
    engine: Engine | None = None
    outcome: Outcome | None = None
    with contextlib.ExitStack() as stack:
        questions = _ask(config, findings, limit_seconds=timeout_seconds / 2)
        if options is not None:
            from pipelines.doctor.running import describe_engine

            engine = describe_engine(options)
        if questions.store is None and engine is not None and engine.local:
            questions = questions.model_copy(update={"store": stack.enter_context(_temporary_folder())})
        problem = stack.enter_context(greeted(questions))
        if problem is not None:
            findings.append(_error("cache", problem, "The command itself writes there, too"))
            questions = questions.model_copy(update={"store": None})
        here = examine(questions)
        heard = Heard(here=here, workers=())
        if options is not None:
            from pipelines.doctor.running import enough_elements, send_job

            listener, outcome = send_job(
                questions,
                options=options,
                workers=workers,
                num_elements=num_elements or enough_elements(options, workers=workers),
                timeout_seconds=timeout_seconds,
                here=here,
                progress=progress,
            )
            heard = Heard(
                here=here,
                workers=listener.reports,
                offsets=_offsets(here, listener=listener, questions=questions),
                local=engine is not None and engine.local,
                allow_version_differences=config is not None and config.generation.allow_version_differences,
            )
    if config is None or config.cache is None:
        heard = _without_store(heard)
    needed = frozenset() if config is None else frozenset(_needed(config))
    findings += judge_surroundings(here, needed=needed)
    if engine is not None and outcome is not None:
        findings += judge_engine(heard, engine=engine, outcome=outcome)
    for judge in (
        judge_versions,
        judge_devices,
        judge_memory,
        judge_disks,
        judge_cache,
        judge_source,
        judge_teacher,
        judge_clocks,
    ):
        findings += judge(heard)
    return Examination(
        name=None if config is None else config.name, heard=heard, engine=engine, outcome=outcome, findings=gathered(findings)
    )


def _ask(config: ExperimentConfig | None, findings: list[Finding], *, limit_seconds: float) -> Questions:
    """Return the questions a config gives rise to; what cannot be looked at here is found at once."""
    word = uuid.uuid4().hex[:12]
    questions = Questions(id=word, asked=time.time(), folder=f"runs/doctor-{word}", limit_seconds=limit_seconds)
    if config is None:
        return questions
    # As labelling does: a worker's working folder is another.
    asked: dict[str, Any] = {"store": None if config.cache is None else absolute_url(config.cache)}
    source = None if config.source is None else absolute_source(config.source)
    teacher = None if config.teacher is None else absolute_teacher(config.teacher)
    if source is not None:
        try:
            asked["source"] = answer_within(_LISTING_SECONDS, lambda: ask_about_source(source))
        except (DecantError, NoAnswerError, OSError) as error:
            findings.append(_error("source", f"it cannot be listed and read: {error}", "Workers were not asked about it"))
    if teacher is not None:
        try:
            asked["teacher"] = answer_within(_LISTING_SECONDS, lambda: ask_about_teacher(teacher))
        except FileNotFoundError as error:
            findings.append(
                _error("teacher", f"{error.filename} does not exist", "Correct teacher.checkpoint, name or tokenizer")
            )
        except (DecantError, NoAnswerError, OSError, ImportError) as error:
            findings.append(_error("teacher", f"its files cannot be looked at: {error}", "Workers were not asked about them"))
    return questions.model_copy(update=asked)


def _error(topic: str, message: str, remedy: str) -> Finding:
    return Finding(level="error", topic=topic, message=message, remedy=remedy, places=(HERE,))


def _needed(config: ExperimentConfig) -> Iterator[str]:
    if config.teacher is not None:
        yield "label"
    paths = [] if config.source is None else [config.source.path] if isinstance(config.source.path, str) else config.source.path
    for url in (config.cache or "", *paths):
        protocol = url.partition("://")[0]
        if protocol in ("s3", "s3a"):
            yield "s3"
        elif protocol in ("gs", "gcs"):
            yield "gcs"


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="decant-doctor-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _offsets(here: ProcessReport, *, listener: Listener, questions: Questions) -> list[Offset]:
    offsets = []
    for worker in listener.reports:
        heard, said = listener.first_heard[worker.process]
        offsets.append(
            offset_to_submitter(worker=worker.clock, submitter=here.clock, said=said, asked=questions.asked, heard=heard)
        )
    return offsets


def _without_store(heard: Heard) -> Heard:
    """Leave out what was said of the folder through which reports came back: it is nobody's cache."""
    nothing = {"cache": None, "clock": None}
    workers = [worker.model_copy(update=nothing) for worker in heard.workers]
    return replace(heard, here=heard.here.model_copy(update=nothing), workers=workers)
