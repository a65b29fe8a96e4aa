"""gc: removes what nobody refers to, and nothing else."""

from __future__ import annotations

import json
import os
import random
import uuid
from dataclasses import replace

import fsspec
import pytest

from storage.cache import Cache
from storage.errors import CacheError, CorruptError, MismatchError
from storage.hashing import canonical_json, seal, unseal
from storage.label_set import UsedPart
from storage.sources import index_source
from storage.specs import PartSpec
from storage.upkeep import sweep
from storage.upkeep.garbage import collect_garbage
from storage.upkeep.leases import leave_hold, release_hold
from storage.upkeep.sweep import EMPTY_REQUESTS, LABEL_SETS, MEMOS, OLD_RUNS, PARTIAL_FILES, STRAY_TARS, UNUSED_PARTS
from storage.upkeep.tags import set_tag
from tests.storage.caches import make_labeller, make_request, read_tree
from tests.storage.upkeep.litter import OLD, assert_whole, collect, collector, counts, litter, write_run


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def labeller(tmp_path, url):
    return make_labeller(tmp_path, url=url)


def test_everything_that_is_garbage_goes_and_nothing_else(tmp_path, any_url, partials_age_at_once):
    labeller = make_labeller(tmp_path, url=any_url)
    label_set = labeller.label()
    before = read_tree(any_url)
    garbage = litter(labeller)
    littered = read_tree(any_url)
    sizes = {kind: sum(len(littered[name]) for name in names) for kind, names in garbage.items()}
    dry = collect(any_url)
    assert read_tree(any_url) == littered
    assert (dry["deleted"], dry["problems"]) == (False, [])
    assert "Nothing was removed; --delete does it" in dry["text"]
    found = collect(any_url, delete=True)
    assert found["deleted"]
    for figures in (dry, found):
        assert counts(figures) == {kind: len(names) for kind, names in garbage.items()}
        assert {kind: kinds["bytes"] for kind, kinds in figures["kinds"].items() if kinds["files"]} == sizes
        assert (figures["num_files"], figures["num_bytes"]) == (sum(map(len, garbage.values())), sum(sizes.values()))
        json.dumps(figures)
    gone = {name for names in garbage.values() for name in names}
    assert read_tree(any_url) == {name: data for name, data in littered.items() if name not in gone}
    assert before.items() <= read_tree(any_url).items()
    assert_whole(any_url, label_set)
    assert counts(collect(any_url, delete=True)) == {}


def test_empty_folders_of_runs_go(labeller, url, tmp_path):
    labeller.label()
    litter(labeller)
    collect(url, delete=True)
    assert not (tmp_path / "cache" / "runs" / OLD).exists()


def test_a_named_label_set_that_lies_on_another_disk_keeps_its_parts(labeller, url, tmp_path):
    label_set = labeller.label()
    place = tmp_path / "cache" / label_set.folder
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert counts(collect(url, delete=True)) == {}
    assert_whole(url, label_set)


def test_a_cache_that_is_not_there_is_refused_and_not_made(any_url):
    with pytest.raises(CacheError, match=f"{any_url}/elsewhere holds nothing, so no cache is there; check the path"):
        collect_garbage(f"{any_url}/elsewhere", delete=True)
    fs, path = fsspec.core.url_to_fs(f"{any_url}/elsewhere")
    assert not fs.exists(path)


@pytest.mark.parametrize("options", [{"grace_hours": -1}, {"untagged_days": -1}, {"grace_hours": float("nan")}])
def test_negative_ages_are_refused(url, options):
    with pytest.raises(CacheError, match="give 0 or more"):
        collect_garbage(url, **options)


def test_what_is_young_stays(labeller, url):
    labeller.label()
    garbage = litter(labeller)
    before = read_tree(url)
    found = collect_garbage(url, delete=True)
    assert counts(found) == {}
    assert read_tree(url) == before
    assert found["young"]["files"] >= sum(map(len, garbage.values())) - len(garbage[EMPTY_REQUESTS])
    assert "that are younger than 24 h" in found["text"]


def test_what_is_being_written_stays_without_any_grace(labeller, url):
    labeller.label()
    garbage = litter(labeller)
    found = collect(url, delete=True)
    assert counts(found) == {kind: len(names) for kind, names in garbage.items() if kind != PARTIAL_FILES}
    assert set(garbage[PARTIAL_FILES]) <= read_tree(url).keys()
    assert found["young"]["files"] == len(garbage[PARTIAL_FILES])


