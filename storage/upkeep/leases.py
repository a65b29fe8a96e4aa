"""Who works in a cache at this moment: jobs hold requests, and gc says when it removes.

Either side first writes down what it is about to do, and then looks what the other side wrote. So one of them always sees the
other: gc leaves what is held, or a job waits until gc has removed. All times are the store's.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator

from storage.cache import Cache
from storage.errors import CacheError, FormatError
from storage.filesystem import Store
from storage.hashing import canonical_json

HELD_SECONDS = 24 * 3600.0
"""A hold that was not renewed for so long is a dead job's."""
REMOVING_SECONDS = 600.0
"""A mark of gc that is older was left by one that was killed."""

_HOLDS = "runs/holds"
_MARKS = "runs/removing"


@contextlib.contextmanager
def hold_requests(
    cache: Cache, *, requests: Iterable[str], renew_seconds: float = 3600.0, wait_seconds: float = 120.0
) -> Iterator[None]:
    """Keep gc off the parts of some requests, also old ones that no label set names yet, until the block ends.

    Parts that are found inside the block stay until it ends.

    Args:
        requests: fingerprints of requests, in which parts are looked for or made.
        renew_seconds: how often the hold is written again, so that a long job is not taken for a dead one.
        wait_seconds: how long to wait for a gc that removes at this moment.

    Raises:
        CacheError: the store failed, or gc went on removing for too long.
    """
    name, data = f"{_HOLDS}/{uuid.uuid4().hex}.json", canonical_json({"requests": sorted(set(requests))})
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(renew_seconds):
            # The store may be back at the next turn; a day without it ends the hold.
            with contextlib.suppress(CacheError):
                cache.store.write(name, data)

    thread = threading.Thread(target=renew, daemon=True)
    cache.store.write(name, data)
    try:
        _wait_for_gc(cache.store, wait_seconds=wait_seconds)
        thread.start()
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
        cache.store.remove(name)


def _wait_for_gc(store: Store, *, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while marks := list(store.files(_MARKS)):
        now = store.now()
        marks = [mark for mark in marks if now - mark.modified < REMOVING_SECONDS]
        if not marks:
            return
        if time.monotonic() > deadline:
            raise CacheError(
                f"decant cache gc has been removing files of {store.url} for {wait_seconds:.0f} s; run this command again when "
                f"it has ended, or remove {store.url}/{marks[0].name} if it runs no more"
            )
        time.sleep(0.1)


def held_requests(store: Store, *, now: float) -> dict[str, str]:
    """Return the requests that jobs hold, each with the file of a hold.

    Args:
        now: the store's time, as `Store.now` gave it.

    Raises:
        FormatError: a hold cannot be read, so that nobody knows what it holds.
    """
    held: dict[str, str] = {}
    for file in store.files(_HOLDS):
        if not file.name.endswith(".json") or now - file.modified > HELD_SECONDS:
            continue
        try:
            requests = json.loads(store.read(file.name))["requests"]
            held |= dict.fromkeys(map(str, requests), file.name)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{store.url}/{file.name}: not a hold this release can read; remove it if its job has ended"
            ) from error
    return held


@contextlib.contextmanager
def removing(store: Store) -> Iterator[None]:
    """Say that files are removed inside the block, which must look for holds before it removes, and end in ten minutes."""
    name = f"{_MARKS}/{uuid.uuid4().hex}.json"
    store.write(name, b"{}")
    try:
        yield
    finally:
        store.remove(name)


def old_leavings(store: Store, *, now: float) -> Iterator[str]:
    """Yield the holds and marks that killed processes left."""
    for folder, seconds in ((_HOLDS, HELD_SECONDS), (_MARKS, REMOVING_SECONDS)):
        yield from (file.name for file in store.files(folder) if now - file.modified > seconds)
