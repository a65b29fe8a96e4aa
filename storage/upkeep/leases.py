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
from dataclasses import dataclass

from storage.cache import Cache
from storage.errors import CacheError, FormatError
from storage.filesystem import Store, StoredFile
from storage.hashing import canonical_json
from storage.label_runs.folder import RUN_NAME

HELD_SECONDS = 24 * 3600.0
"""A hold that was not renewed for so long is a dead job's."""
REMOVING_SECONDS = 600.0
"""A mark of gc that is older was left by one that was killed."""

DETACHED_SECONDS = 14 * 24 * 3600.0
"""So long the parts of a detached run wait for whoever commits them, from when a worker was last at work."""

_HOLDS = "runs/holds"
_MARKS = "runs/removing"


@contextlib.contextmanager
def hold_requests(
    cache: Cache,
    *,
    requests: Iterable[str],
    run: str | None = None,
    renew_seconds: float = 3600.0,
    wait_seconds: float = 120.0,
) -> Iterator[None]:
    """Keep gc off the parts of some requests, also old ones that no label set names yet, until the block ends.

    Parts that are found inside the block stay until it ends.

    Args:
        requests: fingerprints of requests, in which parts are looked for or made.
        run: name of the run that the hold is for, whose folder stays, too.
        renew_seconds: how often the hold is written again, so that a long job is not taken for a dead one.
        wait_seconds: how long to wait for a gc that removes at this moment.

    Raises:
        CacheError: the store failed, or gc went on removing for too long.
    """
    name, requests = run or uuid.uuid4().hex, sorted(set(requests))
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(renew_seconds):
            # The store may be back at the next turn; a day without it ends the hold.
            with contextlib.suppress(CacheError):
                _write_hold(cache.store, name=name, requests=requests)

    thread = threading.Thread(target=renew, daemon=True)
    try:
        _write_hold(cache.store, name=name, requests=requests)
        _wait_for_gc(cache.store, wait_seconds=wait_seconds)
        thread.start()
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
        release_hold(cache.store, run=name)


def leave_hold(cache: Cache, *, run: str, requests: Iterable[str], wait_seconds: float = 120.0) -> None:
    """Hold requests for a run that goes on without this process: its workers renew the hold, and two weeks without them end it.

    Raises:
        CacheError: the store failed, or gc went on removing for too long.
    """
    _write_hold(cache.store, name=run, requests=requests, seconds=DETACHED_SECONDS)
    _wait_for_gc(cache.store, wait_seconds=wait_seconds)


def renew_hold(store: Store, *, run: str, requests: Iterable[str]) -> None:
    """Write the hold of a run again, as it is; where there is none, one that ends in a day."""
    try:
        store.write(f"{_HOLDS}/{run}.json", store.read(f"{_HOLDS}/{run}.json"))
    except FileNotFoundError:
        _write_hold(store, name=run, requests=requests)


def _write_hold(store: Store, *, name: str, requests: Iterable[str], seconds: float | None = None) -> None:
    longer = {} if seconds is None else {"seconds": seconds}
    store.write(f"{_HOLDS}/{name}.json", canonical_json({"requests": sorted(set(requests)), **longer}))


def release_hold(store: Store, *, run: str) -> None:
    """Take the hold of a run away; absent is fine."""
    store.remove(f"{_HOLDS}/{run}.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Hold:
    file: StoredFile
    requests: tuple[str, ...]
    seconds: float

    @property
    def name(self) -> str:
        return self.file.name.removeprefix(f"{_HOLDS}/").removesuffix(".json")


def _holds(store: Store, *, now: float) -> Iterator[_Hold]:
    """Yield the holds that count.

    Raises:
        FormatError: one cannot be read, so that nobody knows what it holds.
    """
    for file in store.files(_HOLDS):
        age = now - file.modified
        if not file.name.endswith(".json") or age > DETACHED_SECONDS:
            continue
        try:
            data = json.loads(store.read(file.name))
            hold = _Hold(file=file, requests=tuple(map(str, data["requests"])), seconds=float(data.get("seconds", HELD_SECONDS)))
            if not hold.seconds >= 0:
                raise ValueError(f"held for {hold.seconds} seconds")
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            if age > HELD_SECONDS:
                continue
            raise FormatError(
                f"{store.url}/{file.name}: not a hold this release can read; remove it if its job has ended"
            ) from error
        if age <= hold.seconds:
            yield hold


def held_requests(store: Store, *, now: float) -> dict[str, str]:
    """Return the requests that jobs hold, each with the file of a hold.

    Args:
        now: the store's time, as `Store.now` gave it.

    Raises:
        FormatError: a hold cannot be read, so that nobody knows what it holds.
    """
    return {request: hold.file.name for hold in _holds(store, now=now) for request in hold.requests}


def held_runs(store: Store, *, now: float) -> frozenset[str]:
    """Return the names of the runs that have a hold. Arguments and errors are those of `held_requests`."""
    return frozenset(hold.name for hold in _holds(store, now=now) if RUN_NAME.fullmatch(hold.name))


def has_hold_of_run(store: Store) -> bool:
    """Return whether there is a hold of any run, of whatever age; costs one listing."""
    names = (file.name.removeprefix(f"{_HOLDS}/").removesuffix(".json") for file in store.files(_HOLDS))
    return any(RUN_NAME.fullmatch(name) for name in names)


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
    counting = {hold.file.name for hold in _holds(store, now=now)}
    yield from (file.name for file in store.files(_HOLDS) if now - file.modified > HELD_SECONDS and file.name not in counting)
    yield from (file.name for file in store.files(_MARKS) if now - file.modified > REMOVING_SECONDS)