@pytest.mark.parametrize("days", [-400, 400])
def test_ages_are_by_the_stores_clock(tmp_path, skewed, days):
    url = f"memory://{uuid.uuid4().hex}"
    labeller = make_labeller(tmp_path, url=url)
    skewed.days = days
    label_set = labeller.label()
    garbage = litter(labeller)
    assert counts(collect_garbage(url, delete=True)) == {}
    skewed.days = days + 0.9
    assert counts(collect_garbage(url, delete=True)) == {}
    skewed.days = days + 1.1
    assert counts(collect_garbage(url, delete=True)) == {kind: len(names) for kind, names in garbage.items()}
    assert_whole(url, label_set)


def test_a_copy_that_keeps_times_is_young(labeller, url, tmp_path):
    # rsync and cp -p set the time of change back; what was copied a moment ago may be about to be named.
    labeller.label()
    litter(labeller)
    for path in (tmp_path / "cache").rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert counts(collect_garbage(url, delete=True)) == {}


def damage_manifest(path, how):
    data = path.read_bytes()
    if how == "other release":
        data = seal(canonical_json({**json.loads(unseal(data)), "format": 2}))
    elif how == "renamed":
        data = seal(canonical_json({**json.loads(unseal(data)), "id": "0" * 32}))
    else:
        data = {"flipped": data[:99] + bytes([data[99] ^ 1]) + data[100:], "short": data[:-1], "empty": b""}[how]
    path.write_bytes(data)


@pytest.mark.parametrize("untagged", [False, True])
@pytest.mark.parametrize("how", ["flipped", "short", "empty", "other release", "renamed"])
def test_a_damaged_manifest_stops_gc_before_anything_goes(labeller, url, tmp_path, how, untagged):
    label_set = labeller.label()
    replace(labeller, request=make_request(seed=4)).label()  # takes the name: the first is untagged
    litter(labeller)
    path = tmp_path / "cache" / label_set.folder / "manifest.json"
    damage_manifest(path, how)
    before = read_tree(url)
    for delete in (False, True):
        with pytest.raises(
            (CorruptError, MismatchError), match=f"nothing was removed.*{path}(.|\n)*Run decant label for it again"
        ):
            collect(url, delete=delete, untagged=untagged)
    assert read_tree(url) == before


@pytest.mark.parametrize("how", ["gone", "flipped"])
def test_a_damaged_table_of_parts_stops_gc_and_labelling_again_mends_it(labeller, url, tmp_path, how):
    label_set = labeller.label()
    path = tmp_path / "cache" / label_set.folder / label_set.manifest.parts_file
    data = path.read_bytes()
    path.unlink() if how == "gone" else path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    before = read_tree(url)
    with pytest.raises(CorruptError, match=f"nothing was removed.*{path}(.|\n)*Run decant label for it again, which mends it"):
        collect(url, delete=True)
    assert read_tree(url) == before
    labeller.label()
    assert counts(collect(url, delete=True)) == {}
    assert_whole(url, label_set)


def test_a_lost_manifest_that_has_a_name_stops_gc(labeller, url, tmp_path):
    label_set = labeller.label()
    path = tmp_path / "cache" / label_set.folder / "manifest.json"
    path.unlink()
    with pytest.raises(
        CorruptError, match=f"names/tiny.json points at label set {label_set.manifest.id}, whose manifest is missing"
    ):
        collect(url, delete=True)
    labeller.label()
    assert counts(collect(url, delete=True)) == {}


def test_what_is_left_of_a_lost_label_set_keeps_its_parts(labeller, url, tmp_path):
    label_set = labeller.label()
    replace(labeller, request=make_request(seed=4)).label()
    (tmp_path / "cache" / label_set.folder / "manifest.json").unlink()
    before = read_tree(url)
    found = collect(url, delete=True)
    assert counts(found) == {}
    assert [(entry["id"], entry["name"]) for entry in found["untagged_label_sets"]] == [(label_set.manifest.id, None)]
    assert "no manifest" in found["text"]
    assert read_tree(url) == before
    assert counts(collect(url, delete=True, untagged=True)) == {LABEL_SETS: 2, UNUSED_PARTS: 6, EMPTY_REQUESTS: 1}


