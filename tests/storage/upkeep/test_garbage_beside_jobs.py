"""gc beside running jobs: whatever happens between its listing and its removal, nothing is lost that somebody wants."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import uuid
from dataclasses import replace

import pytest

from storage.cache import Cache
from storage.errors import CacheError, CorruptError
from storage.filesystem import Store
from storage.hashing import canonical_json
from storage.label_set import LabelSet
from storage.parts import PartRecord
from storage.sources import index_source
from storage.upkeep.garbage import collect_garbage
from storage.upkeep.leases import hold_requests, removing
from storage.upkeep.sweep import EMPTY_REQUESTS, LABEL_SETS, STRAY_TARS, UNUSED_PARTS
from storage.upkeep.tags import set_tag
from storage.verify import verify
from tests.storage.caches import make_labeller, make_request, read_tree
from tests.storage.upkeep.litter import (
    NOW,
    assert_whole,
    collect,
    collector,
    counts,
    litter,
    settle,
)


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def labeller(tmp_path, url):
    return make_labeller(tmp_path, url=url)


def test_a_part_committed_in_between_survives(tmp_path, any_url):
    labeller = make_labeller(tmp_path, url=any_url)
    labeller.label()
    cache, unit = labeller.cache, index_source(labeller.source).units[0]
    other = replace(labeller, request=make_request(seed=9))
    cache.add_request(other.request)
    data, record = other.make_part(unit, first_view=0, num_views=2)
    cache.store.write(cache.tar_name(record), data)  # a killed writer's
    gc = collector(any_url)
    found = list(gc.find())
    assert sorted(garbage.kind for garbage in found) == [EMPTY_REQUESTS, STRAY_TARS]
    time.sleep(1.1 if any_url.startswith("s3") else 0.02)  # S3 counts whole seconds
    cache.commit_part(data, record=record)
    assert gc.remove(found) == []
    assert cache.find_part(record.part) == record
    assert_whole(any_url, other.label(name="other"))


@pytest.mark.parametrize("has_record", [False, True])
def test_a_tar_written_again_in_between_survives(tmp_path, any_url, has_record):
    # A writer that has not come to its record yet, and one that found the record of another.
    labeller = make_labeller(tmp_path, url=any_url)
    labeller.label()
    cache, unit = labeller.cache, index_source(labeller.source).units[0]
    data, record = replace(labeller, request=make_request(seed=9)).make_part(unit, first_view=0, num_views=2)
    cache.store.write(cache.tar_name(record), data)
    if has_record:
        cache.commit_part(data, record=record)
    gc = collector(any_url)
    found = list(gc.find())
    assert [garbage.kind for garbage in found] == [UNUSED_PARTS if has_record else STRAY_TARS]
    time.sleep(1.1 if any_url.startswith("s3") else 0.02)
    before = read_tree(any_url)
    cache.store.write(cache.tar_name(record), data)
    assert gc.remove(found) == []
    assert read_tree(any_url) == before


def test_old_parts_named_by_a_label_set_in_between_survive(labeller, url):
    # Nothing of them is written anew: only the label set says that they are used now.
    labeller.label()
    other = replace(labeller, request=make_request(seed=9))
    label_set = other.label(name="other")
    for name in (
        "names/other.json",
        *(f"{label_set.folder}/{name}" for name in ("manifest.json", label_set.manifest.parts_file)),
    ):
        labeller.cache.store.remove(name)
    gc = collector(url)
    found = list(gc.find())
    assert {garbage.kind for garbage in found} == {UNUSED_PARTS, EMPTY_REQUESTS}
    before = read_tree(url)
    again = other.label(name="other")
    assert {name for name, data in read_tree(url).items() if before.get(name) != data} == {
        "names/other.json",
        f"{again.folder}/manifest.json",
        f"{again.folder}/{again.manifest.parts_file}",
    }
    assert gc.remove(found) == []
    assert_whole(url, again)


def test_a_tag_waits_until_gc_has_removed_and_is_not_set_on_what_is_gone(labeller, url):
    label_set = labeller.label()
    labeller.cache.store.remove("names/tiny.json")
    refused = []

    def tag():
        try:
            set_tag(url, label_set=label_set.manifest.id, name="v1")
        except CorruptError as error:
            refused.append(str(error))

    thread = threading.Thread(target=tag)
    with removing(labeller.cache.store):
        thread.start()
        time.sleep(0.5)
        labeller.cache.store.remove(f"{label_set.folder}/manifest.json")
    thread.join()
    assert [f"{label_set.folder} was removed or replaced while it was opened" in message for message in refused] == [True]
    assert labeller.cache.names() == {}
    assert labeller.cache.store.names("runs") == []


def test_old_parts_that_a_job_has_found_survive_until_it_names_them(labeller, url):
    labeller.label()
    other = replace(labeller, request=make_request(seed=9))
    unit = index_source(labeller.source).units[0]
    labeller.cache.add_request(other.request)
    data, record = other.make_part(unit, first_view=0, num_views=2)
    labeller.cache.commit_part(data, record=record)
    gc = collector(url)
    found = list(gc.find())
    assert len(found) == 2
    with hold_requests(labeller.cache, requests=[other.request.fingerprint()]):
        assert gc.remove(found) == []
        listed = collect(url, delete=True)
        assert (counts(listed), listed["num_held_files"]) == ({}, 3)
        assert "3 files of requests that jobs hold (remove runs/holds/" in listed["text"]
        assert_whole(url, other.label(name="other"))
    assert labeller.cache.store.names("runs") == []
    assert counts(collect(url, delete=True)) == {}


@pytest.mark.parametrize("how", ["tag", "label", "hold"])
def test_a_label_set_that_is_wanted_again_in_between_survives_with_its_parts(labeller, url, how):
    label_set = labeller.label()
    replace(labeller, request=make_request(seed=4)).label()
    gc = collector(url, untagged=True)
    found = list(gc.find())
    assert {garbage.kind for garbage in found} == {LABEL_SETS, UNUSED_PARTS, EMPTY_REQUESTS}
    before = read_tree(url)
    match how:
        case "tag":
            set_tag(url, label_set=label_set.manifest.id, name="v1")
            assert gc.remove(found) == []
        case "label":
            labeller.label(name="again")
            assert gc.remove(found) == []
        case _:
            with hold_requests(labeller.cache, requests=[labeller.request.fingerprint()]):
                assert gc.remove(found) == []
    assert before.items() <= read_tree(url).items()
    assert_whole(url, label_set)


def test_a_manifest_damaged_in_between_stops_gc(labeller, url, tmp_path):
    label_set = labeller.label()
    litter(labeller)
    gc = collector(url)
    found = list(gc.find())
    before = read_tree(url)
    path = tmp_path / "cache" / label_set.folder / "manifest.json"
    path.write_bytes(b"damaged")
    with pytest.raises(CorruptError, match=f"nothing was removed, or nothing more: {path} is damaged"):
        gc.remove(found)
    assert {**read_tree(url), f"{label_set.folder}/manifest.json": None} == {**before, f"{label_set.folder}/manifest.json": None}


def test_two_gcs_at_once_do_the_work_of_one(labeller, url, partials_age_at_once):
    label_set = labeller.label()
    garbage = litter(labeller)
    settle(Store(url))
    found, errors = [], []

    def run():
        try:
            found.append(collect_garbage(url, delete=True, **NOW))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not {name for names in garbage.values() for name in names} & read_tree(url).keys()
    assert_whole(url, label_set)


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from storage.upkeep.leases import hold_requests
from storage.sources import open_source
from storage.config import ImageFolderConfig
from storage.cache import Cache
from storage.verify import verify
from tests.storage.caches import Labeller, make_request
folder, name, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
source = open_source(ImageFolderConfig(kind="image_folder", path=str(folder / "pictures"), unit_size=7))
cache = Cache.at(str(folder / "cache"))
for number in range(rounds):
    labeller = Labeller(cache=cache, source=source, request=make_request(seed=number % 3))
    with hold_requests(cache, requests=[labeller.request.fingerprint()]):
        label_set = labeller.label(name=name)
    problems = verify(label_set).problems
    if problems:
        sys.exit("\\n".join(problems))
print("done")
"""


