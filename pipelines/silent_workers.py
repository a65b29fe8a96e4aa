"""Workers of a run that fell silent on an engine that starts none again and waits for them for ever."""

from __future__ import annotations

import time

from pipelines.engine import EngineLostError
from pipelines.engine.following import RESUME
from storage.errors import CacheError
from storage.label_runs.counting import RunCounter
from storage.label_runs.folder import RunFolder, RunInfo
from storage.label_runs.heartbeat import BEAT_SECONDS
from storage.label_runs.state import SILENT_SECONDS
from storage.label_runs.under_way import DEAD_SECONDS


class SilentWorkers:
    """Listens to a run's workers. A worker says that it lives while it computes, however long a batch takes.

    Silence is counted in looks that came in time: this process may have been stopped itself, and a store that does not answer
    says nothing of workers.
    """

    def __init__(self, run: RunFolder, *, info: RunInfo) -> None:
        self._run = run
        self._info = info
        self._heard: dict[str, float] = {}
        self._looked_at = time.monotonic()
        self._silent_seconds = 0.0

    def look(self) -> bool:
        """Return whether all is done that the run is to make, though its workers say nothing more.

        Raises:
            EngineLostError: something is missing, and no worker was heard for too long.
        """
        since = time.monotonic() - self._looked_at
        if since < BEAT_SECONDS:
            return False
        self._looked_at += since
        try:
            heard = self._run.last_heard()
            self._silent_seconds += min(since, 2 * BEAT_SECONDS)
            if heard != self._heard:
                self._heard, self._silent_seconds = heard, 0.0
            # Before a worker is heard it imports its libraries and reads the run's tasks.
            if self._silent_seconds < (SILENT_SECONDS if heard else DEAD_SECONDS):
                return False
            counts = RunCounter(self._run, parts=self._run.parts(self._info)).look_at_all()
        except (CacheError, FileNotFoundError):
            self._silent_seconds = 0.0
            return False
        if counts.done_or_failed:
            return True
        raise EngineLostError(
            f"{self._who()} for {self._silent_seconds:.0f} seconds while the job ran, and its engine starts no other: it was "
            "killed, its machine ran out of memory (lower generation.batch_size) or has ended, or it cannot write to the cache. "
            f"{RESUME}"
        )

    def _who(self) -> str:
        if not self._heard:
            return "no worker was heard of"
        last = max(self._heard, key=self._heard.__getitem__)
        host, process, _ = last.rsplit("-", 2)
        return f"worker process {process} on host {host} has not been heard of"
