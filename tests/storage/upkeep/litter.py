"""What killed runs and forgotten experiments leave in a cache, and gc with its steps apart."""

from __future__ import annotations

import datetime as datetimes
import time
from dataclasses import replace

from storage.cache import Cache
from storage.errors import SourceError
from storage.filesystem import Store
from storage.label_runs.folder import PartsTable, RunFolder
from storage.label_set import LabelSet
from storage.sources import index_source
from storage.upkeep.collector import Collector
from storage.upkeep.garbage import collect_garbage
from storage.upkeep.sweep import EMPTY_REQUESTS, OLD_RUNS, OLD_TABLES, PARTIAL_FILES, STRAY_TARS, UNUSED_PARTS
from storage.verify import verify
from tests.storage.caches import make_request
from tests.storage.label_runs.made import info_of

NOW = {"grace_hours": 0, "untagged_days": 0}
OLD = "20200101-000000-0123abcd"


def settle(store):
    """Wait until everything in a store is older than the moment."""
    newest = max((file.modified for file in store.files("")), default=0)
    while store.now() <= newest:
        time.sleep(0.01)


def collect(url, **options):
    settle(Store(url))
    return collect_garbage(url, **{**NOW, **options})


def counts(found):
    return {kind: figures["files"] for kind, figures in found["kinds"].items() if figures["files"]}


def collector(url, *, untagged=False):
    settle(Store(url))
    return Collector(cache=Cache.at(url), grace_seconds=0, old_seconds=0, with_label_sets=untagged, with_memos=False)


def assert_whole(url, *label_sets):
    cache = Cache.at(url)
    for label_set in label_sets:
        assert verify(LabelSet.open_id(cache, label_set=label_set.manifest.id)).problems == ()


def write_run(labeller, name, *, parts, failed=()):
    """The folder of a run that was to make some parts; returns its path."""
    table = PartsTable()
    for part in parts:
        table.add(request=part.request, part=part.name, num_rows=7, replaces=None)
    folder = RunFolder(store=labeller.cache.store, name=name)
    folder.write(info_of(labeller, parts=parts, rows=[7] * len(parts), run=name), parts=table.finish())
    for part in failed:
        folder.report(part.name, SourceError("gone"), fatal=False)
    return folder.path


def litter(labeller):
    """Leave behind one of everything; returns the names by kind."""
    cache, store = labeller.cache, labeller.cache.store
    unit = index_source(labeller.source).units[0]
    nobody = replace(labeller, request=make_request(seed=77))
    empty = f"requests/{cache.add_request(make_request(seed=78))}/spec.json"
    unused = f"requests/{cache.add_request(nobody.request)}/spec.json"
    data, record = nobody.make_part(unit, first_view=0, num_views=2)
    cache.commit_part(data, record=record)
    other_data, other = replace(labeller, rows_per_block=3).make_part(unit, first_view=0, num_views=2)
    store.write(cache.tar_name(other), other_data)
    lone_data, lone = replace(labeller, request=make_request(seed=77)).make_part(unit, first_view=2, num_views=1)
    store.write(cache.tar_name(lone), lone_data)
    label_set = next(iter(cache.label_set_ids()))
    found = {
        EMPTY_REQUESTS: [empty, unused],
        UNUSED_PARTS: [cache.record_name(record.part), cache.tar_name(record)],
        STRAY_TARS: [cache.tar_name(other), cache.tar_name(lone)],
        OLD_TABLES: [f"label_sets/{label_set}/parts-{'0' * 16}.parquet", f"label_sets/{label_set}/class_means-{'0' * 16}.block"],
        OLD_RUNS: [f"runs/{OLD}/{name}" for name in ("parts.parquet", "run.json", "tasks/000000.json", "times/12.json")],
        PARTIAL_FILES: [
            f"requests/{labeller.request.fingerprint()}/.{'ab' * 16}.partial",
            f"label_sets/{label_set}/.{'ab' * 16}.partial",
            f"names/.{'ab' * 16}.partial",
            f"sources/.{'ab' * 16}.partial",
            f"teachers/.{'ab' * 16}.partial",
            "sources/.decant-memo-x1/memo",
            f".probe-{'ab' * 16}",
        ],
    }
    for name in [*found[OLD_TABLES], *found[OLD_RUNS][2:], *found[PARTIAL_FILES]]:
        store.write(name, b"left")
    write_run(labeller, OLD, parts=[record.part])
    # Not ours, or not garbage.
    for name in (
        "README.md",
        "quarantine/1/x.tar",
        "requests/mine/x.tar",
        "names/notes.txt",
        "sources/a.parquet",
        "teachers/a.json",
    ):
        store.write(name, b"kept")
    return found


class SkewedClock(datetimes.datetime):
    days = 0.0

    @classmethod
    def now(cls, tz=None):
        return datetimes.datetime.now(tz) + datetimes.timedelta(days=cls.days)