def test_jobs_that_label_while_gc_removes_never_lose_a_part(labeller, url, tmp_path):
    # No grace at all: only what label sets name and jobs hold is safe. Each round forgets the label set of the round before.
    labeller.label(name="kept")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), name, "16"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    removed = 0
    try:
        while any(writer.poll() is None for writer in writers):
            removed += collect_garbage(url, delete=True, untagged=True, **NOW)["num_files"]
        for writer in writers:
            out, problems = writer.communicate()
            assert out == "done\n", problems
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert removed > 10
    cache = Cache.at(url)
    assert sorted(cache.names()) == ["kept", "one", "two"]
    for name in cache.names():
        assert verify(LabelSet.open(cache, name_or_id=name)).problems == ()
    for name in cache.store.names("requests"):
        if name.endswith(".json") and not name.endswith("spec.json"):
            PartRecord.from_bytes(cache.store.read(name), origin=name)


def test_a_job_waits_until_gc_has_removed(labeller):
    cache, order = labeller.cache, []

    def job():
        with hold_requests(cache, requests=["ab" * 32]):
            order.append("job")

    with removing(cache.store):
        thread = threading.Thread(target=job)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        order.append("gc")
    thread.join()
    assert order == ["gc", "job"]
    assert cache.store.names("runs") == []


