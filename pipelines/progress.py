"""Progress of a run, by counting committed parts: it shows on every runner, and is true."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType

from tqdm import tqdm

from pipelines.label_task import LabelTask
from storage.cache import Cache
from storage.errors import CacheError
from storage.part_listing import file_names

_POLL_SECONDS = 1.0


class PartProgress:
    """A progress bar of rows on a terminal, fed by a thread that looks which parts of some tasks are committed.

    Rows that are tried again count when their part is replaced; where none of a part's can be cured, when all is done.

    Args:
        tasks: of one request, at least one.
    """

    def __init__(self, tasks: Sequence[LabelTask], *, cache: Cache, show: bool) -> None:
        self._cache = cache
        self._request = tasks[0].part.request
        self._rows = {f"{task.part.name}.json": task.num_rows for task in tasks if task.replaces is None}
        self._retried = {task.part.name: task.num_rows for task in tasks if task.replaces is not None}
        self._replaced: set[str] = set()
        self._bar = tqdm(
            total=sum(task.num_rows for task in tasks), unit="row", desc="label", file=sys.stderr, disable=not show, smoothing=0.1
        )
        self._known_tars = set(self._tars()) if self._retried and show else set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def _names(self) -> Iterator[str]:
        for batch in file_names(self._cache.store, self._cache.request_folder(self._request)):
            yield from batch

    def _tars(self) -> Iterator[str]:
        return (name for name in self._names() if name.endswith(".tar"))

    def _look(self) -> None:
        done = sum(self._rows.get(name, 0) for name in self._names()) if self._rows else 0
        if self._retried:
            self._replaced.update(name.rsplit(".", 2)[0] for name in self._tars() if name not in self._known_tars)
            done += sum(self._retried.get(part, 0) for part in self._replaced)
        self._bar.update(done - self._bar.n)

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            try:
                self._look()
            except CacheError:
                # The workers meet the same trouble and say it; a bar must not end a run.
                continue

    def __enter__(self) -> PartProgress:
        if not self._bar.disable:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
            if kind is None:
                self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()
