"""`decant cache gc`: what can go from a cache, in figures and in words, and its removal."""

from __future__ import annotations

import itertools
from typing import Any

from storage.cache import Cache
from storage.errors import CacheError
from storage.label_set import read_manifest
from storage.upkeep.collector import Collector, LabelSetFiles
from storage.upkeep.sweep import KINDS

_CHUNK = 512
_HOUR_SECONDS = 3600.0
_DAY_SECONDS = 24 * _HOUR_SECONDS
_SHOWN = 20


def collect_garbage(
    url: str,
    *,
    delete: bool = False,
    grace_hours: float = 24.0,
    untagged_days: float = 30.0,
    untagged: bool = False,
    memos: bool = False,
) -> dict[str, Any]:
    """Find what nobody refers to in a cache, and remove it if asked to.

    Args:
        delete: remove it; otherwise only say what would be.
        grace_hours: what was written later stays.
        untagged_days: age from which label sets that no name and no tag points at are listed; memos and unfinished runs are then
            old, too.
        untagged: such label sets go, too, and the parts that only they name.
        memos: such memos go, too.

    Raises:
        CacheError: a label set cannot be read, so that nobody knows what it refers to; nothing was removed.
    """
    if not (grace_hours >= 0 and untagged_days >= 0):
        raise CacheError(f"grace of {grace_hours} hours and age of {untagged_days} days: give 0 or more")
    collector = Collector(
        cache=Cache.existing(url),
        grace_seconds=grace_hours * _HOUR_SECONDS,
        old_seconds=untagged_days * _DAY_SECONDS,
        with_label_sets=untagged,
        with_memos=memos,
    )
    listed = [_describe(collector, found) for found in collector.unnamed]
    kinds = {kind: {"files": 0, "bytes": 0} for kind in KINDS}
    found = collector.find()
    while chunk := list(itertools.islice(found, _CHUNK)):
        for garbage in collector.remove(chunk) if delete else chunk:
            kinds[garbage.kind]["files"] += len(garbage.files)
            kinds[garbage.kind]["bytes"] += garbage.num_bytes
    old_memos = [] if memos else list(collector.sweep.find_memos())
    figures: dict[str, Any] = {
        "deleted": delete,
        "kinds": kinds,
        "num_files": sum(kind["files"] for kind in kinds.values()),
        "num_bytes": sum(kind["bytes"] for kind in kinds.values()),
        "grace_hours": grace_hours,
        "untagged_days": untagged_days,
        "young": dict(zip(("files", "bytes"), collector.sweep.young, strict=True)),
        "num_held_files": collector.num_held,
        "held_requests": collector.held,
        "num_unfinished_runs": collector.sweep.num_unfinished_runs,
        "num_held_runs": collector.sweep.num_held_runs,
        "untagged_label_sets": listed,
        "old_memos": {"files": len(old_memos), "bytes": sum(memo.num_bytes for memo in old_memos)},
        "problems": collector.problems,
    }
    return {**figures, "text": _in_words(url, figures)}


def _describe(collector: Collector, found: LabelSetFiles) -> dict[str, Any]:
    days = (collector.now - max(file.modified for file in found.files)) / _DAY_SECONDS
    described = {"id": found.label_set, "days": round(days, 1), "leaves": found.label_set in collector.leaving}
    if found.manifest is None:
        return {**described, "name": None, "teacher": None, "num_rows": None, "parts_bytes": None}
    manifest = read_manifest(collector.cache, label_set=found.label_set)
    return {
        **described,
        "name": manifest.name,
        "teacher": manifest.request.teacher.architecture,
        "num_rows": manifest.num_rows,
        "parts_bytes": manifest.parts_bytes,
    }


def _in_words(url: str, figures: dict[str, Any]) -> str:
    if figures["deleted"]:
        lines = [f"{url}: {figures['num_files']:,} files removed, {figures['num_bytes']:,} bytes"]
    elif figures["num_files"]:
        lines = [
            f"{url}: {figures['num_files']:,} files can go, {figures['num_bytes']:,} bytes. Nothing was removed; --delete does it"
        ]
    else:
        lines = [f"{url}: nothing to remove"]
    lines += [
        f"  {kind:<28}{counts['files']:>12,} files{counts['bytes']:>20,} bytes"
        for kind, counts in figures["kinds"].items()
        if counts["files"]
    ]
    young, listed, memos = figures["young"], figures["untagged_label_sets"], figures["old_memos"]
    if young["files"]:
        lines.append(
            f"kept: {young['files']:,} files, {young['bytes']:,} bytes, that are younger than {figures['grace_hours']:g} h"
        )
    if figures["num_held_files"]:
        holds = ", ".join(sorted(set(figures["held_requests"].values()))[:3])
        lines.append(f"kept: {figures['num_held_files']:,} files of requests that jobs hold (remove {holds} if they have ended)")
    if figures["num_held_runs"]:
        lines.append(f"kept: {figures['num_held_runs']:,} runs that go on; decant cache watch {url} --list says how far they are")
    if figures["num_unfinished_runs"]:
        num_runs, days = figures["num_unfinished_runs"], figures["untagged_days"]
        lines.append(f"kept: {num_runs:,} runs that did not finish, until they are {days:g} days old")
    if memos["files"]:
        lines.append(
            f"kept: {memos['files']:,} memos, {memos['bytes']:,} bytes, not written for {figures['untagged_days']:g} days; "
            "--memos removes them"
        )
    staying = [entry for entry in listed if not entry["leaves"]]
    if staying:
        lines.append(
            f"kept: {len(staying):,} label sets older than {figures['untagged_days']:g} days that no name points at; "
            "--untagged removes them, decant cache tag keeps one"
        )
        for entry in staying[:_SHOWN]:
            what = "no manifest" if entry["name"] is None else f"{entry['name']}, {entry['teacher']}, {entry['num_rows']:,} rows"
            lines.append(f"  {entry['id']}  {entry['days']:.0f} days  {what}")
        if len(staying) > _SHOWN:
            lines.append(f"  ... and {len(staying) - _SHOWN:,} more")
    return "\n".join([*lines, *figures["problems"]])