def test_label_sets_without_a_name_are_listed_and_go_only_when_asked(labeller, url):
    first = labeller.label()
    kept = replace(labeller, request=make_request(seed=4)).label(name="other")
    second = replace(labeller, request=make_request(seed=5)).label()
    set_tag(url, label_set=kept.manifest.id, name="v1")
    before = read_tree(url)
    assert collect_garbage(url, delete=True)["untagged_label_sets"] == []  # they are not old
    found = collect(url, delete=True)
    assert counts(found) == {}
    assert [entry["id"] for entry in found["untagged_label_sets"]] == [first.manifest.id]
    entry = found["untagged_label_sets"][0]
    assert (entry["name"], entry["teacher"], entry["num_rows"], entry["leaves"]) == ("tiny", "tiny", 34, False)
    assert f"  {first.manifest.id}  0 days  tiny, tiny, 34 rows" in found["text"]
    assert read_tree(url) == before
    gone = {LABEL_SETS: 3, UNUSED_PARTS: 6, EMPTY_REQUESTS: 1}
    assert counts(collect(url, untagged=True)) == gone
    assert counts(collect(url, untagged=True, delete=True)) == gone
    assert sorted(Cache.at(url).label_set_ids()) == sorted([kept.manifest.id, second.manifest.id])
    assert_whole(url, kept, second)
    # Nothing is lost that could not be made again.
    assert labeller.label(name="again").manifest.parts_sha256 == first.manifest.parts_sha256


def test_a_damaged_name_hides_no_garbage_but_stops_removing_what_has_no_name(labeller, url, tmp_path, partials_age_at_once):
    labeller.label()
    garbage = litter(labeller)
    damaged = tmp_path / "cache" / "names" / "tiny.json"
    damaged.write_bytes(b"{")
    with pytest.raises(CorruptError, match=f"nothing was removed: {damaged}"):
        collect(url, delete=True, untagged=True)
    found = collect(url, delete=True)
    assert found["problems"] == Cache.at(url).read_names()[1]
    assert found["problems"][0] in found["text"]
    assert counts(found) == {kind: len(names) for kind, names in garbage.items()}


def test_parts_that_serve_another_request_stay_with_their_own(labeller, url):
    wide = labeller.label(name="wide")
    narrow = replace(labeller, request=make_request(k=2))
    labeller.cache.add_request(narrow.request)
    used = []
    for indexed in index_source(labeller.source).units:
        part = PartSpec(request=labeller.request.fingerprint(), unit_digest=indexed.digest, first_view=0, num_views=2)
        used.append((UsedPart(unit_name=indexed.unit.name, part=part, first_view=0, num_views=2), labeller.cache.find_part(part)))
    lent = narrow.commit(used, name="narrow", num_views=2)
    labeller.cache.store.remove("names/wide.json")
    assert counts(collect(url, delete=True, untagged=True)) == {LABEL_SETS: 3}
    assert sorted(labeller.cache.label_set_ids()) == [lent.manifest.id] != [wide.manifest.id]
    assert_whole(url, lent)
    assert {fingerprint for fingerprint, _ in labeller.cache.requests()} == {
        labeller.request.fingerprint(),
        narrow.request.fingerprint(),
    }
    assert counts(collect(url)) == {}


def test_the_tar_of_the_record_and_the_tar_of_the_label_set_both_stay(labeller, url):
    label_set = labeller.label()
    cache, unit = labeller.cache, index_source(labeller.source).units[0]
    data, record = replace(labeller, rows_per_block=3).make_part(unit, first_view=0, num_views=2)
    cache.replace_part(data, record=record, replaces=cache.find_part(record.part).tar_name)
    lost_data, lost = replace(labeller, rows_per_block=5).make_part(unit, first_view=0, num_views=2)
    cache.store.write(cache.tar_name(lost), lost_data)
    before = read_tree(url)
    assert counts(collect(url, delete=True)) == {STRAY_TARS: 1}
    del before[cache.tar_name(lost)]
    assert read_tree(url) == before
    assert cache.store.exists(label_set.tar_path(0))
    # While the record cannot be read nobody knows which tar it names.
    cache.store.write(cache.tar_name(lost), lost_data)
    cache.store.write(cache.record_name(record.part), b"damaged")
    assert counts(collect(url, delete=True)) == {}