def test_a_job_does_not_wait_for_ever(labeller):
    problem = r"decant cache gc has been removing files of .*, or remove .*runs/removing/.*\.json"
    with removing(labeller.cache.store):
        with pytest.raises(CacheError, match=problem), hold_requests(labeller.cache, requests=[], wait_seconds=0.2):
            pytest.fail("gc was removing")
        assert labeller.cache.store.names("runs/holds") == []


def test_what_killed_jobs_and_gcs_left_holds_nobody_up(tmp_path, skewed):
    url = f"memory://{uuid.uuid4().hex}"
    labeller = make_labeller(tmp_path, url=url)
    labeller.label()
    litter(labeller)
    store = labeller.cache.store
    store.write("runs/removing/0.json", b"{}")
    store.write("runs/holds/0.json", canonical_json({"requests": [make_request(seed=77).fingerprint()]}))
    skewed.days = 1.1
    with hold_requests(labeller.cache, requests=["ab" * 32], wait_seconds=0.2):
        found = collect_garbage(url, delete=True)
    assert found["num_held_files"] == 0
    assert found["kinds"][UNUSED_PARTS]["files"] == 2
    assert store.names("runs") == []


def test_a_long_job_renews_its_hold(tmp_path, skewed):
    url = f"memory://{uuid.uuid4().hex}"
    labeller = make_labeller(tmp_path, url=url)
    labeller.label()
    litter(labeller)
    with hold_requests(labeller.cache, requests=[make_request(seed=77).fingerprint()], renew_seconds=0.05):
        skewed.days = 5
        time.sleep(0.5)
        found = collect_garbage(url, delete=True)
        assert (found["num_held_files"], found["kinds"][UNUSED_PARTS]["files"]) == (4, 0)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"{}", b'{"requests":3}', b"[" * 100_000),
        b'{"requests":[],"seconds":NaN}',
        b'{"requests":[],"seconds":-1}',
        b'{"requests":[],"seconds":1' + b"0" * 400 + b"}",
    ],
)
def test_a_hold_that_cannot_be_read_stops_gc(labeller, url, data):
    labeller.label()
    litter(labeller)
    labeller.cache.store.write("runs/holds/0.json", data)
    before = read_tree(url)
    with pytest.raises(CorruptError, match="runs/holds/0.json: not a hold this release can read; remove it if its job has ended"):
        collect(url, delete=True)
    assert read_tree(url) == before
