"""Whatever happens to a file of a cache: verify names it, and a reader gets the right labels or an error, never others."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import numpy as np
import pytest

from storage.cache import Cache
from storage.catalogue import verify_label_sets
from storage.errors import CacheError, DecantError
from storage.hashing import canonical_json, key_hash, seal, unseal
from storage.label_set import LabelSet
from storage.parts import PartWriter
from storage.streams.label_stream import LabelStream
from storage.verify import verify
from tests.storage.caches import make_labeller, make_request, read_tree, stored_row
from tests.storage.streams.test_label_stream import read_all

DEAD = frozenset({("ant/001.jpg", None), ("cat/016.jpg", 1)})
NUM_FAULTS = 340


@pytest.fixture(scope="module")
def labeller(tmp_path_factory):
    # In memory: hundreds of faults cost no flush to disk.
    return make_labeller(tmp_path_factory.mktemp("verify"), url=f"memory://{uuid.uuid4().hex}", dead=DEAD)


@pytest.fixture(scope="module")
def pristine(labeller):
    """Bytes of every file of a cache with two label sets, of which "tiny" is the one that is looked at."""
    replace(labeller, request=make_request(seed=5)).label(name="other")
    labeller.label(name="tiny")
    return read_tree(labeller.cache.store.url)


@pytest.fixture
def cache(labeller, pristine):
    """The cache, put right again after every test."""
    yield labeller.cache
    restore(labeller.cache, pristine)


def restore(cache, pristine):
    now = read_tree(cache.store.url)
    for name in now.keys() - pristine.keys():
        cache.store.remove(name)
    for name, data in pristine.items():
        if now.get(name) != data:
            cache.store.write(name, data)


def files_of_tiny(cache):
    """Every file that the label set "tiny" depends on."""
    label_set = LabelSet.open(cache, name_or_id="tiny")
    folder = f"requests/{label_set.manifest.request.fingerprint()}"
    return [
        name
        for name in read_tree(cache.store.url)
        if name.startswith((f"{label_set.folder}/", f"{folder}/")) or name == "names/tiny.json"
    ]


def problems_of(cache):
    """What a person learns who verifies the label set."""
    try:
        return verify(LabelSet.open(cache, name_or_id="tiny")).problems
    except CacheError as error:
        return (str(error),)


def rows_of(cache, source):
    """(key, view) and probabilities of every row that a reader gets."""
    stream = LabelStream(LabelSet.open(cache, name_or_id="tiny"), source=source)
    found = {}
    for view in range(stream.label_set.manifest.num_views):
        rows = read_all(stream, epoch=view)
        found |= {(key, view): tuple(row) for key, row in zip(rows.keys, rows.soft_labels.densify().tolist(), strict=True)}
    return found


@pytest.fixture(scope="module")
def expected(labeller, pristine):
    keys = [sample.key for unit in labeller.source.units() for sample in labeller.source.read(unit)]
    rows = {(key, view): stored_row(labeller.request, key, view) for view in range(2) for key in keys}
    return {place: row for place, row in rows.items() if not {place, (place[0], None)} & DEAD}


def test_a_right_label_set_has_no_problems(cache, labeller, expected):
    label_set = LabelSet.open(cache, name_or_id="tiny")
    progress = []
    for quick in (False, True):
        report = verify(label_set, quick=quick, on_progress=lambda done, total: progress.append((done, total)))
        assert report.problems == ()
        assert (report.num_parts, report.num_blocks, report.num_rows) == (3, 10, 31)
        assert report.num_bytes == label_set.manifest.parts_bytes
    assert progress == [(1, 3), (2, 3), (3, 3)] * 2
    assert rows_of(cache, labeller.source) == expected


def test_every_file_is_watched(cache):
    files = files_of_tiny(cache)
    assert len(files) == 1 + 3 + 3 + 3 + 1  # request, records, tars, label set, name
    for name in files:
        data = cache.store.read(name)
        for fault in ("gone", "empty", "short", "long", "first bit", "last bit"):
            if fault == "gone":
                cache.store.remove(name)
            else:
                first, last = bytes([data[0] ^ 1]) + data[1:], data[:-1] + bytes([data[-1] ^ 0x80])
                cache.store.write(
                    name, {"empty": b"", "short": data[:-1], "long": data + b"\n", "first bit": first, "last bit": last}[fault]
                )
            problems = problems_of(cache)
            if not (name.startswith("names/") and fault in ("gone", "long")):
                assert any(f"{cache.store.url}/{name}" in problem for problem in problems), (name, fault, problems)
            cache.store.write(name, data)
    assert problems_of(cache) == ()


def test_a_name_that_is_gone_is_an_unknown_name(cache):
    cache.store.remove("names/tiny.json")
    assert "holds no label set 'tiny'" in problems_of(cache)[0]
    assert verify_label_sets(cache.store.url, progress=False)["problems"] == []


def test_quick_looks_at_sizes_only(cache):
    label_set = LabelSet.open(cache, name_or_id="tiny")
    name = label_set.tar_path(0)
    data = cache.store.read(name)
    cache.store.write(name, bytes([data[0] ^ 1]) + data[1:])
    assert verify(label_set, quick=True).problems == ()
    assert len(verify(label_set).problems) == 1
    cache.store.write(name, data + b"\0")
    for quick in (True, False):
        assert verify(label_set, quick=quick).problems == (
            f"{cache.store.url}/{name}: {len(data) + 1} bytes, committed were {len(data)}",
        )


def test_every_problem_is_reported_not_only_the_first(cache):
    label_set = LabelSet.open(cache, name_or_id="tiny")
    tars = [label_set.tar_path(index) for index in range(label_set.parts.num_rows)]
    cache.store.remove(tars[0])
    cache.store.write(tars[2], bytes(len(cache.store.read(tars[2]))))
    cache.store.write(f"{label_set.folder}/{label_set.manifest.class_means_file}", b"")
    problems = verify(label_set).problems
    assert len(problems) == 3
    for name, problem in zip((label_set.manifest.class_means_file, tars[0], tars[2]), problems, strict=True):
        assert name in problem


def test_two_parts_that_changed_places_are_found(cache, labeller):
    label_set = LabelSet.open(cache, name_or_id="tiny")
    one, two = (label_set.tar_path(index) for index in range(2))
    data = cache.store.read(one), cache.store.read(two)
    cache.store.write(one, data[1])
    cache.store.write(two, data[0])
    problems = problems_of(cache)
    assert [name in problem for name, problem in zip((one, two), problems, strict=True)] == [True, True]
    with pytest.raises(DecantError, match="run decant repair CONFIG"):
        rows_of(cache, labeller.source)


@pytest.mark.parametrize("changes", [{"num_rows": 32}, {"num_views": 3}, {"num_views": 1}])
def test_a_manifest_that_was_edited_and_sealed_again_is_found(cache, changes):
    label_set = LabelSet.open(cache, name_or_id="tiny")
    name = f"{label_set.folder}/manifest.json"
    body = json.loads(unseal(cache.store.read(name)))
    cache.store.write(name, seal(canonical_json({**body, **changes})))
    assert f"{cache.store.url}/{label_set.folder}/" in problems_of(cache)[0]


def test_a_stale_manifest_is_found(cache, labeller):
    # The manifest of an earlier label set, copied back by hand over a newer one.
    other = LabelSet.open(cache, name_or_id="other")
    label_set = LabelSet.open(cache, name_or_id="tiny")
    cache.store.write(f"{label_set.folder}/manifest.json", cache.store.read(f"{other.folder}/manifest.json"))
    (problem,) = problems_of(cache)
    assert problem.startswith(f"{cache.store.url}/{label_set.folder}/manifest.json is that of {other.manifest.id}; ")
    assert "the file moved: run decant repair CONFIG" in problem


def test_a_part_whose_record_says_otherwise_is_found(cache, labeller):
    label_set = LabelSet.open(cache, name_or_id="tiny")
    path = label_set.tar_path(0)
    record = f"{path.rsplit('.', 2)[0]}.json"
    other = f"{label_set.tar_path(1).rsplit('.', 2)[0]}.json"
    cache.store.write(record, cache.store.read(other))
    (problem,) = problems_of(cache)
    assert problem.startswith(f"{cache.store.url}/{record}: it is the record of ")


@pytest.mark.parametrize("field", ["view", "first_sample", "num_samples", "num_rows"])
def test_blocks_that_are_not_what_the_table_says_are_found(tmp_path, monkeypatch, field):
    # A faulty writer: every checksum is right.
    original = PartWriter.add_rows

    def add_rows(self, rows, **options):
        data = original(self, rows, **options)
        value = getattr(self._blocks[-1], field)
        self._blocks[-1] = self._blocks[-1].model_copy(update={field: 1 - value if field == "view" else value + 1})
        return data

    monkeypatch.setattr(PartWriter, "add_rows", add_rows)
    labeller = make_labeller(tmp_path, dead=DEAD)
    problems = verify(labeller.label()).problems
    assert len(problems) == 3
    assert all("(view, first sample, samples, rows) (0, 0, " in problem for problem in problems)


def test_blocks_of_other_samples_than_the_parts_table_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.parts.key_hash", lambda keys: key_hash([*keys, "one more"]))
    labeller = make_labeller(tmp_path)
    label_set = labeller.label()
    problems = verify(label_set).problems
    assert len(problems) == 3
    assert all("is of other samples than the part's table" in problem for problem in problems)
    with pytest.raises(DecantError, match="is not of the samples .* that its part lists; run decant repair CONFIG"):
        read_all(LabelStream(label_set, source=labeller.source))


def kind_of(name):
    """Folder and suffix; files of one kind may change places by mistake."""
    return name.rpartition("/")[0], name.rpartition(".")[2]


def spoil(rng, cache, name, *, files):
    """Do one thing to a file; return what."""
    data = cache.store.read(name)
    fault = rng.choice(["flip", "flip", "flip", "truncate", "delete", "swap", "zero", "insert", "extend"])
    place = int(rng.integers(len(data)))
    if fault == "flip":
        cache.store.write(name, data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :])
    elif fault == "truncate":
        cache.store.write(name, data[:place])
    elif fault == "delete":
        cache.store.remove(name)
    elif fault == "zero":
        cache.store.write(name, data[:place] + bytes(len(data[place : place + 600])) + data[place + 600 :])
    elif fault == "insert":
        cache.store.write(name, data[:place] + rng.bytes(1) + data[place:])
    elif fault == "extend":
        cache.store.write(name, data + rng.bytes(9))
    else:
        other = str(rng.choice([other for other in files if kind_of(other) == kind_of(name)]))
        cache.store.write(name, cache.store.read(other))
        cache.store.write(other, data)
    return fault, place


def test_no_fault_gives_other_labels(cache, labeller, pristine, expected):
    rng = np.random.default_rng(20)
    files = files_of_tiny(cache)
    outcomes = {"found, read right": 0, "found, refused": 0, "harmless": 0}
    for number in range(NUM_FAULTS):
        name = files[number % len(files)]
        fault = spoil(rng, cache, name, files=files)
        if read_tree(cache.store.url) == pristine:
            continue
        problems = problems_of(cache)
        try:
            found = rows_of(cache, labeller.source)
        except DecantError:
            found = None
        assert found in (None, expected), (name, fault)
        if name.startswith("names/"):
            # A name is a pointer: white space in it means nothing, and it is all that is lost when it is damaged.
            assert problems or found == expected
        else:
            assert any(name in problem for problem in problems), (name, fault, problems)
        outcomes["harmless" if not problems else "found, refused" if found is None else "found, read right"] += 1
        restore(cache, pristine)
    assert sum(outcomes.values()) >= 300
    assert outcomes["found, refused"] > 100
    assert outcomes["found, read right"] > 50
    assert problems_of(cache) == ()


def test_what_is_found_is_mended_by_removing_it_and_labelling_again(cache, labeller, pristine, expected):
    for name in files_of_tiny(cache):
        if name.endswith("parquet"):
            continue
        cache.store.write(name, cache.store.read(name)[:-2] + b"!!")
        cache.store.remove(name)
        labeller.label()
        assert problems_of(Cache.at(cache.store.url)) == ()
        assert rows_of(cache, labeller.source) == expected
        assert read_tree(cache.store.url) == pristine
