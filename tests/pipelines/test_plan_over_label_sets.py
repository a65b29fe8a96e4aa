"""A plan that trusts label sets is the plan that reads every record; what was removed is seen all the same."""

from __future__ import annotations

import random
import shutil
import uuid
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.describe import describe_report
from pipelines.label import plan_run, run_label
from pipelines.plan import make_plan
from storage.cache import Cache
from storage.errors import CacheError, DeadLetterLimitError
from storage.label_set import LabelSet, commit_label_set
from storage.part_listing import PartListing, name_hashes, within
from tests.pipelines.support import colour_teacher, config_of, experiment, folder_source, shard_bytes, write_folder
from tests.pipelines.test_plan import REQUEST, commit, plan, unit, wider

WIDE = wider(2)


@pytest.fixture
def cache(tmp_path):
    return Cache.at(str(tmp_path / "cache"))


@pytest.fixture
def looked_at(monkeypatch):
    """The parts whose records are read."""
    found = []
    find_record = Cache.find_record
    monkeypatch.setattr(
        Cache, "find_record", lambda self, part, *, kind: (found.append(part.name), find_record(self, part, kind=kind))[1]
    )
    return found


def label(cache, units, *, num_views=2, request=REQUEST, name="tiny"):
    """Make what a plan lacks and commit its label set."""
    cache.add_request(request)
    made = plan(cache, units, num_views=num_views, request=request)
    for task in made.tasks:
        indexed = next(one for one in units if one.unit == task.unit)
        commit(cache, indexed, (task.part.first_view, task.part.first_view + task.part.num_views), request=request)
    return commit_label_set(
        cache,
        identity=made.label_set,
        name=name,
        request=request,
        parts=[(used, cache.find_part(used.part)) for used in made.parts],
        num_views=num_views,
        classes=None,
        source={},
    )


def test_a_plan_of_what_a_label_set_holds_reads_no_record_and_names_the_same_parts(cache, looked_at):
    units = [unit(number) for number in range(5)]
    label_set = label(cache, units, num_views=5)
    looked_at.clear()
    found = plan(cache, units, num_views=5)
    assert looked_at == []
    assert found.standing == label_set.manifest
    assert (found.label_set, len(found.tasks), found.requests) == (label_set.manifest.id, 0, {REQUEST.fingerprint()})
    assert (found.num_units, found.num_samples, found.num_rows, found.num_missing_rows) == (5, 10, 50, 0)
    cache.store.remove(f"label_sets/{label_set.manifest.id}/manifest.json")
    plain = plan(cache, units, num_views=5)
    assert plain.standing is None
    assert len(looked_at) == 15
    assert list(found.parts) == list(plain.parts) == found.parts[:]
    assert found.parts[-1] == plain.parts[-1]
    assert plain.label_set == label_set.manifest.id


def test_where_units_were_added_only_parts_that_no_label_set_names_are_looked_at(cache, looked_at):
    units = [unit(number) for number in range(4)]
    label(cache, units[:3])
    unnamed = commit(cache, units[3], (0, 1))
    looked_at.clear()
    found = plan(cache, units, num_views=2)
    assert looked_at == [unnamed.part.name]
    assert [(task.unit.name, task.part.first_view) for task in found.tasks] == [("unit3", 1)]


def test_parts_that_are_lent_are_vouched_for_too(cache, looked_at):
    units = [unit(number) for number in range(3)]
    label(cache, units, request=WIDE, name="wide")
    narrow = label(cache, units)
    assert set(narrow.parts.column("request").to_pylist()) == {WIDE.fingerprint()}
    looked_at.clear()
    found = plan(cache, units, num_views=2)
    assert (looked_at, len(found.tasks), found.num_lent_rows, found.label_set) == ([], 0, 12, narrow.manifest.id)


