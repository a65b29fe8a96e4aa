from __future__ import annotations

import hashlib
import resource
import time

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import CacheError, DecantError, DuplicateKeyError, SourceError
from storage.sources import NO_LABEL, Sample, SourceMemo, SourceUnit, UnitDigest, index_source
from storage.sources import index as index_module
from storage.sources.key_spool import KeySpool


class LinesSource:
    """A source of its own: one unit a text, one sample a line."""

    classes = None

    def __init__(self, **texts):
        self.texts = texts
        self.num_reads = 0

    def units(self):
        return [
            SourceUnit(name=name, locator={"name": name}, stat_token=hashlib.md5(text.encode()).hexdigest())
            for name, text in self.texts.items()
        ]

    def read(self, unit):
        self.num_reads += 1
        text = self.texts[unit.locator["name"]]
        if text == "broken":
            raise SourceError("broken")
        for position, line in enumerate(text.split()):
            yield Sample(position=position, key=line, label=NO_LABEL, data=line.encode())

    def open(self, unit):
        return LinesReader(self.texts[unit.locator["name"]].split())


class LinesReader:
    def __init__(self, keys):
        self.keys = keys

    def close(self):
        pass


def sample(position=0, key="a", label=0, data=b"x", error=None):
    return Sample(position=position, key=key, label=label, data=data, error=error)


def digest_of(*samples):
    digest = UnitDigest()
    for each in samples:
        digest.add(each)
    return digest.hexdigest()


def test_the_digest_is_what_it_says():
    expected = hashlib.sha256()
    for key, label, image in (("a", 3, b"x"), ("bé", -1, b"")):
        expected.update(key.encode() + b"\0" + label.to_bytes(8, "little", signed=True) + hashlib.sha256(image).digest())
    assert digest_of(sample(label=3), sample(1, "bé", -1, None, "gone")) == expected.hexdigest()


def test_every_part_of_a_sample_counts():
    others = [sample(key="b"), sample(label=1), sample(data=b"y"), sample(data=None, error="gone")]
    assert len({digest_of(sample()), digest_of(), *map(digest_of, others)}) == 6


def test_the_digest_refuses_holes():
    digest = UnitDigest()
    digest.add(sample())
    for position in (0, 2):
        with pytest.raises(ValueError, match="but 1 is next"):
            digest.add(sample(position))
    assert digest.num_samples == 1


def test_units_keep_their_order_whatever_finishes_first():
    class Slow(LinesSource):
        def read(self, unit):
            time.sleep(0.05 if unit.name == "u0" else 0)
            yield from super().read(unit)

    source = Slow(**{f"u{index}": f"a{index} b{index}" for index in range(9)})
    progress = []
    index = index_source(source, num_threads=3, on_progress=lambda done, total: progress.append((done, total)))
    assert [unit.unit.name for unit in index.units] == [f"u{number}" for number in range(9)]
    assert index.units == index_source(source, num_threads=1).units
    assert progress == [(done, 9) for done in range(10)]
    assert index.num_samples == 18


def test_a_source_without_samples():
    assert index_source(LinesSource(u="")).num_samples == 0
    assert index_source(LinesSource()).units == ()


@pytest.mark.parametrize("hashes_per_pass", [1, 3, 1000])
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"u": "a b c", "v": "d b e"}, "'b' occurs twice: unit 'u', position 1, and unit 'v', position 1"),
        ({"u": "a b a"}, "'a' occurs twice: unit 'u', position 0, and unit 'u', position 2"),
        ({"u": "", "v": "x", "w": "y x"}, "'x' occurs twice: unit 'v', position 0, and unit 'w', position 1"),
    ],
)
def test_a_key_that_occurs_twice_is_refused_with_both_places(texts, message, hashes_per_pass):
    with pytest.raises(DuplicateKeyError, match=message):
        index_source(LinesSource(**texts), hashes_per_pass=hashes_per_pass)


def test_duplicates_are_found_among_remembered_units_too(tmp_path):
    memo = SourceMemo(str(tmp_path / "memo"))
    index_source(LinesSource(u="a b"), memo=memo)
    source = LinesSource(u="a b", v="c a")
    with pytest.raises(DuplicateKeyError, match="unit 'u', position 0, and unit 'v', position 1"):
        index_source(source, memo=memo)
    assert source.num_reads == 1


def place_hashes(units):
    spool = KeySpool()
    for number, hashes in units:
        spool.append(number, hashes=np.asarray(hashes, dtype=np.uint64))
    return spool


def test_equal_hashes_of_different_keys_are_no_duplicates():
    keys = {(1, 0): "a", (0, 1): "b", (0, 2): "b"}
    with place_hashes([(1, [7]), (0, [5, 7])]) as spool:
        assert spool.first_duplicate(key_at=keys.__getitem__, hashes_per_pass=10) is None
    with place_hashes([(1, [7]), (0, [5, 7, 7])]) as spool:
        assert spool.first_duplicate(key_at=keys.__getitem__, hashes_per_pass=10) == ((0, 1), (0, 2), "b")


