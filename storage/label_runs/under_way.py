"""Detached runs that somebody works on at this moment, so that nobody computes the same a second time."""

from __future__ import annotations

from collections.abc import Iterator, Set

from storage.errors import CorruptError, FormatError
from storage.filesystem import Store
from storage.label_runs.folder import RunFolder
from storage.label_runs.following import RunFollower, Snapshot
from storage.upkeep.leases import HELD_SECONDS, has_hold_of_run, held_runs, release_hold

DEAD_SECONDS = 600.0
"""A run that was silent for so long is taken for dead."""


def detached_runs(store: Store, *, requests: Set[str]) -> Iterator[tuple[RunFollower, Snapshot]]:
    """Yield the detached runs that hold any of some requests, the newest first, each looked at as a whole.

    Raises:
        CacheError: the store failed.
    """
    if not has_hold_of_run(store):
        return
    try:
        names = sorted(held_runs(store, now=store.now()), reverse=True)
    except FormatError:
        # gc must know what is held; here the worst that comes of a damaged hold is work that is done twice.
        return
    for name in names:
        run = RunFolder(store=store, name=name)
        try:
            info = run.info()
            if not info.detached or requests.isdisjoint(target.request for target in info.targets):
                continue
            follower = RunFollower.open(run, info=info)
        except (FileNotFoundError, CorruptError):
            continue
        while not (snapshot := follower.look()).counts.whole:
            pass
        yield follower, snapshot


def is_under_way(snapshot: Snapshot) -> bool:
    """Return whether more parts of a run may come."""
    if snapshot.silent_seconds is None:
        # It waits for its turn on a busy engine, maybe for hours.
        return not snapshot.state.ended and snapshot.elapsed_seconds <= HELD_SECONDS
    return not snapshot.state.ended and snapshot.silent_seconds <= DEAD_SECONDS


def release_ended(store: Store, *, requests: Set[str]) -> None:
    """Take away the holds of detached runs of some requests that have ended, so that gc need not wait for two weeks.

    Not of those whose label sets nobody has committed yet: no other file names the parts that wait for that.
    """
    for follower, snapshot in detached_runs(store, requests=requests):
        label_sets = (target.label_set for target in snapshot.info.targets)
        if snapshot.state.ended and all(store.exists(f"label_sets/{one}/manifest.json") for one in label_sets):
            release_hold(store, run=follower.run.name)


def why_wait(store: Store, snapshot: Snapshot, *, num_shared: int, num_missing: int) -> str:
    """Return what to say to somebody who is about to compute what a run computes already."""
    info = snapshot.info
    heard = "no worker was heard of yet" if snapshot.silent_seconds is None else f"heard of {snapshot.silent_seconds:.0f} s ago"
    return (
        f"run {info.run} ({info.runner}, started {info.started} by {info.host}; {heard}) computes {num_shared:,} of the "
        f"{num_missing:,} parts that are missing; {snapshot.counts.num_done_parts:,} of its {snapshot.counts.num_parts:,} are "
        f"there. Watch it: decant cache watch {store.url} {info.run}\nWhen it has ended, run this command again, which commits "
        "the label set. Or help with --anyway: each passes over what the other has committed, and what both compute is right"
    )