def test_finished_runs_go_and_others_when_they_are_old(labeller, url):
    label_set = labeller.label()
    store, part = labeller.cache.store, index_source(labeller.source).units[0]
    done = PartSpec(request=labeller.request.fingerprint(), unit_digest=part.digest, first_view=0, num_views=2)
    undone = PartSpec(request=labeller.request.fingerprint(), unit_digest="0" * 64, first_view=0, num_views=2)

    def run(number, *parts, failed=()):
        return write_run(labeller, f"20200101-000000-{number:08x}", parts=parts, failed=failed)

    finished = [run(1, done), run(2, done, undone, failed=[undone]), run(3), run(4, undone)]
    store.remove(f"{finished[3]}/parts.parquet")  # gc was killed while it removed this one
    unfinished = [run(5, done, undone), run(6, done), run(7, done), f"runs/{OLD}"]
    store.write(f"{unfinished[1]}/parts.parquet", b"damaged")
    store.write(f"{unfinished[2]}/run.json", b"damaged")
    store.write(f"runs/{OLD}/tasks/000000.json", b"[]")  # killed before it started
    found = collect(url, delete=True, untagged_days=30)
    assert counts(found) == {OLD_RUNS: 8}
    assert found["num_unfinished_runs"] == 4
    assert "4 runs that did not finish, until they are 30 days old" in found["text"]
    left = {"/".join(name.split("/")[:2]) for name in store.names("runs")}
    assert left == set(unfinished)
    assert counts(collect(url, delete=True)) == {OLD_RUNS: 7}
    assert_whole(url, label_set)


def test_a_run_that_goes_on_stays_whatever_its_age(labeller, url):
    # A detached one: nobody but its workers says that it lives.
    part = PartSpec(request="ab" * 32, unit_digest="0" * 64, first_view=0, num_views=2)
    folder = write_run(labeller, OLD, parts=[part])
    leave_hold(labeller.cache, run=OLD, requests=["ab" * 32])
    found = collect(url, delete=True)
    assert (counts(found), found["num_held_runs"], found["num_unfinished_runs"]) == ({}, 1, 0)
    assert f"kept: 1 runs that go on; decant cache watch {url} --list says how far they are" in found["text"]
    gc = collector(url)
    release_hold(labeller.cache.store, run=OLD)
    gc.sweep.held_runs = frozenset()
    garbage = list(gc.find())
    assert [one.kind for one in garbage] == [OLD_RUNS]
    # The last files to go are those that say what it was.
    assert [file.name for file in garbage[0].files][-2:] == [f"{folder}/parts.parquet", f"{folder}/run.json"]
    leave_hold(labeller.cache, run=OLD, requests=["ab" * 32])  # submitted again in between
    assert gc.remove(garbage) == []
    release_hold(labeller.cache.store, run=OLD)
    assert counts(collect(url, delete=True)) == {OLD_RUNS: 2}
    assert labeller.cache.store.names("runs") == []


def test_memos_stay_unless_asked(labeller, url):
    labeller.label()
    for name in ("sources/a.parquet", "teachers/b.json"):
        labeller.cache.store.write(name, b"memo")
    found = collect(url, delete=True)
    assert (counts(found), found["old_memos"]) == ({}, {"files": 2, "bytes": 8})
    assert "2 memos, 8 bytes, not written for 0 days; --memos removes them" in found["text"]
    assert counts(collect(url, delete=True, memos=True, untagged_days=30)) == {}
    assert counts(collect(url, delete=True, memos=True)) == {MEMOS: 2}


def test_a_large_folder_is_looked_at_in_pieces(labeller, url, monkeypatch, partials_age_at_once):
    label_set = labeller.label()
    store, folder = labeller.cache.store, f"requests/{labeller.request.fingerprint()}"
    rng = random.Random(0)
    for number in range(400):
        store.write(f"{folder}/{rng.randbytes(16).hex()}.v00000-00002.{number:016x}.tar", b"x")
    store.write(f"{folder}/.{'ab' * 16}.partial", b"x")
    whole = counts(collect(url))
    assert whole == {STRAY_TARS: 400, PARTIAL_FILES: 1}
    for files, num_pieces in ((100, 17), (10, 257)):
        monkeypatch.setattr(sweep, "_FOLDER_FILES", files)
        shards = sweep.Sweep(cache=labeller.cache, references=None, now=0, before=0, old_before=0)._shards(folder)
        assert len(shards) == num_pieces
        assert counts(collect(url)) == whole
    assert counts(collect(url, delete=True)) == whole
    assert_whole(url, label_set)
