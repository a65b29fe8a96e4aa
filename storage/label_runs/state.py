"""Whether a run goes on or has ended, as it follows from what it left in the cache."""

from __future__ import annotations

from enum import StrEnum

from storage.label_runs.counting import RunCounts
from storage.label_runs.heartbeat import BEAT_SECONDS

SILENT_SECONDS = 6 * BEAT_SECONDS
"""Workers that were not heard for so long are busy with nothing, or dead."""
_AGAIN_SECONDS = 2 * BEAT_SECONDS
"""An engine that tries again after an error that would hit every unit does so by then."""


class RunState(StrEnum):
    """What a run does, or how it ended."""

    WAITING = "waiting"
    """It was started, and no worker was heard yet."""
    RUNNING = "running"
    SILENT = "silent"
    """Workers were heard, but not lately: they are idle, or it was killed."""
    FAILED = "failed"
    """What is missing failed, or an error stopped the workers."""
    DONE = "done"
    """All parts are there."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        return self in {RunState.FAILED, RunState.DONE}


def state_of(counts: RunCounts, *, local: bool, fatal_at: float | None, heard_at: float | None, now: float) -> RunState:
    """Return what a run does.

    Args:
        local: it ends with the command that started it, which tries nothing again.
        fatal_at: when a worker reported an error that would hit every unit; None: none did.
        heard_at: when a worker was last heard of, or a part came; None: never.
        now: by the same clock, the store's.
    """
    if counts.done:
        return RunState.DONE
    if counts.done_or_failed:
        return RunState.FAILED
    if fatal_at is not None:
        patience = 0.0 if local else _AGAIN_SECONDS
        if now - max(fatal_at, heard_at or fatal_at) >= patience:
            return RunState.FAILED
    if heard_at is None:
        return RunState.WAITING
    return RunState.SILENT if now - heard_at > SILENT_SECONDS else RunState.RUNNING