def test_a_full_folder_for_temporary_files_is_named():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        said = r"temporary files cannot be written to \(OSError: File too large\).*TMPDIR"
        with KeySpool() as spool, pytest.raises(DecantError, match=said):
            spool.append(0, hashes=np.arange(10_000, dtype=np.uint64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(st.lists(st.lists(st.integers(0, 40), max_size=6), max_size=8), st.integers(1, 50))
def test_duplicates_are_found_exactly(units, hashes_per_pass):
    spread = [[number * (2**64 - 1) // 40 for number in unit] for unit in units]
    all_keys = [number for unit in units for number in unit]
    with place_hashes(enumerate(spread)) as spool:
        found = spool.first_duplicate(key_at=lambda place: str(units[place[0]][place[1]]), hashes_per_pass=hashes_per_pass)
    assert (found is None) == (len(set(all_keys)) == len(all_keys))
    if found is not None:
        first, second, key = found
        assert first < second
        assert units[first[0]][first[1]] == units[second[0]][second[1]] == int(key)


def test_only_what_changed_is_read_again(tmp_path):
    memo = SourceMemo(str(tmp_path / "deep" / "memo"))
    texts = {f"u{index}": f"a{index} b{index}" for index in range(150)}
    first = index_source(LinesSource(**texts), memo=memo)
    assert first.num_units_read == 150
    texts["u7"] = "a7 c7"
    source = LinesSource(**texts)
    second = index_source(source, memo=memo)
    assert source.num_reads == second.num_units_read == 1
    assert second.units[7].digest != first.units[7].digest
    assert [unit for unit in second.units if unit.unit.name != "u7"] == [unit for unit in first.units if unit.unit.name != "u7"]
    assert index_source(LinesSource(**texts), memo=memo).num_units_read == 0
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["memo"]


def test_a_store_that_tells_no_times_is_always_read():
    class Timeless(LinesSource):
        def units(self):
            return [SourceUnit(name="u", locator={"name": "u"}, stat_token="")]

    memo = SourceMemo("memory://memo")
    for _ in range(2):
        assert index_source(Timeless(u="a"), memo=memo).num_units_read == 1


def test_a_failed_run_keeps_what_it_read(tmp_path):
    memo = SourceMemo(str(tmp_path / "memo"))
    with pytest.raises(SourceError, match="broken"):
        index_source(LinesSource(u="a", v="broken"), memo=memo, num_threads=1)
    assert index_source(LinesSource(u="a", v="b"), memo=memo).num_units_read == 1


def test_a_long_run_saves_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "SAVE_EVERY_SECONDS", 0.0)
    memo = SourceMemo(str(tmp_path / "memo"))
    remembered = []
    index_source(
        LinesSource(u="a", v="b", w="c"),
        memo=memo,
        num_threads=1,
        on_progress=lambda done, total: remembered.append(len(list(memo.entries()))),
    )
    assert remembered == [0, 0, 1, 2]


def test_any_damage_to_a_memo_makes_it_useless_not_wrong(tmp_path):
    texts = {f"u{index}": f"a{index} b{index}" for index in range(3)}
    path = tmp_path / "memo"
    truth = index_source(LinesSource(**texts), memo=SourceMemo(str(path))).units
    whole = path.read_bytes()
    versions = [whole[:length] for length in range(0, len(whole), 401)]
    versions += [whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1 :] for byte in range(0, len(whole), 53)]
    reads = 0
    for damaged in versions:
        path.write_bytes(damaged)
        index = index_source(LinesSource(**texts), memo=SourceMemo(str(path)))
        assert index.units == truth
        reads += index.num_units_read
        assert index_source(LinesSource(**texts), memo=SourceMemo(str(path))).num_units_read == 0
    assert reads > len(versions)


def test_a_memo_of_another_version_is_written_anew(tmp_path):
    path = tmp_path / "memo"
    memo = SourceMemo(str(path))
    index_source(LinesSource(u="a"), memo=memo)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"decant.source_memo": b"0"}), path)
    assert index_source(LinesSource(u="a"), memo=memo).num_units_read == 1
    assert index_source(LinesSource(u="a"), memo=memo).num_units_read == 0


@pytest.mark.parametrize(("column", "kind"), [("name", pa.binary()), ("num_samples", pa.float64()), ("stat_token", None)])
def test_a_memo_of_other_columns_is_written_anew(tmp_path, column, kind):
    path = tmp_path / "memo"
    memo = SourceMemo(str(path))
    index_source(LinesSource(u="a"), memo=memo)
    table = pq.read_table(path)
    place = table.column_names.index(column)
    changed = table.set_column(place, column, table.column(column).cast(kind)) if kind else table.drop_columns([column])
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path, write_page_checksum=True)
    assert index_source(LinesSource(u="a"), memo=memo).num_units_read == 1
    assert index_source(LinesSource(u="a"), memo=memo).num_units_read == 0


def test_a_memo_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="cannot (read|write) .*file/memo"):
        index_source(LinesSource(u="a"), memo=SourceMemo(str(tmp_path / "file" / "memo")))


def test_a_memo_in_any_store(root):
    memo = SourceMemo(f"{root}/memo.parquet")
    assert index_source(LinesSource(u="a b"), memo=memo).num_units_read == 1
    [entry] = SourceMemo(f"{root}/memo.parquet").entries()
    assert entry.key_hashes.tolist() == [xxhash.xxh3_64_intdigest(key) for key in (b"a", b"b")]
    assert index_source(LinesSource(u="a b"), memo=memo).num_units_read == 0
    fs, path = fsspec.core.url_to_fs(root)
    assert [name.rsplit("/", 1)[-1] for name in fs.find(path)] == ["memo.parquet"]
