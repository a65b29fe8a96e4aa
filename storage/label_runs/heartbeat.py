"""What a worker says of itself while it has work in hand: that it lives, and that gc must leave its run's requests alone."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator

from storage.cache import Cache
from storage.errors import CacheError
from storage.hashing import canonical_json
from storage.label_runs.folder import RunFolder
from storage.upkeep.leases import renew_hold

BEAT_SECONDS = 15.0
_RENEW_SECONDS = 1800.0


class Heartbeat:
    """Writes one small file again and again, and renews the hold of the run, which the one that started it may have left.

    A store that fails for a moment does not end the work: the next beat comes.

    Args:
        requests: fingerprints of the requests that the run holds.
        beat_seconds: how often.
    """

    def __init__(self, cache: Cache, *, run: str, requests: Iterable[str], beat_seconds: float = BEAT_SECONDS) -> None:
        self._cache = cache
        self._run = RunFolder(store=cache.store, name=run)
        self._requests = tuple(requests)
        self._beat_seconds = beat_seconds
        worker = {"host": socket.gethostname(), "pid": os.getpid()}
        self._name = f"{self._run.path}/alive/{worker['host']}-{worker['pid']}-{uuid.uuid4().hex[:8]}.json"
        self._data = canonical_json(worker)
        self._lock = threading.Lock()
        self._last = float("-inf")
        self._renewed = time.monotonic()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Beat while the block runs, at its start at once if the last beat is long ago."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self._beat_seconds):
                self.beat()

        self.beat(after_seconds=self._beat_seconds)
        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            stop.set()

    def beat(self, *, after_seconds: float = 0.0) -> None:
        """Beat once, unless the last beat was less than some seconds ago."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < after_seconds:
                return
            with contextlib.suppress(CacheError):
                self._cache.store.write(self._name, self._data)
                self._last = now
                if now - self._renewed > _RENEW_SECONDS and self._requests:
                    renew_hold(self._cache.store, run=self._run.name, requests=self._requests)
                    self._renewed = now
