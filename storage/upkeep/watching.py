"""`decant cache watch`: follow a run of `decant label` from another terminal or machine, until it ends."""

from __future__ import annotations

import shlex
import sys
import time
from typing import Any

from storage.cache import Cache
from storage.errors import CacheError, DecantError
from storage.filesystem import Store
from storage.label_runs.folder import RunFolder, RunInfo, find_run, known_runs
from storage.label_runs.following import RunFollower, Snapshot
from storage.label_runs.showing import LINE_SECONDS, ProgressDisplay, duration_words, progress_words
from storage.label_runs.state import SILENT_SECONDS, RunState
from storage.upkeep.leases import held_runs

PATIENCE_MINUTES = 10.0
_MOST_MESSAGES = 5
_MOST_LISTED = 20


class WatchInterruptedError(DecantError):
    """Somebody ended the watching of a run, which goes on."""

    exit_code = 130


def watch(
    url: str,
    *,
    run: str | None = None,
    once: bool = False,
    patience_minutes: float = PATIENCE_MINUTES,
    line_seconds: float | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Follow a run until it ends; return its figures, "problems" if it failed, and a readable form under "text".

    Args:
        run: its name, the beginning of it, or the name of an experiment, whose newest run is taken; None: the newest.
        once: only say how it stands.
        patience_minutes: how long a run may be silent before it is taken for dead.
        line_seconds: how often a line is written to standard error where that is no terminal; None: every minute.
        show: whether to show anything while it goes on.

    Raises:
        CacheError: there is no such run, or the store failed for longer than that.
        WatchInterruptedError: on Ctrl-C.
    """
    if not patience_minutes >= 0:
        raise CacheError(f"patience of {patience_minutes} minutes: give 0 or more")
    cache = Cache.at(url)
    name = run
    try:
        folder, info = find_run(cache.store, wanted=run)
        name = folder.name
        if run is None and show:
            _name_others(cache.store, watched=name)
        follower = RunFollower.open(folder, info=info)
        if line_seconds is None and show and not once and not sys.stderr.isatty():
            line_seconds = LINE_SECONDS
        display = ProgressDisplay(num_rows=info.num_rows, unit=info.unit, show=show and not once, line_seconds=line_seconds)
        try:
            snapshot = _follow(follower, display, once=once, patience_seconds=patience_minutes * 60)
        finally:
            display.end(done=False)
        return _result(cache, follower, snapshot, once=once)
    except KeyboardInterrupt as error:
        again = shlex.join(["decant", "cache", "watch", url, *([] if name is None else [name])])
        raise WatchInterruptedError(
            f"no longer watching; {'the run' if name is None else f'run {name}'} goes on. Watch it again: {again}"
        ) from error


def _follow(follower: RunFollower, display: ProgressDisplay, *, once: bool, patience_seconds: float) -> Snapshot:
    """Look until the run has ended, or nobody was heard for too long."""
    failing_since: float | None = None
    began = time.monotonic()
    while True:
        try:
            snapshot = follower.look()
        except CacheError:
            # The store may be back soon, and the run goes on without whoever watches.
            failing_since = failing_since or time.monotonic()
            if once or time.monotonic() - failing_since > patience_seconds:
                raise
            time.sleep(follower.wait_seconds)
            continue
        failing_since = None
        display.update(snapshot)
        if snapshot.counts.whole:
            silent = snapshot.elapsed_seconds if snapshot.silent_seconds is None else snapshot.silent_seconds
            # What was silent before anybody watched may be about to begin again.
            silent = min(silent, time.monotonic() - began) if snapshot.state is RunState.WAITING else silent
            given_up = snapshot.state is not RunState.RUNNING and silent > patience_seconds
            if once or snapshot.state.ended or given_up:
                return snapshot
        time.sleep(0.0 if once else follower.wait_seconds)


def _name_others(store: Store, *, watched: str) -> None:
    """Say which runs go on beside the one that is watched since nobody named another."""
    try:
        others = sorted(held_runs(store, now=store.now()) - {watched}, reverse=True)
    except CacheError:
        # A cache that cannot be written has no clock that can be asked; the run itself can be watched.
        return
    if others:
        sys.stderr.write(
            f"watching {watched}, the newest run; {len(others)} more go on: {', '.join(others[:3])} "
            f"(decant cache watch {store.url} RUN, or --list)\n"
        )


def _result(cache: Cache, follower: RunFollower, snapshot: Snapshot, *, once: bool) -> dict[str, Any]:
    info, counts = snapshot.info, snapshot.counts
    label_sets = [
        {
            "name": target.name,
            "id": target.label_set,
            "committed": cache.store.exists(f"label_sets/{target.label_set}/manifest.json"),
        }
        for target in info.targets
    ]
    head = f"{info.name}, run {info.run} ({info.runner}, started {info.started} by {info.host})"
    again = info.command or "run what started it again"
    problems: list[str] = []
    lines = [head, f"  {progress_words(snapshot)}"]
    match snapshot.state:
        case RunState.DONE:
            lines += [f"  label set {one['id']} ({one['name']}) is committed" for one in label_sets if one["committed"]]
            if not all(one["committed"] for one in label_sets):
                by_itself = "" if info.detached else ", unless the command that started it still runs and does it"
                lines.append(f"next: {again}\n  commits the label set, in seconds and without the teacher{by_itself}")
        case RunState.FAILED:
            problems += follower.counter.failures(most=_MOST_MESSAGES)
            lines.append(
                f"  it failed: {counts.num_parts - counts.num_done_parts:,} parts are missing; what is there stays. What workers "
                f"reported, more in {cache.store.url}/{follower.run.path}/errors:"
            )
            lines += [f"  {problem}" for problem in problems]
            lines.append(f"next: mend that, then: {again}")
        case RunState.SILENT | RunState.WAITING if not once:
            silent = snapshot.elapsed_seconds if snapshot.silent_seconds is None else snapshot.silent_seconds
            problems.append(
                f"run {info.run}: no worker was heard of for {duration_words(silent)}; it was killed, or its engine gives it no "
                f"worker. What is committed is whole. See what the engine says of it, or go on: {again}"
            )
            lines += [f"  {problems[0]}"]
        case _:
            if info.jobs:
                lines.append(f"  the engine's pages call it {', '.join(info.jobs)}; it is ended there")
            lines.append(f"watch it: decant cache watch {cache.store.url} {info.run}")
    return {
        **snapshot.figures(),
        "label_sets": label_sets,
        "next": info.command,
        "problems": problems,
        "text": "\n".join(lines),
    }


def list_runs(url: str) -> dict[str, Any]:
    """Return the newest runs of a cache that can be followed, and a readable form under "text"."""
    store = Cache.existing(url).store
    now = store.now()
    entries: list[dict[str, Any]] = []
    for folder, info in known_runs(store):
        if len(entries) == _MOST_LISTED:
            break
        entries.append(_entry(folder, info, now=now))
    lines = [f"{'run':<26}{'rows':>14}  {'runner':<16}{'heard of':<16}experiment"] if entries else []
    for entry in entries:
        silent = entry["silent_seconds"]
        heard = "never" if silent is None else f"{duration_words(silent)} ago"
        lines.append(f"{entry['run']:<26}{entry['num_rows']:>14,}  {entry['runner']:<16}{heard:<16}{entry['name']}")
    if not entries:
        lines.append(
            f"{url} has no run that can be followed; decant label starts one, and decant cache gc removes those that ended"
        )
    return {"runs": entries, "text": "\n".join(lines)}


def _entry(folder: RunFolder, info: RunInfo, *, now: float) -> dict[str, Any]:
    heard = list(folder.last_heard().values())
    return {
        **info.model_dump(mode="json", include={"run", "name", "runner", "detached", "host", "started", "num_parts", "num_rows"}),
        "num_workers": sum(now - at <= SILENT_SECONDS for at in heard),
        "silent_seconds": max(now - max(heard), 0.0) if heard else None,
    }
