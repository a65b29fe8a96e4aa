"""Progress of a run, by counting committed parts: it shows on every runner, and is true."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import TracebackType

from tqdm import tqdm

from pipelines.label_unit import LabelTask
from storage.cache import Cache
from storage.errors import CacheError

_POLL_SECONDS = 1.0


class PartProgress:
    """A progress bar of rows on a terminal, fed by a thread that looks which parts of some tasks are committed.

    Args:
        tasks: of one request, at least one.
    """

    def __init__(self, tasks: Sequence[LabelTask], *, cache: Cache, show: bool) -> None:
        self._cache = cache
        self._request = tasks[0].part.request
        self._rows = {f"{task.part.name}.json": task.num_rows for task in tasks if task.replaces is None}
        self._bar = tqdm(
            total=sum(self._rows.values()), unit="row", desc="label", file=sys.stderr, disable=not show, smoothing=0.1
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def _look(self) -> None:
        names = {name.rsplit("/", 1)[-1] for name in self._cache.store.names(self._cache.request_folder(self._request))}
        done = sum(rows for name, rows in self._rows.items() if name in names)
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
                self._look()
        self._bar.close()
