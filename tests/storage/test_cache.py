"""The cache: parts are committed once, found again, and never half."""

from __future__ import annotations

import json
import pickle
import threading
import uuid
from dataclasses import replace

import pytest

from storage.cache import Cache, NamedLabelSet
from storage.config import ExperimentConfig
from storage.errors import CorruptError, FormatError, MismatchError
from storage.hashing import canonical_json, digest, seal
from storage.parts import Extent
from storage.sources import index_source
from storage.specs import PartSpec
from tests.storage.caches import make_labeller, make_request, read_tree


@pytest.fixture
def labeller(tmp_path):
    return make_labeller(tmp_path)


@pytest.fixture
def units(labeller):
    return index_source(labeller.source).units


def test_a_request_is_written_once_under_its_fingerprint(tmp_path):
    cache, request = Cache.at(str(tmp_path)), make_request()
    fingerprint = cache.add_request(request)
    assert fingerprint == request.fingerprint() == cache.add_request(request)
    assert read_tree(str(tmp_path)) == {f"requests/{fingerprint}/spec.json": canonical_json(request.to_json())}
    assert cache.request(fingerprint) == request
    other = cache.add_request(make_request(seed=1))
    assert other != fingerprint
    assert cache.request(other) == make_request(seed=1)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda data: b"", "its sha256 is not its folder's name"),
        (lambda data: data[:-1], "its sha256 is not its folder's name"),
        (lambda data: data.replace(b"tiny", b"tinz"), "its sha256 is not its folder's name"),
        (lambda data: data + b"\n", "its sha256 is not its folder's name"),
        (None, "is missing; run decant label again"),
    ],
)
def test_a_damaged_request_is_refused(tmp_path, damage, problem):
    cache = Cache.at(str(tmp_path))
    fingerprint = cache.add_request(make_request())
    path = tmp_path / "requests" / fingerprint / "spec.json"
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CorruptError, match=f"{path}.*{problem}"):
        cache.request(fingerprint)


def test_a_request_of_another_release_is_refused(tmp_path):
    body = canonical_json({**make_request().to_json(), "format": 2})
    cache = Cache.at(str(tmp_path))
    fingerprint = digest(body)
    cache.store.write(f"requests/{fingerprint}/spec.json", body)
    with pytest.raises(FormatError, match="not a request this release can read"):
        cache.request(fingerprint)


def test_parts_are_found_once_they_are_committed(labeller, units):
    cache = labeller.cache
    data, record = labeller.make_part(units[0], first_view=0, num_views=2)
    assert cache.find_part(record.part) is None
    assert cache.commit_part(data, record=record) == record
    assert cache.find_part(record.part) == record
    assert cache.store.read(cache.tar_name(record)) == data
    assert sorted(read_tree(cache.store.url)) == sorted([cache.record_name(record.part), cache.tar_name(record)])
    for other in (
        PartSpec(request=record.part.request, unit_digest=record.part.unit_digest, first_view=0, num_views=1),
        PartSpec(request=record.part.request, unit_digest=units[1].digest, first_view=0, num_views=2),
        PartSpec(request=make_request(seed=1).fingerprint(), unit_digest=record.part.unit_digest, first_view=0, num_views=2),
    ):
        assert cache.find_part(other) is None


def test_committing_again_changes_nothing(labeller, units):
    cache = labeller.cache
    data, record = labeller.make_part(units[0], first_view=0, num_views=2)
    cache.commit_part(data, record=record)
    before = read_tree(cache.store.url)
    assert cache.commit_part(data, record=record) == record
    assert read_tree(cache.store.url) == before


def test_the_first_of_two_unlike_writers_counts_and_the_other_leaves_nothing(labeller, units):
    # The same part from two devices may differ in its last bits.
    cache = labeller.cache
    data, record = labeller.make_part(units[0], first_view=0, num_views=2)
    other = replace(labeller, rows_per_block=3)
    other_data, other_record = other.make_part(units[0], first_view=0, num_views=2)
    assert (other_record.part, other_record.tar_name == record.tar_name) == (record.part, False)
    cache.commit_part(data, record=record)
    before = read_tree(cache.store.url)
    assert cache.commit_part(other_data, record=other_record) == record
    assert read_tree(cache.store.url) == before


