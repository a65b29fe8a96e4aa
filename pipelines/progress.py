"""Progress of a run beside the run itself, by counting committed parts: it shows on every runner, and is true."""

from __future__ import annotations

import threading
from types import TracebackType

from storage.errors import CacheError
from storage.label_runs.folder import RunFolder, RunInfo
from storage.label_runs.following import RunFollower
from storage.label_runs.showing import ProgressDisplay


class RunProgress:
    """A bar on a terminal, or plain lines where they are asked for, fed by a thread. What is not shown is not looked at.

    Args:
        show: whether a bar may be shown.
        line_seconds: a line is written so often, in place of a bar; None: no lines.
    """

    def __init__(self, run: RunFolder, *, info: RunInfo, show: bool, line_seconds: float | None = None) -> None:
        self._run = run
        self._info = info
        self._display = ProgressDisplay(num_rows=info.num_rows, unit=info.unit, show=show, line_seconds=line_seconds)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def _poll(self) -> None:
        follower: RunFollower | None = None
        wait_seconds = 0.0
        while not self._stop.wait(wait_seconds):
            try:
                follower = follower or RunFollower.open(self._run, info=self._info)
                wait_seconds = follower.wait_seconds
                self._display.update(follower.look())
            except CacheError:
                # The workers meet the same trouble and say it; a bar must not end a run.
                wait_seconds = 1.0

    def __enter__(self) -> RunProgress:
        if self._display.shown:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._display.end(done=kind is None)
