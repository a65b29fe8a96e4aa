"""The folder of a run says what it is to do, to anybody, and is found by its name or its experiment's."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import CacheError, FormatError
from storage.hashing import digest
from storage.label_runs.folder import RUN_NAME, PartsTable, RunFolder, find_run, known_runs, new_run_name
from tests.storage.caches import make_labeller
from tests.storage.label_runs.made import start_run


@pytest.fixture
def labeller(tmp_path):
    return make_labeller(tmp_path)


def test_names_sort_by_time_and_never_meet():
    names = {new_run_name() for _ in range(100)}
    assert len(names) == 100
    assert all(RUN_NAME.fullmatch(name) for name in names)


def test_what_is_written_comes_back(tmp_path, any_url):
    run = start_run(make_labeller(tmp_path, url=any_url), replaces={1: "x.tar"}, name="birds")
    folder = RunFolder(store=run.folder.store, name=run.folder.name)
    assert folder.info() == run.info
    table = folder.parts(folder.info()).to_pydict()
    assert table["part"] == [part.name for part in run.parts]
    assert set(table["request"]) == {run.parts[0].request}
    assert table["num_rows"] == [7, 7, 7, 7, 3, 3]
    assert table["replaces"] == [None, "x.tar", None, None, None, None]
    assert abs(folder.started() - folder.store.now()) < 20


def test_a_table_of_many_parts_of_several_requests_is_one():
    table = PartsTable()
    for number in range(150_000):
        table.add(request=f"{number % 3:064x}", part=f"{number:032x}.v00000-00001", num_rows=number, replaces=None)
    made = table.finish()
    assert made.num_rows == 150_000
    assert made.column("request").combine_chunks().dictionary.to_pylist() == [f"{number:064x}" for number in range(3)]
    assert made.column("num_rows").to_pylist() == list(range(150_000))
    assert PartsTable().finish().num_rows == 0


@pytest.mark.parametrize("damage", [b"", b"[]", b"x" * 200])
def test_damage_is_refused(labeller, damage):
    run = start_run(labeller)
    run.folder.store.write(f"{run.folder.path}/run.json", damage)
    with pytest.raises(FormatError, match=r"run\.json is damaged"):
        run.folder.info()
    run = start_run(labeller)
    run.folder.store.write(f"{run.folder.path}/parts.parquet", damage)
    with pytest.raises(FormatError, match=r"parts\.parquet is damaged"):
        run.folder.parts(run.info)


@pytest.mark.parametrize(
    "changes",
    [
        {"part": ["../../etc/passwd"]},
        {"part": ["z" * 32 + ".v00000-00001"]},
        {"part": [None]},
        {"request": ["elsewhere"]},
        {"num_rows": [None]},
        {"num_rows": ["many"]},
        {"num_rows": [-1]},
        {"more": [1]},
        {"num_rows": None},
        {"request": None},
    ],
)
def test_a_table_that_somebody_made_up_is_refused(labeller, changes):
    run = start_run(labeller)
    columns = {
        "request": pa.array(["ab" * 32]).dictionary_encode(),
        "part": ["7" * 32 + ".v00000-00001"],
        "num_rows": [1],
        "replaces": pa.array([None], type=pa.string()),
    }
    columns = {name: column for name, column in {**columns, **changes}.items() if column is not None}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    data = sink.getvalue().to_pybytes()
    run.folder.store.write(f"{run.folder.path}/parts.parquet", data)
    info = run.info.model_copy(update={"parts_sha256": digest(data), "num_parts": 1})
    with pytest.raises(FormatError, match=r"parts\.parquet: not a table that this release can read"):
        run.folder.parts(info)


def test_a_byte_that_is_wrong_anywhere_in_a_column_that_is_coded_by_a_dictionary_is_no_surprise(labeller):
    run = start_run(labeller)
    # Five values, three bits each: there are codes that stand for nothing.
    columns = {
        "request": pa.array([digit * 64 for digit in "abcde"]).dictionary_encode(),
        "part": ["7" * 32 + ".v00000-00001"] * 5,
        "num_rows": [1] * 5,
        "replaces": pa.array([None] * 5, type=pa.string()),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="none", write_statistics=False)
    whole = sink.getvalue().to_pybytes()
    chunk = pq.ParquetFile(pa.BufferReader(whole)).metadata.row_group(0).column(0)
    refused = set()
    for place in range(chunk.data_page_offset, chunk.dictionary_page_offset + chunk.total_compressed_size):
        data = whole[:place] + b"\xff" + whole[place + 1 :]
        run.folder.store.write(f"{run.folder.path}/parts.parquet", data)
        info = run.info.model_copy(update={"parts_sha256": digest(data), "num_parts": 5})
        try:
            run.folder.parts(info)
        except FormatError as error:
            refused.add(str(error).rpartition(": ")[2])
    assert any("should be in [0, 4]" in reason for reason in refused), refused


def test_bytes_that_are_no_table_are_refused(labeller):
    run = start_run(labeller)
    run.folder.store.write(f"{run.folder.path}/parts.parquet", b"PAR1")
    with pytest.raises(FormatError, match=r"parts\.parquet: not a table that this release can read"):
        run.folder.parts(run.info.model_copy(update={"parts_sha256": digest(b"PAR1")}))


def test_a_run_is_found_by_its_name_its_beginning_or_its_experiment(labeller):
    runs = [
        start_run(labeller, run=f"2026013{day}-120000-0123456{day}", name=name)
        for day, name in enumerate(["birds", "birds", "fish"])
    ]
    store = labeller.cache.store
    # One that was stopped before it started, and no runs at all.
    store.write("runs/20270101-000000-00000000/tasks/000000.json", b"[]")
    store.write("runs/notes/x.json", b"{}")
    assert [folder.name for folder, _ in known_runs(store)] == [run.folder.name for run in reversed(runs)]
    assert find_run(store, wanted=None)[1] == runs[2].info
    assert find_run(store, wanted="birds")[1] == runs[1].info
    assert find_run(store, wanted=runs[0].folder.name)[1] == runs[0].info
    assert find_run(store, wanted="20260130")[1] == runs[0].info
    with pytest.raises(CacheError, match="'2026013' is how 3 runs begin: 20260132-.*; give more of the name"):
        find_run(store, wanted="2026013")
    with pytest.raises(CacheError, match="has no run 'cats'.*--list lists"):
        find_run(store, wanted="cats")
    with pytest.raises(CacheError, match=re.escape("Did you mean '20260130-120000-01234560'?")):
        find_run(store, wanted="20260130-120000-01234569")


def test_a_cache_without_runs_says_what_starts_one(labeller):
    with pytest.raises(CacheError, match="decant label starts one"):
        find_run(labeller.cache.store, wanted=None)
