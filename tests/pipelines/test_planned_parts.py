"""Plans of many units: arrays that say what objects would, tasks that are never all held, a job graph that does not grow."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest

from pipelines.engine import pipeline_options
from pipelines.label_task import LabelTask, ListedTasks
from pipelines.plan import make_plan
from pipelines.planned_parts import PlannedTasks
from pipelines.task_files import UNITS_PER_FILE, TaskFiles, read_tasks, write_tasks
from pipelines.work_units import work_units
from storage.cache import Cache
from storage.errors import FormatError, MismatchError
from storage.filesystem import Store
from storage.hashing import fingerprint
from storage.label_set import UsedPart, label_set_id
from storage.part_listing import PartListing
from storage.specs import PartSpec
from tests.pipelines.test_plan import REQUEST, commit, plan, unit, wider


@pytest.fixture
def cache(tmp_path):
    return Cache.at(str(tmp_path / "cache"))


def many_units(number):
    """Units that are cheap to make, of distinct contents."""
    some = unit(0)
    return [
        replace(some, unit=replace(some.unit, name=f"unit{index}"), digest=fingerprint(index), num_samples=index % 3 + 1)
        for index in range(number)
    ]


@pytest.fixture
def mixed(cache):
    """A plan that computes some parts, reuses some, and borrows some; unit 4 and unit 5 have equal contents."""
    units = [unit(number, num_samples=number + 1) for number in range(5)]
    units.append(replace(units[4], unit=replace(units[4].unit, name="twin")))
    commit(cache, units[1], (0, 2))
    commit(cache, units[2], (1, 3))
    cache.add_request(wider(2))
    commit(cache, units[3], (0, 5), request=wider(2))
    commit(cache, units[4], (0, 1))
    return units, plan(cache, units, num_views=4)


def test_the_arrays_of_a_plan_say_what_view_ranges_say(mixed):
    units, found = mixed
    own, lent = REQUEST.fingerprint(), wider(2).fingerprint()
    told = [
        (used.unit_name, used.first_view, used.num_views, used.part.first_view, used.part.num_views, used.part.request == own)
        for used in found.parts
    ]
    assert told == [
        ("unit0", 0, 2, 0, 2, True),
        ("unit0", 2, 2, 2, 2, True),
        ("unit1", 0, 2, 0, 2, True),
        ("unit1", 2, 2, 2, 2, True),
        ("unit2", 0, 1, 0, 1, True),
        ("unit2", 1, 2, 1, 2, True),
        ("unit2", 3, 1, 3, 1, True),
        ("unit3", 0, 4, 0, 5, False),
        ("unit4", 0, 1, 0, 1, True),
        ("unit4", 1, 1, 1, 1, True),
        ("unit4", 2, 2, 2, 2, True),
        ("twin", 0, 1, 0, 1, True),
        ("twin", 1, 1, 1, 1, True),
        ("twin", 2, 2, 2, 2, True),
    ]
    assert [(task.unit.name, task.part.first_view) for task in found.tasks] == [
        ("unit0", 0),
        ("unit0", 2),
        ("unit1", 2),
        ("unit2", 0),
        ("unit2", 3),
        ("unit4", 1),
        ("unit4", 2),
        ("twin", 1),
        ("twin", 2),
    ]
    assert (found.num_lent_parts, found.num_lent_rows, found.num_new_units) == (1, 16, 1)
    assert found.requests == {own, lent}
    assert found.lenders == {lent}
    assert found.tasks.requests == {own}
    assert found.num_missing_rows == sum(task.num_samples * task.part.num_views for task in found.tasks)
    assert [
        one.digest for one in units if one.unit.name in ("unit0", "unit1", "unit2", "unit4", "twin")
    ] == found.tasks.unit_digests


def test_arrays_are_sequences(mixed):
    _, found = mixed
    for sequence in (found.parts, found.tasks):
        listed = list(sequence)
        assert len(sequence) == len(listed)
        assert [sequence[index] for index in range(-len(listed), len(listed))] == [*listed, *listed]
        assert sequence[1:4] == listed[1:4]
        assert sequence[::-2] == listed[::-2]
        for index in (len(listed), -len(listed) - 1):
            with pytest.raises(IndexError):
                sequence[index]


def test_tasks_of_a_plan_and_listed_ones_say_the_same_of_all(mixed):
    _, found = mixed
    listed = ListedTasks(list(found.tasks))
    assert isinstance(found.tasks, PlannedTasks)
    assert (found.tasks.num_rows, found.tasks.requests) == (listed.num_rows, listed.requests)
    assert set(found.tasks.unit_digests) == set(listed.unit_digests)
    assert list(found.tasks.retried) == listed.retried == []
    for request in (REQUEST, wider(2)):
        assert list(found.tasks.of_request(request.fingerprint())) == list(listed.of_request(request.fingerprint()))
    retried = replace(listed[0], replaces="tar", num_dead_rows=1)
    assert ListedTasks([*listed, retried]).retried == [retried]


def test_a_label_sets_identity_is_the_fingerprint_of_its_parts_however_many():
    for number in (0, 1, 512, 513, 1025):
        parts = [
            UsedPart(
                unit_name=f"unit {index} \u00e9",
                part=PartSpec(request=("ab" if index % 3 else "cd") * 32, unit_digest=f"{index:064x}", first_view=0, num_views=3),
                first_view=1,
                num_views=2,
            )
            for index in range(number)
        ]
        members = [
            [used.unit_name, used.part.unit_digest, 1, 2, *([] if used.part.request == "ab" * 32 else ["cd" * 32])]
            for used in parts
        ]
        whole = fingerprint({"request": "ab" * 32, "parts": members})[:32]
        assert label_set_id(request="ab" * 32, parts=iter(parts)) == whole


def test_listed_names_that_are_no_parts_cover_nothing(cache):
    one = unit(1)
    record = commit(cache, one, (0, 2))
    folder = cache.request_folder(REQUEST.fingerprint())
    stem = record.part.name.partition(".")[0]
    for name in (
        f"{stem}.v00003-00003",
        f"{stem}.v00004-00002",
        f"{stem}.vx-00002",
        f"{stem}.v0-{'9' * 12}",
        f"{stem}0.v00002-00004",
    ):
        cache.store.write(f"{folder}/{name}.json", b"")
    listing = PartListing.of(cache.store, folder)
    assert listing.ranges([one.digest, unit(2).digest]) == {one.digest: [(0, 2)]}
    assert listing.ranges([]) == {}
    covered = listing.covered([unit(2).digest, one.digest, one.digest])
    assert covered.content_of[1] == covered.content_of[2] != covered.content_of[0]
    assert covered.contents.tolist() == [covered.content_of[1]]


def test_what_a_plan_reads_of_a_record_refuses_what_the_whole_does(cache):
    record = commit(cache, unit(1), (0, 2))
    other = commit(cache, unit(2), (0, 2)).part
    missing = record.part.model_copy(update={"first_view": 7})
    assert list(cache.are_committed([record.part, missing, other])) == [True, False, True]
    assert [found and found.tar_name for found in cache.find_parts([record.part, missing])] == [record.tar_name, None]
    cache.store.write(cache.tar_name(record), b"cut short")
    assert list(cache.are_committed([record.part, other])) == [False, True]
    cache.store.write(cache.record_name(record.part), cache.store.read(cache.record_name(other)))
    with pytest.raises(MismatchError, match="moved or renamed"):
        list(cache.are_committed([record.part]))
    data = record.to_bytes()
    cache.store.write(cache.record_name(record.part), data[:40] + b"0" + data[41:])
    with pytest.raises(FormatError, match="damaged"):
        list(cache.are_committed([record.part]))


@pytest.mark.s3
def test_records_of_a_remote_store_are_read_many_at_a_time(s3_bucket, monkeypatch):
    cache = Cache.at(f"s3://{s3_bucket}/planned")
    units = many_units(40)
    for one in units[::2]:
        commit(cache, one, (0, 2))
    together, reading = [], set()
    read = Store.read

    def noted(self, name):
        reading.add(name)
        together.append(len(reading))
        try:
            return read(self, name)
        finally:
            reading.remove(name)

    monkeypatch.setattr(Store, "read", noted)
    found = plan(cache, units, num_views=2)
    assert [task.unit.name for task in found.tasks] == [one.unit.name for one in units[1::2]]
    assert max(together) > 4
    records = list(cache.find_parts(used.part for used in found.parts))
    assert [record and record.part.unit_digest for record in records] == [
        one.digest if index % 2 == 0 else None for index, one in enumerate(units)
    ]


# Work units and their files


def task(number, *, request="ab", first_view=0, replaces=None):
    part = PartSpec(request=request * 32, unit_digest=f"{number:064x}", first_view=first_view, num_views=2)
    return LabelTask(unit=unit(number).unit, part=part, num_samples=2, replaces=replaces, num_dead_rows=1 if replaces else 0)


def test_tasks_of_several_targets_meet_in_the_sources_order():
    units = [unit(number) for number in (3, 1, 2)]
    first = [task(3), task(1), task(2, first_view=2)]
    second = [task(1, request="cd"), task(2, request="cd"), task(2, request="cd", first_view=2)]
    retried = [task(2, request="cd", replaces="tar"), task(3, request="cd", replaces="tar")]
    targets = [ListedTasks(first), ListedTasks([*retried, *reversed(second)])]
    assert list(work_units(targets, units=units)) == [
        (first[0],),
        (retried[1],),
        (first[1], second[0]),
        (second[1],),
        (retried[0],),
        (first[2], second[2]),
    ]
    assert list(work_units([ListedTasks(retried)], units=units)) == [(one,) for one in retried]
    assert list(work_units([], units=units)) == []


def test_what_two_targets_try_again_of_one_part_is_tried_once():
    # One of them lends the other its rows.
    retried = [task(number, replaces="tar") for number in (1, 2)]
    units = [unit(1), unit(2)]
    assert list(work_units([ListedTasks(retried), ListedTasks(retried)], units=units)) == [(one,) for one in retried]


def test_plans_of_several_targets_meet_without_being_sorted(cache, tmp_path):
    units = many_units(20)
    one = plan(cache, units, num_views=3)
    other = plan(Cache.at(str(tmp_path / "other")), units, num_views=3, request=wider(2))
    found = list(work_units([one.tasks, other.tasks], units=units))
    assert [[(two.unit.name, two.part.first_view) for two in pair] for pair in found] == [
        [(one.unit.name, first), (one.unit.name, first)] for one in units for first in (0, 2)
    ]


def test_task_files_hold_so_many_units_each_and_give_them_back(cache):
    units = [(task(number), task(number, request="cd")) for number in range(2 * UNITS_PER_FILE + 1)]
    units[1] = (replace(task(1), unit=replace(unit(1).unit, locator={"url": "s3://\u00e9", "files": ["a", 2]})),)
    files = write_tasks(cache.store, folder="runs/r", units=iter(units))
    assert files == TaskFiles(folder="runs/r", num_files=3)
    names = cache.store.names("runs/r/tasks")
    assert sorted(files.names()) == names
    found = [list(read_tasks(cache.store, name=name)) for name in names]
    assert [len(in_file) for in_file in found] == [UNITS_PER_FILE, UNITS_PER_FILE, 1]
    assert {one for in_file in found for one in in_file} == set(units)
    assert write_tasks(cache.store, folder="runs/none", units=[]).num_files == 0


def test_runs_over_one_cache_go_through_their_units_in_different_orders(cache):
    units = [(task(number),) for number in range(2 * UNITS_PER_FILE)]

    def order(folder):
        files = write_tasks(cache.store, folder=folder, units=units)
        return [units.index(one) for name in files.names() for one in read_tasks(cache.store, name=name)]

    one, other = order("runs/one"), order("runs/other")
    assert sorted(one) == sorted(other) == list(range(len(units)))
    # Where both are at the same unit they would compute it twice; by chance it is one place in a thousand.
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 20
    names = {tuple(TaskFiles(folder=f"runs/{number}", num_files=50).names()) for number in range(2)}
    assert len({tuple(name.rpartition("/")[2] for name in run) for run in names}) == 2


def test_a_plan_and_its_tasks_take_little_memory_a_unit(cache):
    def peak_bytes(number):
        units = many_units(number)
        tracemalloc.start()
        try:
            found = make_plan(cache, request=REQUEST, units=units, num_views=1, views_per_part=1)
            write_tasks(cache.store, folder=f"runs/{number}", units=work_units([found.tasks], units=units))
            assert len(found.label_set) == 32
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # As objects a part and its task would take 700 bytes.
    assert peak_bytes(6000) - peak_bytes(2000) < 250 * 4000


def test_the_job_graph_is_as_large_for_many_units_as_for_one(cache):
    from apache_beam import Pipeline

    from pipelines.transforms import NameTaskFiles

    def graph_bytes(num_files):
        with_files = Pipeline(options=pipeline_options([]))
        _ = with_files | NameTaskFiles(TaskFiles(folder="runs/20260131-120000-0123abcd", num_files=num_files))
        return len(with_files.to_runner_api().SerializeToString())

    # It is packed: other numbers take some bytes more or less.
    assert abs(graph_bytes(1_000_000) - graph_bytes(1)) < 100
