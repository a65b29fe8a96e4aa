"""Label sets: committed over parts, opened by name or id, and refused when a file of theirs is not what was committed."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.blocks import decode_block, encode_block
from storage.cache import Cache
from storage.codecs import RankedLabels
from storage.errors import CacheError, CorruptError, FormatError, MismatchError
from storage.hashing import canonical_json, digest, seal, unseal
from storage.label_set import LabelSet, UsedPart, commit_label_set, label_set_id
from storage.parts_table import PARTS_SCHEMA, read_parts_table
from storage.sources import index_source
from storage.specs import PartSpec
from storage.streams.label_stream import LabelStream
from tests.storage.caches import CLASSES, NUM_CLASSES, make_labeller, make_request, read_tree, stack, teacher_row
from tests.storage.rows import dense_selection

DEAD = frozenset({("ant/001.jpg", None), ("cat/016.jpg", 1)})


@pytest.fixture
def labeller(tmp_path):
    return make_labeller(tmp_path, dead=DEAD)


def parts_of(labeller, label_set):
    """The parts of a label set of two views with their records."""
    for row in label_set.parts.to_pylist():
        part = PartSpec(request=row["request"], unit_digest=row["unit_digest"], first_view=0, num_views=2)
        yield UsedPart(unit_name=row["unit_name"], part=part, first_view=0, num_views=2), labeller.cache.find_part(part)


def commit(labeller, used, *, classes):
    return commit_label_set(
        labeller.cache,
        identity=label_set_id(request=labeller.request.fingerprint(), parts=[part for part, _ in used]),
        name="tiny",
        request=labeller.request,
        parts=iter(used),
        num_views=2,
        classes=classes,
        source={},
    )


def test_a_committed_label_set_opens_again(labeller):
    committed = labeller.label()
    for name_or_id in ("tiny", committed.manifest.id, committed.manifest.id[:8]):
        opened = LabelSet.open(Cache.at(labeller.cache.store.url), name_or_id=name_or_id)
        assert opened.manifest == committed.manifest
        assert opened.parts.equals(committed.parts)
    manifest = committed.manifest
    assert (manifest.name, manifest.request, manifest.classes) == ("tiny", labeller.request, CLASSES)
    assert (manifest.num_units, manifest.num_parts, manifest.num_samples, manifest.num_views) == (3, 3, 17, 2)
    assert (manifest.num_rows, manifest.num_dead_letters, manifest.statistics.num_rows) == (31, 2, 31)
    assert manifest.provenance == ({"made": "by hand"},)
    assert manifest.parts_bytes == sum(
        len(data) for name, data in read_tree(labeller.cache.store.url).items() if name.endswith(".tar")
    )


def test_the_table_of_parts_says_where_every_block_lies(labeller):
    label_set = labeller.label()
    rows = label_set.parts.to_pylist()
    assert [row["unit_name"] for row in rows] == ["00000-00007", "00007-00014", "00014-00017"]
    for index, (row, indexed) in enumerate(zip(rows, index_source(labeller.source).units, strict=True)):
        part = PartSpec(request=labeller.request.fingerprint(), unit_digest=indexed.digest, first_view=0, num_views=2)
        record = labeller.cache.find_part(part)
        assert label_set.tar_path(index) == labeller.cache.tar_name(record)
        assert row["blocks"] == [block.model_dump() for block in record.blocks]
        assert row["samples"] == record.samples.model_dump()
        assert (row["unit_digest"], row["num_samples"]) == (indexed.digest, indexed.num_samples)
        assert (row["tar_bytes"], row["tar_sha256"]) == (record.tar_bytes, record.tar_sha256)


def test_class_means_are_those_of_all_rows(labeller):
    label_set = labeller.label()
    keys = [sample.key for unit in labeller.source.units() for sample in labeller.source.read(unit)]
    alive = [(key, view) for view in range(2) for key in keys if not {(key, view), (key, None)} & DEAD]
    rows = stack([teacher_row(labeller.request, key, view) for key, view in alive])
    assert isinstance(rows, RankedLabels)
    means = label_set.class_means()
    assert means == pytest.approx(dense_selection(rows, num_classes=NUM_CLASSES).mean(axis=0), rel=5e-3)
    assert means.sum() == pytest.approx(1, abs=5e-3)


def test_labelling_again_changes_nothing(labeller):
    first = labeller.label()
    before = read_tree(labeller.cache.store.url)
    again = labeller.label()
    assert again.manifest == first.manifest
    assert read_tree(labeller.cache.store.url) == before


def test_another_name_points_at_the_same_label_set(labeller):
    first = labeller.label(name="one")
    second = labeller.label(name="two")
    assert second.manifest.id == first.manifest.id
    assert LabelSet.open(labeller.cache, name_or_id="two").manifest.name == "one"


def test_classes_are_called_as_the_newest_run_calls_them(labeller):
    first = labeller.label()
    used = list(parts_of(labeller, first))
    renamed = commit(labeller, used, classes=("emmet", "bee", "cat"))
    assert (renamed.manifest.id, renamed.manifest.classes) == (first.manifest.id, ("emmet", "bee", "cat"))
    assert renamed.manifest == LabelSet.open(labeller.cache, name_or_id="tiny").manifest
    # Who knows no names takes none away.
    assert commit(labeller, used, classes=None).manifest == renamed.manifest


def test_lost_class_means_that_another_zstd_had_written_are_made_again(labeller):
    first = labeller.label()
    store, manifest = labeller.cache.store, first.manifest
    data = store.read(f"{first.folder}/{manifest.class_means_file}")
    header, streams = decode_block(data, origin="test", read_header=lambda header: (header, {"logs0": 10, "logs1": 10}))
    other = encode_block({**header, "by": "another"}, streams)
    name = f"class_means-{digest(other)[:16]}.block"
    assert name != manifest.class_means_file
    changed = manifest.model_copy(update={"class_means_file": name, "class_means_sha256": digest(other)})
    store.write(f"{first.folder}/manifest.json", seal(canonical_json(changed.model_dump(mode="json"))))
    store.remove(f"{first.folder}/{manifest.class_means_file}")
    with pytest.raises(CorruptError, match=f"{name} is missing; run decant label again"):
        LabelSet.open(labeller.cache, name_or_id="tiny").class_means()
    assert labeller.label().manifest == manifest
    assert LabelSet.open(labeller.cache, name_or_id="tiny").class_means().sum() == pytest.approx(1, abs=5e-3)


def test_names_follow_the_newest_label_set(labeller):
    first = labeller.label()
    other = replace(labeller, request=make_request(seed=9)).label()
    assert other.manifest.id != first.manifest.id
    assert LabelSet.open(labeller.cache, name_or_id="tiny").manifest.id == other.manifest.id
    assert LabelSet.open(labeller.cache, name_or_id=first.manifest.id).manifest.id == first.manifest.id


def test_views_of_a_larger_part_may_be_used_alone(labeller):
    every = labeller.label(num_views=4, views_per_part=4)
    used = []
    for indexed in index_source(labeller.source).units:
        part = PartSpec(request=labeller.request.fingerprint(), unit_digest=indexed.digest, first_view=0, num_views=4)
        used.append((UsedPart(unit_name=indexed.unit.name, part=part, first_view=0, num_views=1), labeller.cache.find_part(part)))
    label_set = labeller.commit(used, name="one", num_views=1)
    assert label_set.manifest.id != every.manifest.id
    assert (label_set.manifest.num_views, label_set.manifest.num_rows, label_set.manifest.num_dead_letters) == (1, 16, 1)
    assert {block["view"] for row in label_set.parts.to_pylist() for block in row["blocks"]} == {0}
    assert every.manifest.num_dead_letters == 2
    stream, whole = LabelStream(label_set, source=labeller.source), LabelStream(every, source=labeller.source)
    blocks = stream.block_rows(epoch=0)
    assert blocks.tolist() == whole.block_rows(epoch=0).tolist()
    rows = {"block_ids": np.arange(len(blocks)), "rows": np.zeros(len(blocks), dtype=np.int64)}
    assert np.array_equal(stream.read(epoch=3, **rows).soft_labels.probs, whole.read(epoch=0, **rows).soft_labels.probs)


def test_the_identity_is_of_request_units_and_views():
    part = PartSpec(request="ab" * 32, unit_digest="cd" * 32, first_view=0, num_views=4)
    used = UsedPart(unit_name="a", part=part, first_view=0, num_views=2)
    other_unit = PartSpec(request="ab" * 32, unit_digest="ce" * 32, first_view=0, num_views=4)
    variants = [
        {"request": "ab" * 32, "parts": [used]},
        {"request": "ac" * 32, "parts": [used]},
        {"request": "ab" * 32, "parts": [used, used]},
        {"request": "ab" * 32, "parts": []},
        {"request": "ab" * 32, "parts": [replace(used, unit_name="b")]},
        {"request": "ab" * 32, "parts": [replace(used, first_view=1)]},
        {"request": "ab" * 32, "parts": [replace(used, num_views=3)]},
        {"request": "ab" * 32, "parts": [replace(used, part=other_unit)]},
    ]
    ids = [label_set_id(**variant) for variant in variants]
    assert len(set(ids)) == len(ids)
    assert all(len(identity) == 32 for identity in ids)
    # Which part holds the views does not matter: it may have been made with more of them.
    smaller = PartSpec(request="ab" * 32, unit_digest="cd" * 32, first_view=0, num_views=2)
    assert label_set_id(request="ab" * 32, parts=[replace(used, part=smaller)]) == ids[0]
    assert ids[0] == "a7afa884877b211862800d1e400dc473"
    # For which request it was made does: rows of a larger K are other bytes.
    lent = PartSpec(request="ac" * 32, unit_digest="cd" * 32, first_view=0, num_views=4)
    assert label_set_id(request="ab" * 32, parts=[replace(used, part=lent)]) != ids[0]


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("tinny", "Did you mean 'tiny'?"),
        ("TINY2", "Did you mean|Valid names: "),
        ("something else", "Valid names: .*tiny"),
        ("", "Valid names: "),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(labeller, asked, hint):
    label_set = labeller.label()
    with pytest.raises(MismatchError, match=f"{labeller.cache.store.url} holds no label set '{asked}'. ({hint})"):
        LabelSet.open(labeller.cache, name_or_id=asked)
    with pytest.raises(MismatchError):
        LabelSet.open(labeller.cache, name_or_id=label_set.manifest.id[:7])


def test_an_empty_cache_says_how_to_fill_it(tmp_path):
    for url in (tmp_path / "cache", tmp_path):
        with pytest.raises(CacheError, match=f"{url} holds no label set; make one with `decant label`"):
            LabelSet.open(Cache.at(str(url)), name_or_id="tiny")


def files_of(label_set):
    manifest = label_set.manifest
    names = {"manifest": "manifest.json", "parts": manifest.parts_file, "class means": manifest.class_means_file}
    return {what: f"{label_set.folder}/{name}" for what, name in names.items()}


@pytest.mark.parametrize("what", ["manifest", "parts", "class means"])
@pytest.mark.parametrize("damage", ["gone", "flipped", "short", "long", "empty"])
def test_damage_is_refused_by_name_and_mended_by_labelling_again(labeller, what, damage):
    label_set = labeller.label()
    before = read_tree(labeller.cache.store.url)
    store, name = labeller.cache.store, files_of(label_set)[what]
    data = store.read(name)
    flipped = data[:99] + bytes([data[99] ^ 1]) + data[100:]
    if damage == "gone":
        store.remove(name)
    else:
        store.write(name, {"flipped": flipped, "short": data[:-1], "long": data + b"\n", "empty": b""}[damage])
    problem = "is missing" if damage == "gone" else "is damaged"
    if what == "manifest" and damage == "gone":
        with pytest.raises(CacheError, match="holds no label set"):
            LabelSet.open(labeller.cache, name_or_id=label_set.manifest.id)
    with pytest.raises(CorruptError, match=f"{store.url}/{name} {problem}.*run decant label again"):
        LabelSet.open_id(labeller.cache, label_set=label_set.manifest.id).class_means()
    labeller.label()
    assert read_tree(store.url) == before


def test_a_name_that_leads_nowhere_says_so(labeller):
    label_set = labeller.label()
    labeller.cache.point_name("lost", label_set="0" * 32)
    with pytest.raises(CorruptError, match=f"label_sets/{'0' * 32}/manifest.json is missing; run decant label again"):
        LabelSet.open(labeller.cache, name_or_id="lost")
    assert LabelSet.open(labeller.cache, name_or_id="tiny").manifest == label_set.manifest


def test_a_manifest_in_another_folder_is_refused(labeller):
    label_set = labeller.label()
    store = labeller.cache.store
    store.write(f"label_sets/{'0' * 32}/manifest.json", store.read(f"{label_set.folder}/manifest.json"))
    with pytest.raises(MismatchError, match=f"is that of {label_set.manifest.id}; the folder was renamed"):
        LabelSet.open_id(labeller.cache, label_set="0" * 32)


def test_lost_parts_made_anew_with_other_bytes_are_found(labeller):
    # Another device may round differently: the new tar has another digest, and the old manifest must not go on naming the lost one.
    label_set = labeller.label()
    lost = label_set.tar_path(1)
    labeller.cache.store.remove(lost)
    mended = replace(labeller, rows_per_block=3).label()
    assert mended.manifest.id == label_set.manifest.id
    found = [mended.tar_path(index) for index in range(mended.parts.num_rows)]
    assert lost not in found
    assert all(labeller.cache.store.exists(name) for name in found)
    assert LabelSet.open(labeller.cache, name_or_id="tiny").manifest == mended.manifest


def resealed(store, label_set, **changes):
    name = f"{label_set.folder}/manifest.json"
    body = json.loads(unseal(store.read(name)))
    store.write(name, seal(canonical_json({**body, **changes})))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"surprise": 1},
        {"num_views": 0},
        {"num_rows": -1},
        {"parts_file": "../../secret"},
        {"parts_file": "a\0b"},
        {"class_means_file": "x/y"},
        {"request": {}},
        {"statistics": None},
    ],
)
def test_a_manifest_of_another_release_is_refused_and_kept(labeller, changes):
    label_set = labeller.label()
    resealed(labeller.cache.store, label_set, **changes)
    before = read_tree(labeller.cache.store.url)
    for action in (lambda: LabelSet.open(labeller.cache, name_or_id="tiny"), labeller.label):
        with pytest.raises(FormatError, match=f"{label_set.folder}/manifest.json: not a manifest this release can read"):
            action()
    assert read_tree(labeller.cache.store.url) == before


def parquet(table):
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def changed(table, **changes):
    rows = table.to_pylist()
    for name, value in changes.items():
        outer, _, inner = name.partition("__")
        if not inner:
            rows[1][outer] = value
        elif outer == "blocks":
            rows[1]["blocks"][0][inner] = value
        else:
            rows[1][outer][inner] = value
    return pa.Table.from_pylist(rows, schema=PARTS_SCHEMA)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"unit_name": None}, "1 values of unit_name are missing"),
        ({"blocks": None}, "1 values of blocks are missing"),
        ({"blocks": [None]}, r"values of blocks\[\].* are missing"),
        ({"samples": None}, "1 values of samples"),
        ({"blocks__view": None}, r"1 values of blocks\[\].view are missing"),
        ({"blocks__view": 2}, "its last block is of view 2; the label set has 2 views"),
        ({"blocks__view": -1}, r"blocks\[\].view -1"),
        ({"blocks__offset": -512}, r"blocks\[\].offset -512"),
        ({"samples__num_bytes": -1}, "samples.num_bytes -1"),
        ({"num_samples": 2**24 + 1}, "up to 16777217 samples of a part"),
        ({"blocks__num_samples": 8001}, "up to 8001 samples of a block"),
        ({"blocks__num_samples": 0}, r"blocks\[\].num_samples 0"),
        ({"blocks__num_rows": 2**31 - 1}, "up to 2147483647 rows of a block"),
        ({"tar_bytes": -1}, "tar_bytes -1"),
        ({"tar_name": "../../../etc/passwd"}, "'../../../etc/passwd' is not the name of a part's tar"),
        ({"tar_name": "a\0b"}, "is not the name of a part's tar"),
        ({"request": "../../elsewhere"}, "'../../elsewhere' is not a fingerprint"),
        ({"request": None}, "1 values of request are missing"),
    ],
)
def test_tables_of_parts_that_cannot_be_are_refused_and_say_where(labeller, changes, problem):
    table = labeller.label().parts
    assert read_parts_table(parquet(table), num_parts=3, num_views=2, origin="here").equals(table)
    with pytest.raises(FormatError, match=f"^here: .*{problem}"):
        read_parts_table(parquet(changed(table, **changes)), num_parts=3, num_views=2, origin="here")


def test_tables_without_the_last_view_are_refused(labeller):
    table = labeller.label().parts
    with pytest.raises(FormatError, match="its last block is of view 1; the label set has 3 views"):
        read_parts_table(parquet(table), num_parts=3, num_views=3, origin="here")


@pytest.mark.parametrize(
    "data",
    [b"", b"PAR1PAR1", b"x" * 100, parquet(pa.table({"a": [1]})), parquet(pa.table({name: [[]] for name in PARTS_SCHEMA.names}))],
)
def test_what_is_no_table_of_parts_is_refused(data):
    with pytest.raises(FormatError, match="^here: not a table of parts"):
        read_parts_table(data, num_parts=1, num_views=1, origin="here")


def test_a_label_set_without_parts(labeller):
    label_set = labeller.commit([], name="none", num_views=1)
    assert (label_set.manifest.num_parts, label_set.parts.num_rows) == (0, 0)
    assert (
        digest(labeller.cache.store.read(f"{label_set.folder}/{label_set.manifest.parts_file}"))
        == label_set.manifest.parts_sha256
    )