@pytest.mark.parametrize("lost", ["record", "tar", "both"])
def test_a_part_that_was_removed_is_made_anew(cache, lost):
    units = [unit(number) for number in range(3)]
    label_set = label(cache, units)
    part = plan(cache, units, num_views=2).parts[1].part
    record = cache.find_part(part)
    for name in {"record": [cache.record_name(part)], "tar": [cache.tar_name(record)]}.get(
        lost, [cache.record_name(part), cache.tar_name(record)]
    ):
        cache.store.remove(name)
    found = plan(cache, units, num_views=2)
    assert [task.part for task in found.tasks] == [part]
    label(cache, units)
    assert plan(cache, units, num_views=2).standing == label_set.manifest


def test_where_two_tars_are_of_one_part_its_record_decides(cache, looked_at):
    units = [unit(number) for number in range(3)]
    label(cache, units)
    part = plan(cache, units, num_views=2).parts[1].part
    record = cache.find_part(part)
    other = cache.tar_name(record).rsplit(".", 2)[0] + ".0123456789abcdef.tar"
    cache.store.write(other, b"another writer's, whose record came second")
    looked_at.clear()
    found = plan(cache, units, num_views=2)
    assert (looked_at, found.standing, len(found.tasks)) == ([part.name], None, 0)


@pytest.mark.parametrize("what", ["manifest.json", "parts_file", "class_means_file"])
def test_a_label_set_that_is_not_whole_does_not_stand(cache, what):
    units = [unit(number) for number in range(3)]
    label_set = label(cache, units)
    name = f"{label_set.folder}/{getattr(label_set.manifest, what, what)}"
    data = cache.store.read(name)
    cache.store.write(name, data[:50] + bytes([data[50] ^ 1]) + data[51:])
    found = plan(cache, units, num_views=2)
    assert (found.standing, len(found.tasks), found.label_set) == (None, 0, label_set.manifest.id)
    label(cache, units)
    assert cache.store.read(name) == data


def test_another_order_other_names_or_fewer_views_are_another_label_set(cache):
    units = [unit(number) for number in range(3)]
    label(cache, units, num_views=4)
    renamed = [replace(one, unit=replace(one.unit, name=f"other{one.unit.name}")) for one in units]
    for asked, num_views in ((units[::-1], 4), (renamed, 4), (units[:2], 4), (units, 2)):
        found = plan(cache, asked, num_views=num_views)
        assert (found.standing, len(found.tasks)) == (None, 0)
        assert [used.unit_name for used in found.parts if used.first_view == 0] == [one.unit.name for one in asked]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_was_made_and_lost_the_plan_is_that_of_a_cache_without_label_sets(cache, seed):
    chance = random.Random(seed)
    units = [unit(number) for number in range(6)]
    for number in range(3):
        some = chance.sample(units, chance.randint(1, 6))
        label(cache, some, num_views=chance.randint(1, 5), request=chance.choice([REQUEST, WIDE]), name=f"set{number}")
        for _ in range(2):
            first = chance.randint(0, 3)
            commit(cache, chance.choice(units), (first, first + chance.randint(1, 3)), request=chance.choice([REQUEST, WIDE]))
    for request in (REQUEST, WIDE):
        listed = cache.store.names(f"requests/{request.fingerprint()}")
        for name in chance.sample(listed, chance.randint(0, min(2, len(listed)))):
            if not name.endswith("spec.json"):
                cache.store.remove(name)
    asked = [(chance.sample(units, chance.randint(1, 6)), chance.randint(1, 5)) for _ in range(4)]
    asked += [(units, 2), (units, 3)]
    trusting = [plan(cache, some, num_views=num_views) for some, num_views in asked]
    for name in cache.store.names("label_sets"):
        cache.store.remove(name)
    for (some, num_views), found in zip(asked, trusting, strict=True):
        plain = plan(cache, some, num_views=num_views)
        assert (list(found.parts), list(found.tasks)) == (list(plain.parts), list(plain.tasks))
        assert (found.num_lent_rows, found.num_missing_rows) == (plain.num_lent_rows, plain.num_missing_rows)
        assert (found.label_set, found.requests) == (plain.label_set, plain.requests)


