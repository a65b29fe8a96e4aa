"""A run as it stands at a moment: counts, pace, estimated end, state."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa

from storage.errors import CacheError, CorruptError
from storage.filesystem import Store
from storage.label_runs.counting import RunCounter, RunCounts
from storage.label_runs.folder import RunFolder, RunInfo
from storage.label_runs.pace import Pace
from storage.label_runs.state import SILENT_SECONDS, RunState, state_of

_SHORTEST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_SHARE_OF_TIME = 0.05
"""What looking may take of the time; the process that looks may be the one that labels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A run at a moment.

    Attributes:
        elapsed_seconds: since it started; of a run that has ended, until a worker was last heard of.
        silent_seconds: since a worker was last heard of, or a part came; None: never.
        num_workers: that were heard of lately.
        rows_per_second: since it started, start-up included; None before the first part.
        recent_rows_per_second: over the last minutes; None unless parts came while somebody looked.
        remaining_seconds: until it ends at that pace; None where nobody can tell.
    """

    info: RunInfo
    counts: RunCounts
    state: RunState
    elapsed_seconds: float
    silent_seconds: float | None
    num_workers: int
    rows_per_second: float | None
    recent_rows_per_second: float | None
    remaining_seconds: float | None

    def figures(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        counts, info = self.counts, self.info
        return {
            "run": info.run,
            "name": info.name,
            "state": self.state.value,
            "runner": info.runner,
            "detached": info.detached,
            "jobs": list(info.jobs),
            "host": info.host,
            "started": info.started,
            "elapsed_seconds": self.elapsed_seconds,
            "silent_seconds": self.silent_seconds,
            "num_workers": self.num_workers,
            "unit": info.unit,
            "num_parts": counts.num_parts,
            "num_done_parts": counts.num_done_parts,
            "num_failed_parts": counts.num_failed_parts,
            "num_rows": counts.num_rows,
            "num_done_rows": counts.num_done_rows,
            "rows_per_second": self.rows_per_second,
            "recent_rows_per_second": self.recent_rows_per_second,
            "remaining_seconds": self.remaining_seconds,
            "num_dead_letters": counts.num_dead_letters,
            "num_records_read": counts.num_records,
        }


class RunFollower:
    """Follows one run by looking at the cache.

    Args:
        parts: the run's table of parts.
    """

    def __init__(self, run: RunFolder, *, info: RunInfo, parts: pa.Table) -> None:
        self.run = run
        self.info = info
        self.counter = RunCounter(run, parts=parts)
        self.wait_seconds = _SHORTEST_WAIT_SECONDS
        self._pace = Pace()
        self._clock = _StoreClock(run.store)
        self._started = run.started()
        self._num_rows: int | None = None
        self._came_at: float | None = None

    @classmethod
    def open(cls, run: RunFolder, *, info: RunInfo) -> Self:
        """Follow a run of which this process knows nothing but its folder.

        Raises:
            CorruptError: its folder is damaged, or being removed.
        """
        try:
            return cls(run, info=info, parts=run.parts(info))
        except FileNotFoundError as error:
            raise CorruptError(f"{run.store.url}/{run.path} is being removed: the run has ended") from error

    def look(self) -> Snapshot:
        """Look how far the run is. `wait_seconds` says when to look again, so that looking costs little.

        Raises:
            CacheError: the store failed.
        """
        began = time.monotonic()
        counts = self.counter.look()
        heard = self.run.last_heard()
        now = self._clock.now()
        self._pace.add(at=now, num_rows=counts.num_done_rows)
        if self._num_rows is not None and counts.num_done_rows > self._num_rows and counts.whole:
            self._came_at = now
        if counts.whole:
            self._num_rows = counts.num_done_rows
        signs = [*heard.values(), *([] if self._came_at is None else [self._came_at])]
        # Another clock may be a little ahead.
        heard_at = min(max(signs), now) if signs else None
        state = state_of(counts, local=self.info.local, fatal_at=self.counter.fatal_at, heard_at=heard_at, now=now)
        took = time.monotonic() - began
        self.wait_seconds = min(max(_SHORTEST_WAIT_SECONDS, took / _SHARE_OF_TIME), _LONGEST_WAIT_SECONDS)
        end = heard_at if state.ended and heard_at is not None else now
        elapsed = max(end - self._started, 0.0)
        overall = counts.num_done_rows / elapsed if counts.num_done_rows and elapsed else None
        recent = self._pace.rows_per_second()
        going = state is RunState.RUNNING and counts.whole
        rate = recent or overall
        return Snapshot(
            info=self.info,
            counts=counts,
            state=state,
            elapsed_seconds=elapsed,
            silent_seconds=None if heard_at is None else now - heard_at,
            num_workers=sum(now - at <= SILENT_SECONDS for at in heard.values()),
            rows_per_second=overall,
            recent_rows_per_second=recent,
            remaining_seconds=(counts.num_rows - counts.num_done_rows) / rate if going and rate else None,
        )


class _StoreClock:
    """The store's clock, asked once; this machine's where the store cannot be written."""

    def __init__(self, store: Store) -> None:
        self._from = time.monotonic()
        try:
            self._at = store.now()
        except CacheError:
            self._at = time.time()

    def now(self) -> float:
        return self._at + time.monotonic() - self._from
