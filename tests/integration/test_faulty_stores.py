"""Whole commands while an object store fails now and then, forgets conditions, or dies and comes back."""

from __future__ import annotations

import functools
import time
import uuid

import fsspec
import numpy as np
import pytest

from storage import connections, creation
from storage.cache import Cache
from storage.config import load_config
from storage.label_set import LabelSet
from storage.retries import Patience
from storage.sources import open_source
from storage.streams.label_stream import LabelStream
from tests.integration.support import refuse
from tests.pipelines.support import shard_bytes, snapshot, write_parquet
from tests.storage.caches import read_tree
from tests.storage.faulty_s3 import PASSING, Fault, every, first

pytestmark = [pytest.mark.s3, pytest.mark.integration]

READERS_SEE = ("requests/", "label_sets/", "names/")


@pytest.fixture
def root(s3_bucket):
    return f"s3://{s3_bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def sources(tmp_path, root):
    """The same two shards and the same table on disk and in the object store, by kind: (on disk, in the store)."""
    fs = fsspec.filesystem("s3")
    for number in range(2):
        shard = shard_bytes(range(6 * number, 6 * number + 6))
        (tmp_path / f"{number}.tar").write_bytes(shard)
        fs.pipe_file(f"{root}/data/{number}.tar", shard)
    write_parquet(tmp_path / "table.parquet", num_rows=16)
    fs.pipe_file(f"{root}/data/table.parquet", (tmp_path / "table.parquet").read_bytes())
    places = (str(tmp_path), f"{root}/data")
    return {
        "webdataset": tuple({"kind": "webdataset", "path": f"{place}/{{0..1}}.tar"} for place in places),
        "parquet": tuple({"kind": "parquet", "path": f"{place}/table.parquet"} for place in places),
    }


def visible(tree):
    """What readers see, without manifests and names: these tell where the source lies."""
    kept = {name: data for name, data in tree.items() if name.startswith(READERS_SEE)}
    return {name: data if not name.endswith("/manifest.json") else None for name, data in kept.items()}


def read_rows(cache, *, source):
    """Every row of the label set as a reader gets it, and every picture."""
    stream = LabelStream(LabelSet.open(Cache.at(str(cache)), name_or_id="tiny"), source=source)
    found = []
    for view in range(2):
        for block, count in enumerate(stream.block_rows(epoch=view).tolist()):
            rows = stream.read(epoch=view, block_ids=np.full(count, block), rows=np.arange(count))
            found += zip(rows.keys, rows.soft_labels.densify().tolist(), rows.images, strict=True)
    return found


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_with_faults_all_is_as_on_a_local_disk(command, made_by_colour, faulty_s3, root, sources, tmp_path, kind):
    on_disk, in_store = sources[kind]
    assert command("label", made_by_colour(source=on_disk)).status == 0
    rows = read_rows(tmp_path / "cache", source=open_source(load_config(made_by_colour(source=on_disk)).source))
    faulty_s3.start(every(4, *PASSING))
    config = made_by_colour(source=in_store, cache=f"{root}/cache")
    ended = command("label", config)
    assert (ended.status, ended.err) == (0, "")
    assert command("label", config, "--json").json["num_computed_rows"] == 0
    assert command("cache", "verify", f"{root}/cache", "--json").json["problems"] == []
    assert read_rows(f"{root}/cache", source=open_source(load_config(config).source)) == rows
    assert command("cache", "gc", f"{root}/cache").status == 0
    assert command("cache", "export", f"{root}/cache", "tiny", "--to", f"{root}/export", "--layout", "parquet").status == 0
    assert sum(faulty_s3.met.values()) > 40
    assert set(faulty_s3.met) == set(PASSING)
    faulty_s3.start(first(0, Fault.CUT))
    assert visible(read_tree(f"{root}/cache")) == visible(snapshot(tmp_path / "cache"))


def test_with_faults_damage_is_found_and_repaired(command, made_by_colour, faulty_s3, root, sources):
    config = made_by_colour(source=sources["webdataset"][1], cache=f"{root}/cache")
    assert command("label", config).status == 0
    whole = read_tree(f"{root}/cache")
    tar = next(name for name in whole if name.endswith(".tar"))
    fsspec.filesystem("s3").pipe_file(f"{root}/cache/{tar}", whole[tar][:700] + b"damage" + whole[tar][706:])
    faulty_s3.start(every(4, *PASSING))
    assert command("cache", "verify", f"{root}/cache").status == 1
    assert command("repair", config).status == 0
    assert command("cache", "verify", f"{root}/cache").status == 0
    faulty_s3.start(first(0, Fault.CUT))
    assert visible(read_tree(f"{root}/cache")) == visible(whole)


def test_a_store_that_dies_is_said_in_time_and_the_next_run_goes_on(
    command, made_by_colour, faulty_s3, root, sources, monkeypatch
):
    monkeypatch.setattr(
        connections, "Patience", functools.partial(Patience, seconds=2, hopeless_seconds=0.5, first_wait_seconds=0.05)
    )
    cache = f"{root}/cache"
    config = made_by_colour(source=sources["webdataset"][1], cache=cache)
    tars = []

    def die_after_the_first_part(request):
        if request.method == "PUT" and request.path.endswith(".json") and "/requests/" in request.path and ".v" in request.path:
            tars.append(request.path)
        return Fault.DROP_BEFORE if len(tars) > 1 else None

    faulty_s3.start(die_after_the_first_part)
    started = time.monotonic()
    ended = command("label", config)
    assert time.monotonic() - started < 30
    refuse(ended, status=1, saying=[cache, "tried", "run the same command again to go on"])
    faulty_s3.start(first(0, Fault.CUT))
    assert not [name for name in read_tree(cache) if name.startswith(("label_sets/", "names/"))]
    report = command("label", config, "--json").json
    assert (report["num_rows"], report["num_computed_rows"]) == (24, 12)
    assert command("cache", "verify", cache).status == 0


def test_a_store_that_forgets_conditions_is_said_once_and_serves(
    command, made_by_colour, faulty_s3, root, sources, tmp_path, monkeypatch
):
    monkeypatch.setattr(creation, "SETTLE_SECONDS", 0.05)
    on_disk, _ = sources["webdataset"]
    assert command("label", made_by_colour(source=on_disk)).status == 0
    faulty_s3.start(lambda request: Fault.FORGET_CONDITION if "if-none-match" in request.headers else None)
    config = made_by_colour(source=on_disk, cache=f"{root}/cache")
    ended = command("label", config)
    assert ended.status == 0
    assert ended.err.startswith(f"decant: warning: {root}/cache cannot create a file only if there is none")
    assert ended.err.count("\n") == 1
    again = command("label", config, "--json")
    assert (again.err, again.json["num_computed_rows"]) == ("", 0)
    assert command("cache", "verify", f"{root}/cache").status == 0
    assert read_tree(f"{root}/cache").keys() - {"sources"} >= visible(snapshot(tmp_path / "cache")).keys()
