"""The store between submitter and workers: a greeting goes there, reports come back, and nothing is left."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import partial

from pydantic import ValidationError

from pipelines.doctor.bounded import NoAnswerError, answer_within
from pipelines.doctor.questions import Questions
from pipelines.doctor.report import ProcessReport, merge_reports
from storage.errors import DecantError
from storage.filesystem import Store


class Listener:
    """Hears reports in the store, and notes when each was first there."""

    def __init__(self, questions: Questions) -> None:
        self._folder = f"{questions.folder}/reports"
        self._store = None if questions.store is None else Store(questions.store)
        self.first_heard: dict[tuple[str, str, int, float], tuple[float, float]] = {}
        """When each process's report was first seen here, and what time it gave."""
        self.reports: list[ProcessReport] = []
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Read all reports that are there; what cannot be read now is read the next time."""
        if self._store is None:
            return
        with contextlib.suppress(DecantError):
            found = []
            for name in self._store.names(self._folder):
                with contextlib.suppress(FileNotFoundError, ValidationError):
                    found.append(ProcessReport.model_validate_json(self._store.read(name)))
            self.hear(found)

    def hear(self, reports: list[ProcessReport]) -> None:
        """Take reports that were just heard."""
        with self._lock:
            for report in reports:
                self.first_heard.setdefault(report.process, (time.time(), report.now))
            self.reports = merge_reports([*self.reports, *reports])

    @property
    def elements(self) -> set[int]:
        """Elements of which some process spoke."""
        return {number for report in self.reports for number in report.elements}


@contextlib.contextmanager
def greeted(questions: Questions) -> Iterator[str | None]:
    """Write the greeting for a while; gives the reason if that does not work. Everything in the folder is removed at the end."""
    if questions.store is None:
        yield None
        return
    problem = None
    store: Store | None = None
    try:
        store = Store(questions.store)
        answer_within(questions.limit_seconds, partial(store.write, questions.greeting, questions.id.encode()))
    except (DecantError, NoAnswerError) as error:
        problem = str(error)
    try:
        yield problem
    finally:
        if store is not None and problem is None:
            _clear(store, questions.folder)


def _clear(store: Store, folder: str) -> None:
    # Garbage collection takes what cannot be removed now.
    with contextlib.suppress(DecantError):
        for file in list(store.files(folder)):
            store.remove(file.name)
        store.remove_empty_folders(folder)