@pytest.mark.parametrize("place", ["local", "memory"])
def test_racing_writers_leave_one_whole_part(tmp_path, place):
    url = str(tmp_path / "cache") if place == "local" else f"memory://{uuid.uuid4().hex}"
    labeller = make_labeller(tmp_path, url=url)
    unit = index_source(labeller.source).units[0]
    made = [replace(labeller, rows_per_block=size).make_part(unit, first_view=0, num_views=2) for size in range(1, 8)]
    barrier, results = threading.Barrier(len(made)), []

    def commit(data, record):
        barrier.wait()
        results.append(Cache.at(url).commit_part(data, record=record))

    threads = [threading.Thread(target=commit, args=pair) for pair in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = labeller.cache.find_part(made[0][1].part)
    assert results == [winner] * len(made)
    tree = read_tree(url)
    assert sorted(tree) == sorted([labeller.cache.record_name(winner.part), labeller.cache.tar_name(winner)])
    assert (tree[labeller.cache.tar_name(winner)], winner) in made


@pytest.mark.parametrize("damage", ["gone", "short", "long"])
def test_a_record_whose_tar_is_lost_counts_no_more_and_is_replaced(labeller, units, damage):
    cache = labeller.cache
    data, record = labeller.make_part(units[0], first_view=0, num_views=2)
    cache.commit_part(data, record=record)
    name = cache.tar_name(record)
    if damage == "gone":
        cache.store.remove(name)
    else:
        cache.store.write(name, data[:-1] if damage == "short" else data + b"\0")
    assert cache.find_part(record.part) is None
    other_data, other_record = replace(labeller, rows_per_block=3).make_part(units[0], first_view=0, num_views=2)
    assert cache.commit_part(other_data, record=other_record) == other_record
    assert cache.find_part(record.part) == other_record


def test_a_damaged_or_moved_record_is_refused(labeller, units, tmp_path):
    cache = labeller.cache
    for unit in units[:2]:
        data, record = labeller.make_part(unit, first_view=0, num_views=2)
        cache.commit_part(data, record=record)
    first = PartSpec(request=record.part.request, unit_digest=units[0].digest, first_view=0, num_views=2)
    whole = cache.store.read(cache.record_name(first))
    cache.store.write(cache.record_name(first), whole[:-3])
    with pytest.raises(FormatError, match=f"{tmp_path}/cache/{cache.record_name(first)}: the part record is damaged"):
        cache.find_part(first)
    cache.store.write(cache.record_name(first), cache.store.read(cache.record_name(record.part)))
    with pytest.raises(
        MismatchError, match=f"{cache.record_name(first)} is the record of {record.part.name}; the file was moved"
    ):
        cache.find_part(first)


def test_view_ranges_of_committed_parts_are_listed(labeller, units):
    cache, request = labeller.cache, labeller.request.fingerprint()
    cache.add_request(labeller.request)
    for unit, first, num in ((units[0], 2, 2), (units[0], 0, 2), (units[1], 0, 1)):
        data, record = labeller.make_part(unit, first_view=first, num_views=num)
        cache.commit_part(data, record=record)
    # Strangers, a killed writer's leavings, and a tar without a record are nobody's.
    for name in ("README.json", "x.v00000-00001.json", f"{units[2].digest[:32]}.va-b.json", ".12.partial", "sub/spec.json"):
        cache.store.write(f"requests/{request}/{name}", b"{}")
    data, record = labeller.make_part(units[2], first_view=0, num_views=1)
    cache.store.write(cache.tar_name(record), data)
    found = cache.covering_parts(request=request, unit_digests=[unit.digest for unit in units])
    assert found == {units[0].digest: [(0, 2), (2, 4)], units[1].digest: [(0, 1)]}
    assert cache.covering_parts(request=request, unit_digests=[units[1].digest]) == {units[1].digest: [(0, 1)]}
    assert cache.covering_parts(request="0" * 64, unit_digests=[units[1].digest]) == {}


def test_extents_are_checked_when_they_are_read(labeller, units):
    cache = labeller.cache
    data, record = labeller.make_part(units[0], first_view=0, num_views=2)
    cache.commit_part(data, record=record)
    name, extent = cache.tar_name(record), record.blocks[0]
    assert cache.read_extent(name, extent) == data[extent.offset : extent.offset + extent.num_bytes]
    remedy = "run decant repair CONFIG, with the config that made these labels"
    with pytest.raises(CorruptError, match=f"{name}: block at 513 has checksum .*{remedy}"):
        cache.read_extent(name, Extent(offset=513, num_bytes=extent.num_bytes, checksum=extent.checksum))
    with pytest.raises(CorruptError, match=f"{name}: 24 of 100 bytes at {len(data) - 24}; the part is truncated.*{remedy}"):
        cache.read_extent(name, Extent(offset=len(data) - 24, num_bytes=100, checksum=extent.checksum))
    with pytest.raises(CorruptError, match=f"{name}: 0 of 100 bytes at {len(data) + 9}; the part is truncated"):
        cache.read_extent(name, Extent(offset=len(data) + 9, num_bytes=100, checksum=extent.checksum))
    cache.store.remove(name)
    with pytest.raises(CorruptError, match=f"{name} is missing; {remedy}"):
        cache.read_extent(name, extent)


def test_names_point_at_label_sets(tmp_path):
    cache = Cache.at(str(tmp_path / "cache"))
    assert cache.names() == {}
    cache.point_name("digits", label_set="ab" * 16)
    cache.point_name("a.b-c_d", label_set="cd" * 16)
    assert cache.names() == {"digits": "ab" * 16, "a.b-c_d": "cd" * 16}
    cache.point_name("digits", label_set="ef" * 16)
    assert cache.names()["digits"] == "ef" * 16
    # A writer that was killed in the middle leaves this behind.
    (tmp_path / "cache" / "names" / ".0123.partial").write_bytes(b'{"label')
    assert sorted(cache.names()) == ["a.b-c_d", "digits"]


DAMAGED_NAMES = [
    b"",
    b"{",
    b"[]",
    b"3",
    b'{"other":1}',
    b"\xff",
    b"[" * 100_000,
    b'{"label_set":"../../elsewhere"}',
    b'{"label_set":7}',
    canonical_json({"label_set": "ab" * 16, "name": "digits"}),
    seal(canonical_json({"label_set": "ab" * 16, "name": "digits", "tag": 1})),
    seal(canonical_json({"label_set": "ab" * 16, "name": "letters"})),
]


@pytest.mark.parametrize("data", DAMAGED_NAMES)
def test_a_damaged_name_is_refused_and_hides_no_other(tmp_path, data):
    cache = Cache.at(str(tmp_path))
    cache.point_name("letters", label_set="cd" * 16)
    cache.store.write("names/digits.json", data)
    with pytest.raises(FormatError, match=f"{tmp_path}/names/digits.json: .*remove it and run decant label .*again"):
        cache.find_name("digits")
    assert cache.names() == {"letters": "cd" * 16}
    named, (problem,) = cache.read_names()
    assert named == {"letters": NamedLabelSet(label_set="cd" * 16, is_tag=False)}
    assert problem.startswith(f"{tmp_path}/names/digits.json: not a name this release can read")
    cache.point_name("digits", label_set="ef" * 16)
    assert cache.names() == {"letters": "cd" * 16, "digits": "ef" * 16}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../names/digits", "a\0b", "a b", "é", "digits\n", "x" * 194, "x" * 10_000]
)
def test_what_cannot_be_a_name_is_none(tmp_path, name):
    cache = Cache.at(str(tmp_path))
    cache.point_name("digits", label_set="ab" * 16)
    assert cache.find_name(name) is None
    assert cache.find_name("digits") == NamedLabelSet(label_set="ab" * 16, is_tag=False)


def test_the_longest_name_of_an_experiments_target_is_one(tmp_path):
    config = ExperimentConfig.model_validate_json(json.dumps({"name": "x" * 128, "targets": {"y" * 64: {"k": 1}}}))
    (name,) = config.label_set_names.values()
    cache = Cache.at(str(tmp_path))
    cache.point_name(name, label_set="ab" * 16)
    assert cache.find_name(name) == NamedLabelSet(label_set="ab" * 16, is_tag=False)
    assert cache.names() == {name: "ab" * 16}


def test_label_sets_without_a_manifest_are_nobodys(labeller):
    label_set = labeller.label()
    labeller.cache.store.write("label_sets/0123/parts-0.parquet", b"not finished")
    assert list(labeller.cache.label_set_ids()) == [label_set.manifest.id]


def test_a_copy_in_another_process_is_the_same_cache(labeller):
    labeller.label()
    copy = pickle.loads(pickle.dumps(labeller.cache))
    assert copy.names() == labeller.cache.names()
