"""Whether a run goes on follows from what it left, and from nothing that it would have to write at its end."""

from __future__ import annotations

import pytest

from storage.label_runs.counting import RunCounts
from storage.label_runs.heartbeat import BEAT_SECONDS
from storage.label_runs.state import SILENT_SECONDS, RunState, state_of

NOW = 1_000_000.0


def counts(*, done=3, failed=0, parts=10):
    return RunCounts(
        num_parts=parts,
        num_rows=10 * parts,
        num_done_parts=done,
        num_done_rows=10 * done,
        num_failed_parts=failed,
        num_dead_letters=0,
        num_records=done,
        whole=True,
    )


@pytest.mark.parametrize(
    ("seen", "local", "fatal", "heard", "state"),
    [
        ({}, False, None, None, RunState.WAITING),
        ({}, False, None, 1, RunState.RUNNING),
        ({}, False, None, SILENT_SECONDS - 1, RunState.RUNNING),
        ({}, False, None, SILENT_SECONDS + 1, RunState.SILENT),
        ({"done": 10}, False, None, SILENT_SECONDS + 1, RunState.DONE),
        # What an engine tried again and made in the end is no failure.
        ({"done": 10}, False, 50, 1, RunState.DONE),
        ({"done": 8, "failed": 2}, False, None, 1, RunState.FAILED),
        ({"done": 8, "failed": 1}, False, None, 1, RunState.RUNNING),
        # A local run tries nothing again, an engine may.
        ({}, True, 0, 0, RunState.FAILED),
        ({}, True, 1, None, RunState.FAILED),
        ({}, False, 1, 1, RunState.RUNNING),
        ({}, False, 5 * BEAT_SECONDS, 1, RunState.RUNNING),
        ({}, False, 5 * BEAT_SECONDS, 3 * BEAT_SECONDS, RunState.FAILED),
        ({}, False, 5 * BEAT_SECONDS, None, RunState.FAILED),
        ({}, False, 1, None, RunState.WAITING),
    ],
)
def test_a_state_follows_from_counts_and_signs_of_life(seen, local, fatal, heard, state):
    found = state_of(
        counts(**seen),
        local=local,
        fatal_at=None if fatal is None else NOW - fatal,
        heard_at=None if heard is None else NOW - heard,
        now=NOW,
    )
    assert found is state
    assert found.ended == (state in {RunState.DONE, RunState.FAILED})


def test_a_worker_that_misses_a_few_beats_is_not_taken_for_dead():
    assert SILENT_SECONDS >= 4 * BEAT_SECONDS
