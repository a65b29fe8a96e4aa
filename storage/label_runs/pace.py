"""How fast rows come, where they come in lumps."""

from __future__ import annotations

from collections import deque

_WINDOW_SECONDS = 300.0


class Pace:
    """Rows a second over the last minutes, of counts that somebody takes now and then.

    Args:
        window_seconds: what is older counts no more, but for the last arrival before.
    """

    def __init__(self, *, window_seconds: float = _WINDOW_SECONDS) -> None:
        self._window_seconds = window_seconds
        self._arrivals: deque[tuple[float, int]] = deque()
        self._now = 0.0

    def add(self, *, at: float, num_rows: int) -> None:
        """Take in how many rows there are at a time; times only grow."""
        self._now = at
        if not self._arrivals or num_rows > self._arrivals[-1][1]:
            self._arrivals.append((at, num_rows))
        # One stays that is older, and one more so that two make a distance.
        while len(self._arrivals) > 2 and self._arrivals[1][0] < at - self._window_seconds:
            self._arrivals.popleft()

    def rows_per_second(self) -> float | None:
        """Return the rate between the first and the last arrival of the window; None before the second one."""
        if len(self._arrivals) < 2:
            return None
        (first_at, first), (last_at, last) = self._arrivals[0], self._arrivals[-1]
        usual_gap = (last_at - first_at) / (len(self._arrivals) - 1)
        # Rows that are late by their own measure slow the pace.
        end = last_at if self._now - last_at <= 2 * usual_gap else self._now
        return (last - first) / (end - first_at) if end > first_at else None