def test_a_listing_of_a_store_that_is_no_folder_is_the_same(cache):
    label(cache, [unit(1)])
    other = Cache.at(f"memory://{uuid.uuid4().hex}")
    label(other, [unit(1)])
    folder = cache.request_folder(REQUEST.fingerprint())
    here, there = (PartListing.of(one.store, folder) for one in (cache, other))
    assert here.records.tolist() == there.records.tolist()
    assert here.tars.tolist() == there.tars.tolist()
    assert len(here.records) == len(here.tars) == 1
    assert here.ranges([unit(1).digest]) == there.ranges([unit(1).digest]) == {unit(1).digest: [(0, 2)]}
    nothing = PartListing.of(other.store, "requests/none")
    assert (len(nothing.records), nothing.ranges([unit(1).digest])) == (0, {})


@given(st.lists(st.text(st.sampled_from("0123456789abcdef.-v"), max_size=90), max_size=300, unique=True))
def test_names_have_hashes_of_their_own_wherever_they_lie_in_an_array(names):
    hashes = name_hashes(pa.array(names, type=pa.string()))
    assert len(set(hashes.tolist())) == len(names)
    shifted = pa.chunked_array([["something before", *names[:7]], [*names[7:], "something behind"]], type=pa.string())
    assert name_hashes(shifted.slice(1, len(names))).tolist() == hashes.tolist()
    assert within(hashes, np.sort(hashes[::2])).tolist() == [number % 2 == 0 for number in range(len(names))]


@pytest.fixture
def config(tmp_path):
    pictures = write_folder(tmp_path / "pictures", per_class=4)
    source = folder_source(pictures, unit_size=4)
    return config_of(experiment(cache=tmp_path / "cache", source=source, teacher=colour_teacher()))


