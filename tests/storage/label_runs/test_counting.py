"""What a run has done is counted from listings, whatever else lies there, and each thing is looked at once."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import CacheError, SourceError
from storage.filesystem import Store
from storage.label_runs import counting
from storage.label_runs.counting import RunCounter
from storage.label_runs.folder import PartsTable, RunFolder, new_run_name
from storage.sources import index_source
from tests.storage.caches import make_labeller, make_request
from tests.storage.label_runs.made import start_run


@pytest.fixture
def labeller(tmp_path):
    return make_labeller(tmp_path)


def counter_of(run):
    return RunCounter(run.folder, parts=run.folder.parts(run.info))


def test_parts_are_counted_as_they_come(tmp_path, any_url, monkeypatch):
    monkeypatch.setattr(counting, "_PIECE_FILES", 3)  # S3 is listed in pieces from then on
    run = start_run(make_labeller(tmp_path, url=any_url))
    counter = counter_of(run)
    before = counter.look()
    assert (before.num_parts, before.num_rows, before.num_done_parts, before.num_done_rows) == (6, 34, 0, 0)
    assert before.whole
    assert not before.done
    for done, (number, rows) in enumerate([(4, 3), (0, 10), (1, 17), (5, 20), (2, 27), (3, 34)], start=1):
        run.commit(number)
        counts = counter.look()
        assert (counts.num_done_parts, counts.num_done_rows, counts.num_records) == (done, rows, done)
    assert counts.done


def test_what_was_there_before_and_parts_of_others_do_not_count(labeller):
    run = start_run(labeller)
    other = start_run(replace(labeller, request=make_request(seed=5)), num_views=3)
    for number in range(9):
        other.commit(number)
    # Of the same request, not of this run.
    labeller.label(num_views=2, views_per_part=2)
    assert counter_of(run).look_at_all().num_done_parts == 0
    assert counter_of(other).look_at_all().done


def fabricated(store, names, *, rows=2):
    """A run of parts with these names, of one request."""
    table = PartsTable()
    for name in names:
        table.add(request="ab" * 32, part=name, num_rows=rows, replaces=None)
    return RunCounter(RunFolder(store=store, name="20260131-120000-01234567"), parts=table.finish())


def put(store, name):
    store.write(f"requests/{'ab' * 32}/{name}.json", b"no record")
    store.write(f"requests/{'ab' * 32}/{name}.{'0' * 16}.tar", b"")


NAMES = st.sets(
    st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2)).map(lambda pair: f"{pair[0]:04x}{'7' * 28}.v0000{pair[1]}-00009"),
    min_size=1,
    max_size=60,
)


@given(names=NAMES, others=NAMES, data=st.data())
def test_a_listing_in_pieces_counts_what_a_whole_one_counts(names, others, data):
    store = Store(f"memory://{uuid.uuid4().hex}")
    order = data.draw(st.permutations(sorted(names)))
    steps = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=3)))
    for name in others - names:
        put(store, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_PIECE_FILES", 3)
        in_pieces, whole = fabricated(store, names), fabricated(store, names)
        in_pieces._in_pieces = True
        done = 0
        for step in [*steps, len(order)]:
            for name in order[done:step]:
                put(store, name)
            done = max(done, step)
            counts = in_pieces.look_at_all()
            while not counts.whole:
                counts = in_pieces.look_at_all()
            # A round that was begun before the last parts came is ended first.
            counts = in_pieces.look(seconds=60)
            assert counts.num_done_parts == whole.look().num_done_parts == done
        assert counts.done


def test_a_look_without_time_goes_on_at_the_next_one(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}")
    names = [f"{number:02x}{'7' * 30}.v00000-00001" for number in range(256)]
    for name in names:
        put(store, name)
    monkeypatch.setattr(counting, "_PIECE_FILES", 3)
    counter = fabricated(store, names)
    counter._in_pieces = True
    counts = [counter.look(seconds=0.0)]
    while not counts[-1].whole:
        counts.append(counter.look(seconds=0.0))
    assert len(counts) > 10
    done = [one.num_done_parts for one in counts]
    assert done == sorted(set(done))
    assert done[-1] == 256


def test_a_listing_that_breaks_off_is_gone_through_again(tmp_path, monkeypatch):
    run = start_run(make_labeller(tmp_path, url="memory://broken"))
    parts = run.folder.parts(run.info)
    others = parts.set_column(parts.column_names.index("request"), "request", pa.array(["f" * 64] * len(parts)))
    counter = RunCounter(run.folder, parts=pa.concat_tables([parts, others.cast(parts.schema)]))
    run.commit(0)
    names = counting.file_names

    def broken(store, folder):
        monkeypatch.setattr(counting, "file_names", names)
        yield from ()
        raise CacheError("the store is away")

    monkeypatch.setattr(counting, "file_names", broken)
    with pytest.raises(CacheError, match="away"):
        counter.look()
    counts = counter.look()
    assert (counts.num_done_parts, counts.whole) == (1, True)


def test_pieces_in_which_nothing_is_missing_are_not_listed_again(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}")
    names = [f"{number:02x}{'7' * 30}.v00000-00001" for number in range(256)]
    for name in names[:-1]:
        put(store, name)
    monkeypatch.setattr(counting, "_PIECE_FILES", 3)
    counter = fabricated(store, names)
    counter._in_pieces = True
    counter.look(seconds=60)
    listed = []
    files = Store.files
    monkeypatch.setattr(
        Store,
        "files",
        lambda self, folder, *, beginning="": listed.append((folder, beginning)) or files(self, folder, beginning=beginning),
    )
    assert counter.look(seconds=60).num_done_parts == 255
    assert [beginning for folder, beginning in listed if folder.startswith("requests/")] == ["ff"]
    put(store, names[-1])
    assert counter.look(seconds=60).done
    listed.clear()
    assert counter.look(seconds=60).done
    assert listed == []


def test_dead_letters_are_of_new_records_each_read_once(labeller, monkeypatch):
    keys = [sample.key for sample in labeller.source.read(index_source(labeller.source).units[0].unit)]
    dead = replace(labeller, dead=frozenset({(keys[0], 0), (keys[1], None)}))
    run = start_run(dead)
    counter, read = counter_of(run), []
    original = Store.read
    monkeypatch.setattr(Store, "read", lambda self, name: read.append(name) or original(self, name))
    run.commit(0)
    assert counter.look().num_dead_letters == 2
    run.commit(1)
    run.commit(4)
    counts = counter.look()
    assert (counts.num_dead_letters, counts.num_records, counts.num_done_parts) == (3, 3, 3)
    read.clear()
    assert counter.look().num_dead_letters == 3
    assert read == []


def test_of_many_records_that_are_there_some_are_read_at_each_look(labeller, monkeypatch):
    monkeypatch.setattr(counting, "_RECORDS_A_LOOK", 2)
    run = start_run(labeller)
    for number in range(6):
        run.commit(number)
    counter = counter_of(run)
    assert [counter.look().num_records for _ in range(4)] == [2, 4, 6, 6]


def test_a_damaged_record_counts_as_a_part_and_has_no_letters(labeller):
    run = start_run(labeller)
    record = run.commit(0)
    labeller.cache.store.write(labeller.cache.record_name(record.part), b"damaged")
    counts = counter_of(run).look()
    assert (counts.num_done_parts, counts.num_records) == (1, 0)


def test_a_part_that_stands_there_twice_is_done_once(labeller):
    # Of two units without samples, or tried again for a target that stores it and for one that it is lent to.
    first = start_run(labeller)
    record = first.commit(0)
    table = PartsTable()
    for part, replaces in [(first.parts[0], record.tar_name), (first.parts[1], None)] * 2:
        table.add(request=part.request, part=part.name, num_rows=7, replaces=replaces)
    folder = RunFolder(store=labeller.cache.store, name=new_run_name())
    counter = RunCounter(folder, parts=table.finish())
    folder.store.write(f"{folder.path}/uncured/{record.part.request}.{record.part.name}.json", b"{}")
    counts = counter.look()
    assert (counts.num_parts, counts.num_rows, counts.num_done_parts, counts.done) == (2, 14, 1, False)
    first.commit(1)
    counts = counter.look()
    assert (counts.num_done_parts, counts.num_done_rows, counts.done) == (2, 14, True)


def test_parts_that_are_tried_again_are_done_when_they_are_replaced_or_cannot_be_cured(labeller):
    first = start_run(labeller)
    records = [first.commit(number) for number in range(6)]
    run = start_run(labeller, replaces={0: records[0].tar_name, 3: records[3].tar_name, 4: records[4].tar_name})
    # An older tar of the part, that a label set may still name.
    store, cache = labeller.cache.store, labeller.cache
    old = records[4].model_copy(update={"tar_name": f"{records[4].part.name}.{'1' * 16}.tar"})
    store.write(cache.tar_name(old), b"older")
    counter = counter_of(run)
    assert counter.look().num_done_parts == 3
    data = store.read(cache.tar_name(records[0])) + bytes(512)
    replaced = records[0].model_copy(update={"tar_name": f"{records[0].part.name}.{'0' * 16}.tar", "tar_bytes": len(data)})
    store.write(cache.tar_name(replaced), data)
    assert counter.look().num_done_parts == 3  # its record comes a moment later
    cache.replace_part(data, record=replaced, replaces=records[0].tar_name)
    assert counter.look().num_done_parts == 4
    store.write(f"{run.folder.path}/uncured/{records[3].part.request}.{records[3].part.name}.json", b"{}")
    counts = counter.look()
    assert (counts.num_done_parts, counts.done) == (5, False)
    assert counter_of(run).look().num_done_parts == 5


def test_failed_units_are_not_there_and_told_apart_from_missing_ones(labeller):
    run = start_run(labeller)
    counter = counter_of(run)
    run.folder.report(run.parts[2].name, SourceError("the tar is gone"), fatal=False)
    run.folder.report(run.parts[3].name, SourceError("the tar is gone"), fatal=False)
    counts = counter.look()
    assert (counts.num_failed_parts, counts.done_or_failed, counter.fatal) == (2, False, None)
    for number in (0, 1, 4, 5):
        run.commit(number)
    counts = counter.look()
    assert (counts.num_failed_parts, counts.done_or_failed, counts.done) == (2, True, False)
    assert counter.failures(most=5) == ["the tar is gone"]
    assert counter.is_missing(run.parts[2].name)
    # An engine may try a unit again.
    run.commit(2)
    assert counter.look().num_failed_parts == 1
    run.commit(3)
    counts = counter.look()
    assert (counts.num_failed_parts, counts.done) == (0, True)
    assert counter.failures(most=5) == []


def test_an_error_that_stops_workers_is_told_with_its_time(labeller):
    run = start_run(labeller)
    counter = counter_of(run)
    counter.look()
    run.folder.report("setup-1234abcd", SourceError("no weights"), fatal=True)
    counts = counter.look()
    assert (counter.fatal, counts.num_failed_parts, counts.done_or_failed) == ("no weights", 0, False)
    assert abs(counter.fatal_at - labeller.cache.store.now()) < 20
    assert counter.failures(most=5) == ["no weights"]


def test_an_error_that_stops_workers_is_read_however_many_units_failed(labeller):
    run = start_run(labeller)
    for number in range(200):
        run.folder.report(f"{number:032x}.v0", SourceError("gone"), fatal=False)
    run.folder.report("setup-1234abcd", SourceError("no weights"), fatal=True)
    counter = counter_of(run)
    counter.look()
    assert counter.fatal == "no weights"


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", json.dumps({"fatal": True}).encode(), b"[" * 100_000])
def test_a_report_that_cannot_be_read_is_a_failed_unit(labeller, data):
    run = start_run(labeller)
    labeller.cache.store.write(f"{run.folder.path}/errors/{run.parts[0].name}.json", data)
    counter = counter_of(run)
    assert counter.look().num_failed_parts == 1
    assert counter.failures(most=5) == []


def test_what_is_left_of_some_parts_is_known(labeller):
    run = start_run(labeller)
    run.commit(1)
    counter = counter_of(run)
    counter.look_at_all()
    names = [part.name for part in run.parts]
    assert counter.num_undone(run.parts[0].request, names[:3]) == 2
    assert counter.num_undone(run.parts[0].request, ["0" * 32 + ".v00000-00001"]) == 0
    assert counter.num_undone("cd" * 32, names) == 0
