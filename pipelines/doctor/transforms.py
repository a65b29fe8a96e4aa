"""The Beam side: a few elements that keep worker processes busy for a moment and bring back what each says of itself.

What travels to workers is plain text, so that a worker with other versions still hears the questions and can be heard.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

import apache_beam as beam

from pipelines.doctor.examine import examine
from pipelines.doctor.questions import Questions
from pipelines.doctor.report import ProcessReport, merge_reports, to_text
from storage.errors import DecantError
from storage.filesystem import Store

_reports: dict[str, ProcessReport] = {}
_lock = threading.Lock()


class ReportsNotStoredError(DecantError):
    """No store takes the reports of workers, so they come back in this error's text."""


class Examine(beam.DoFn):
    """Numbers to reports of the process that meets them: written to the store, or yielded where that does not work."""

    def __init__(self, questions: str) -> None:
        self._questions = questions

    def process(self, number: int) -> Iterator[tuple[int, str]]:
        """Yield (0, report) if the report could not be stored."""
        questions = Questions.model_validate_json(self._questions)
        report = _meet(questions, number=number)
        if not _store(report, questions=questions):
            yield 0, report.model_dump_json()
        time.sleep(questions.pause_seconds)


def remember(report: ProcessReport, *, questions: Questions) -> None:
    """Keep what this process said already: where it is a worker, too, it is not asked twice."""
    with _lock:
        _reports.clear()
        _reports[questions.id] = report


def _meet(questions: Questions, *, number: int) -> ProcessReport:
    """Return this process's report with one element more; it is examined at the first one."""
    with _lock:
        if questions.id not in _reports:
            _reports.clear()
            _reports[questions.id] = examine(questions)
        known = _reports[questions.id]
        report = known.model_copy(update={"elements": tuple(sorted({*known.elements, number})), "now": time.time()})
        _reports[questions.id] = report
        return report


def _store(report: ProcessReport, *, questions: Questions) -> bool:
    if questions.store is None or report.cache is None or not report.cache.works:
        return False
    try:
        Store(questions.store).write(questions.report_name(process=report.process), report.model_dump_json().encode())
    except DecantError:
        return False
    return True


class RaiseReports(beam.DoFn):
    """Raise what could not be stored: an engine brings back why a job failed, whatever it cannot bring back else."""

    def process(self, reports: tuple[int, Iterable[str]]) -> Iterator[None]:
        """Raise ReportsNotStoredError with all reports in its text."""
        found = merge_reports(ProcessReport.model_validate_json(report) for report in reports[1])
        if found:
            raise ReportsNotStoredError(
                f"this job fails on purpose: {len(found)} worker processes could not store what they found for decant doctor, "
                f"so it is in this text: {to_text(found)}"
            )
        yield from ()


class ExamineWorkers(beam.PTransform):
    """Numbers to nothing; what workers say comes back through the store or in a ReportsNotStoredError."""

    def __init__(self, questions: Questions) -> None:
        super().__init__()
        self._questions = questions.model_dump_json()

    def expand(self, numbers: beam.PCollection) -> beam.PCollection:
        """Spread the numbers over workers, ask each, and gather what could not be stored."""
        return (
            numbers
            # Without it the numbers fuse with their source into one bundle on one worker.
            | "SpreadElements" >> beam.Reshuffle()
            | "Examine" >> beam.ParDo(Examine(self._questions))
            | "GatherReports" >> beam.GroupByKey()
            | "RaiseReports" >> beam.ParDo(RaiseReports())
        )