def test_a_run_that_has_nothing_to_do_reads_no_record_and_changes_no_file(config, looked_at, tmp_path):
    first = run_label(plan_run(config, progress=False), progress=False)
    files = {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    looked_at.clear()
    again = run_label(plan_run(config, progress=False, retry_dead_letters=True), progress=False)
    assert looked_at == []
    assert (again.label_set, again.num_computed_rows, again.num_rows) == (first.label_set, 0, first.num_rows)
    assert {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file()} == files
    other = run_label(plan_run(config.model_copy(update={"name": "other"}), progress=False), progress=False)
    assert (looked_at, other.label_set) == ([], first.label_set)
    assert Cache.at(config.cache).names() == {"tiny": first.label_set, "other": first.label_set}


def test_a_label_set_that_gc_took_in_between_is_committed_anew(config, tmp_path):
    first = run_label(plan_run(config, progress=False), progress=False)
    planned = plan_run(config, progress=False)
    store = Cache.at(config.cache).store
    store.remove(f"label_sets/{first.label_set}/manifest.json")
    assert run_label(planned, progress=False).label_set == first.label_set
    assert store.exists(f"label_sets/{first.label_set}/manifest.json")
    planned = plan_run(config, progress=False)
    store.remove(f"label_sets/{first.label_set}/manifest.json")
    next((tmp_path / "cache" / "requests").rglob("*.v*.json")).unlink()
    with pytest.raises(CacheError, match="is not committed although the pipeline ended; run the same command again"):
        run_label(planned, progress=False)
    assert run_label(plan_run(config, progress=False), progress=False).num_computed_rows == 8


def test_a_run_says_which_rows_another_committed_in_the_meantime(config, tmp_path):
    late = plan_run(config, progress=False)
    first = run_label(plan_run(config, progress=False), progress=False)
    assert (first.num_computed_rows, first.num_passed_rows) == (24, 0)
    found = run_label(late, progress=False)
    assert (found.label_set, found.num_computed_rows, found.num_passed_rows) == (first.label_set, 0, 24)
    assert "all 24 rows are in the cache" in describe_report(found, cache="CACHE")
    assert "passed over      24 rows, committed in the meantime" in describe_report(found, cache="CACHE")
    # The manifest and one part are lost, and the other parts committed when the run comes to them.
    late = plan_run(config.model_copy(update={"cache": str(tmp_path / "other")}), progress=False)
    shutil.copytree(tmp_path / "cache", tmp_path / "other", dirs_exist_ok=True)
    next((tmp_path / "other" / "requests").rglob("*.v*.json")).unlink()
    found = run_label(late, progress=False)
    assert (found.label_set, found.num_computed_rows, found.num_passed_rows) == (first.label_set, 8, 16)


def test_a_run_that_finds_the_labels_of_another_experiment_reports_its_own_name(config):
    first = run_label(plan_run(config, progress=False), progress=False)
    second = run_label(plan_run(config.model_copy(update={"name": "again"}), progress=False), progress=False)
    assert (second.label_set, second.num_computed_rows) == (first.label_set, 0)
    assert (first.name, second.name) == ("tiny", "again")
    assert describe_report(second, cache="CACHE").endswith("next: decant cache show CACHE again")


def test_classes_that_are_called_otherwise_now_are_so_in_a_label_set_that_stands(tmp_path):
    (tmp_path / "0.tar").write_bytes(shard_bytes(range(6)))

    def called(*names):
        source = {"kind": "webdataset", "path": str(tmp_path / "0.tar"), "classes": names}
        return config_of(experiment(cache=tmp_path / "cache", source=source, teacher=colour_teacher()))

    def manifest_of(config):
        report = run_label(plan_run(config, progress=False), progress=False)
        return report.num_computed_rows, LabelSet.open(Cache.at(config.cache), name_or_id="tiny").manifest

    num_rows, first = manifest_of(called("blue", "gren", "red"))
    assert (num_rows, first.classes) == (12, ("blue", "gren", "red"))
    num_rows, second = manifest_of(called("blue", "green", "red"))
    assert (num_rows, second.id, second.classes) == (0, first.id, ("blue", "green", "red"))


def test_a_lower_limit_of_dead_letters_counts_for_a_label_set_that_stands(config, tmp_path):
    (tmp_path / "pictures" / "red" / "000.png").write_bytes(b"no picture")

    def limited(limit):
        return config.model_copy(update={"generation": config.generation.model_copy(update={"dead_letter_limit": limit})})

    run_label(plan_run(limited(0.5), progress=False), progress=False)
    assert run_label(plan_run(limited(1 / 12), progress=False), progress=False).num_computed_rows == 0
    with pytest.raises(DeadLetterLimitError, match="2 of 24 rows have no label"):
        run_label(plan_run(limited(0.05), progress=False), progress=False)


def test_a_part_that_is_cut_short_is_named_with_a_remedy_when_the_source_grows(config, tmp_path):
    run_label(plan_run(config, progress=False), progress=False)
    tar = next((tmp_path / "cache" / "requests").rglob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-700])
    for number in range(4):
        (tmp_path / "pictures" / "red" / f"1{number:02d}.png").write_bytes((tmp_path / "pictures/red/001.png").read_bytes())
    with pytest.raises(CacheError, match=r"remove this record and run the same command again, or run decant repair") as error:
        run_label(plan_run(config, progress=False), progress=False)
    record = str(error.value).split(": ", 1)[0]
    (tmp_path / record).unlink()
    assert run_label(plan_run(config, progress=False), progress=False).num_computed_rows == 8


def test_a_plan_looks_first_at_the_label_set_of_its_name(cache, monkeypatch):
    units = [unit(number) for number in range(3)]
    label(cache, units)
    monkeypatch.setattr(Cache, "label_set_ids", lambda self: pytest.fail("the name says which"))
    options = {"request": REQUEST, "units": units, "num_views": 2, "views_per_part": 2}
    assert make_plan(cache, **options, name="tiny").standing is not None
