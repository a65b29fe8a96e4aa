"""Progress for people: a bar on a terminal, or a plain line now and then."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from storage.label_runs.following import Snapshot
from storage.label_runs.state import RunState

LINE_SECONDS = 60.0


def duration_words(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes:02}:{left:02}"


def letters_words(snapshot: Snapshot) -> str | None:
    """Return how many dead letters are known, and of how many parts if not of all that are there; None of none."""
    counts = snapshot.counts
    if not counts.num_dead_letters:
        return None
    words = f"{counts.num_dead_letters:,} dead letter{'s' if counts.num_dead_letters > 1 else ''}"
    return words if counts.num_records >= counts.num_done_parts else f"{words} in {counts.num_records:,} parts looked at"


def progress_words(snapshot: Snapshot) -> str:
    """Return how far a run is, in a line."""
    counts, unit = snapshot.counts, snapshot.info.unit
    share = counts.num_done_rows / counts.num_rows if counts.num_rows else 1.0
    parts = f"{counts.num_done_parts:,} of {counts.num_parts:,} parts"
    pieces = [f"{counts.num_done_rows:,} of {counts.num_rows:,} {unit}s ({share:.1%}) in {parts}"]
    if not counts.whole:
        pieces.append("still counting")
    if snapshot.rows_per_second is not None:
        pieces.append(f"{snapshot.rows_per_second:,.1f} {unit}s/s")
    if snapshot.recent_rows_per_second is not None:
        pieces.append(f"lately {snapshot.recent_rows_per_second:,.1f}")
    if snapshot.remaining_seconds is not None:
        pieces.append(f"{duration_words(snapshot.remaining_seconds)} left")
    if counts.num_failed_parts:
        pieces.append(f"{counts.num_failed_parts:,} parts failed")
    if (letters := letters_words(snapshot)) is not None:
        pieces.append(letters)
    match snapshot.state:
        case RunState.WAITING:
            pieces.append("no worker was heard of yet")
        case RunState.SILENT:
            pieces.append(f"no worker was heard of for {duration_words(snapshot.silent_seconds or 0.0)}")
        case RunState.RUNNING if snapshot.num_workers:
            pieces.append(f"{snapshot.num_workers:,} worker{'s' if snapshot.num_workers > 1 else ''}")
        case _:
            pass
    return ", ".join(pieces)


class ProgressDisplay:
    """Shows a run on standard error: a bar on a terminal, plain lines where they are asked for, else nothing.

    Args:
        show: whether a bar may be shown.
        line_seconds: a line is written so often, in place of a bar; None: no lines.
    """

    def __init__(self, *, num_rows: int, unit: str, show: bool, line_seconds: float | None) -> None:
        self._line_seconds = line_seconds
        self._next_line = time.monotonic() + (line_seconds or 0.0)
        self._bar: tqdm[Any] | None = None
        if line_seconds is None and show and sys.stderr.isatty():
            self._bar = tqdm(total=num_rows, unit=unit, desc="label", file=sys.stderr, bar_format=_bar_format("00:00"))

    @property
    def shown(self) -> bool:
        """Whether there is anything to show it on."""
        return self._bar is not None or self._line_seconds is not None

    def update(self, snapshot: Snapshot) -> None:
        """Show a run as it stands."""
        if self._bar is not None:
            self._bar.bar_format = _bar_format(_bar_words(snapshot))
            self._bar.n = snapshot.counts.num_done_rows
            self._bar.refresh()
        elif self._line_seconds is not None and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self._line_seconds
            sys.stderr.write(f"{snapshot.info.name}: {progress_words(snapshot)}\n")
            sys.stderr.flush()

    def end(self, *, done: bool) -> None:
        """Show no more.

        Args:
            done: whether all is there; then the bar is full, whatever was looked at last.
        """
        if self._bar is None:
            return
        if done:
            self._bar.n = self._bar.total
            self._bar.refresh()
        self._bar.close()


def _bar_words(snapshot: Snapshot) -> str:
    rate = snapshot.recent_rows_per_second or snapshot.rows_per_second
    left = "?" if snapshot.remaining_seconds is None else duration_words(snapshot.remaining_seconds)
    pieces = [f"{duration_words(snapshot.elapsed_seconds)}<{left}"]
    if snapshot.counts.num_failed_parts:
        pieces.append(f"{snapshot.counts.num_failed_parts:,} parts failed")
    if (letters := letters_words(snapshot)) is not None:
        pieces.append(letters)
    if snapshot.state is RunState.SILENT:
        pieces.append(f"silent for {duration_words(snapshot.silent_seconds or 0.0)}")
    elif snapshot.num_workers > 1:
        pieces.append(f"{snapshot.num_workers:,} workers")
    pieces.append(f"{'?' if rate is None else format(rate, ',.1f')} {snapshot.info.unit}/s")
    return ", ".join(pieces)


def _bar_format(words: str) -> str:
    return "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [" + words + "]"
