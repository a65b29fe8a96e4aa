"""Rows of a label set joined with their pictures."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.codecs import RankedLabels
from storage.errors import CorruptError, MismatchError
from storage.filesystem import Store
from storage.label_set import UsedPart
from storage.order import EpochOrder
from storage.parts import PartWriter
from storage.sources import index_source, open_source
from storage.specs import CompactCodec, ExactCodec, PartSpec
from storage.streams.label_stream import LabelStream
from storage.streams.label_tars import ReadsLabelSets
from storage.verify import verify
from tests.storage.caches import make_labeller, make_request, stored_digest, stored_row, write_pictures

DEAD = frozenset({("ant/001.jpg", None), ("ant/003.jpg", 1), *(("bee/007.jpg", view) for view in (0, 1))})
DEAD_BLOCK = frozenset((f"bee/{number:03d}.jpg", None) for number in range(7, 11))


def read_all(stream, *, epoch=0):
    sizes = stream.block_rows(epoch=epoch)
    block_ids = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate([np.arange(size) for size in sizes])
    return stream.read(epoch=epoch, block_ids=block_ids, rows=rows)


def expected_keys(labeller, *, view):
    keys = [sample.key for unit in labeller.source.units() for sample in labeller.source.read(unit)]
    return [key for key in keys if not {(key, view), (key, None)} & labeller.dead]


def check(rows, labeller, *, view):
    """Fail unless every row holds its own key, picture, label, digest and soft labels."""
    dense = rows.soft_labels.densify()
    for index, key in enumerate(rows.keys):
        number = int(key[4:7])
        assert rows.images[index] == b"picture %d" % number
        assert rows.labels[index] == number * 3 // 17 == "abc".index(key[0])
        assert rows.view_digests[index] == stored_digest(labeller.request, key, view, offset=number % 7 % labeller.rows_per_block)
        assert dense[index].tolist() == list(stored_row(labeller.request, key, view))
    assert rows.view_indices.tolist() == [view] * len(rows.keys)
    assert (rows.labels.dtype, rows.view_digests.dtype, rows.view_indices.dtype) == (np.int64, np.uint64, np.int64)


@pytest.fixture(scope="module")
def labeller(tmp_path_factory):
    return make_labeller(tmp_path_factory.mktemp("stream"), dead=DEAD)


@pytest.fixture(scope="module")
def label_set(labeller):
    return labeller.label()


@pytest.fixture
def stream(labeller, label_set):
    return LabelStream(label_set, source=labeller.source)


@pytest.mark.parametrize("codec", [ExactCodec(), CompactCodec(), CompactCodec(levels=20)])
@pytest.mark.parametrize("k", [1, 3, 10, None])
def test_rows_join_their_pictures(tmp_path, codec, k):
    if k is None and codec.kind == "exact":
        k = 2
    labeller = make_labeller(tmp_path, request=make_request(codec=codec, k=k), dead=DEAD | DEAD_BLOCK)
    stream = LabelStream(labeller.label(), source=labeller.source)
    for view in range(2):
        rows = read_all(stream, epoch=view)
        assert rows.keys == expected_keys(labeller, view=view)
        check(rows, labeller, view=view)
        assert 0 in stream.block_rows(epoch=view).tolist()


def test_an_epoch_reads_one_view_in_turn(labeller, stream):
    assert stream.block_rows(epoch=0).tolist() == [3, 3, 3, 3, 3] != stream.block_rows(epoch=1).tolist()
    for epoch in (0, 1, 2, 3, 10**9):
        view = epoch % 2
        rows = read_all(stream, epoch=epoch)
        assert rows.keys == expected_keys(labeller, view=view)
        check(rows, labeller, view=view)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3), st.integers(0, 2**32), st.integers(0, 4), st.lists(st.integers(0, 15), max_size=4))
def test_shuffled_slices_are_the_rows_asked_for(labeller, label_set, epoch, seed, window_blocks, cuts):
    stream = LabelStream(label_set, source=labeller.source, held_blocks=max(window_blocks, 1) + 1)
    sizes = stream.block_rows(epoch=epoch)
    order = EpochOrder(sizes, seed=seed, epoch=epoch, window_blocks=window_blocks)
    keys = np.array(expected_keys(labeller, view=epoch % 2))
    starts = np.cumsum(sizes) - sizes
    bounds = [0, *sorted(min(cut, order.num_rows) for cut in cuts), order.num_rows]
    for start, stop in pairwise(bounds):
        if start == stop:
            continue
        block_ids, rows = order.slice(start, stop)
        found = stream.read(epoch=epoch, block_ids=block_ids, rows=rows)
        assert found.keys == keys[starts[block_ids] + rows].tolist()
        check(found, labeller, view=epoch % 2)


def test_a_row_may_be_asked_for_twice(labeller, stream):
    found = stream.read(epoch=0, block_ids=np.array([2, 0, 2, 2]), rows=np.array([1, 0, 1, 0]))
    keys = expected_keys(labeller, view=0)
    assert found.keys == [keys[7], keys[0], keys[7], keys[6]]
    check(found, labeller, view=0)


def test_a_window_is_read_once(labeller, label_set, monkeypatch):
    reads = []
    original = Store.read_range

    def counting(self, name, *, start, num_bytes):
        reads.append((name, start))
        return original(self, name, start=start, num_bytes=num_bytes)

    monkeypatch.setattr(Store, "read_range", counting)
    stream = LabelStream(label_set, source=labeller.source, held_blocks=5)
    order = EpochOrder(stream.block_rows(epoch=0), seed=0, epoch=0, window_blocks=5)
    for start in range(order.num_rows):
        block_ids, rows = order.slice(start, start + 1)
        stream.read(epoch=0, block_ids=block_ids, rows=rows)
    assert len(reads) == len(set(reads)) == 5 + 3  # five blocks of labels, three tables of samples


def test_a_copy_in_another_process_reads_the_same(labeller, stream):
    before = read_all(stream)
    copy = pickle.loads(pickle.dumps(stream))
    assert copy.identity() == stream.identity()
    assert read_all(copy).keys == before.keys
    assert len(pickle.dumps(stream)) < 100_000  # neither rows nor pictures travel


def test_identity_is_of_the_label_set(labeller, label_set, stream, tmp_path):
    assert LabelStream(label_set, source=labeller.source, held_blocks=3).identity() == stream.identity()
    other = make_labeller(tmp_path, request=make_request(seed=1))
    assert LabelStream(other.label(), source=other.source).identity() != stream.identity()
    moved = make_labeller(tmp_path / "moved", dead=DEAD)
    assert LabelStream(moved.label(), source=moved.source).identity() == stream.identity()


def test_its_tars_are_told_by_label_set(labeller, label_set, stream, tmp_path):
    assert isinstance(stream, ReadsLabelSets)
    (told,) = stream.label_tars().values()
    assert told["name"] == label_set.manifest.name
    assert set(stream.label_tars()) == {label_set.manifest.id}
    moved = make_labeller(tmp_path / "moved", dead=DEAD)
    assert LabelStream(moved.label(), source=moved.source).label_tars() == stream.label_tars()
    # The same label set, of which another row is dead.
    other = make_labeller(tmp_path / "other", dead=DEAD_BLOCK)
    other_stream = LabelStream(other.label(), source=other.source)
    assert other_stream.identity() == stream.identity()
    assert other_stream.label_tars().keys() == stream.label_tars().keys()
    assert other_stream.label_tars() != stream.label_tars()


def test_a_source_of_other_pictures_is_refused_with_both_keys(label_set, tmp_path):
    source = open_source(write_pictures(tmp_path, prefix="x"))
    stream = LabelStream(label_set, source=source)
    with pytest.raises(MismatchError) as caught:
        read_all(stream)
    assert "unit '00000-00007' does not hold the samples that were labelled: at position 0" in str(caught.value)
    assert "the labels are of 'ant/000.jpg', the source holds 'ant/x000.jpg'" in str(caught.value)
    assert "restore the source or run decant label again" in str(caught.value)


def test_a_source_that_differs_in_one_key_is_refused_where_it_differs(labeller, label_set, tmp_path):
    source = open_source(write_pictures(tmp_path))
    (tmp_path / "bee" / "009.jpg").rename(tmp_path / "bee" / "009b.jpg")
    stream = LabelStream(label_set, source=source)
    assert stream.read(epoch=0, block_ids=np.array([0]), rows=np.array([0])).keys == ["ant/000.jpg"]
    with pytest.raises(MismatchError, match="position 2 the labels are of 'bee/009.jpg', the source holds 'bee/009b.jpg'"):
        read_all(stream)


def test_a_source_without_a_labelled_unit_is_refused(label_set, tmp_path):
    source = open_source(write_pictures(tmp_path, num=16))
    with pytest.raises(
        MismatchError, match="'tiny' has labels of unit '00014-00017', which the source does not hold .it holds 3 units"
    ):
        LabelStream(label_set, source=source)


class ShorterSource:
    """A source whose units hold one sample less than when they were labelled."""

    def __init__(self, source):
        self.units = source.units
        self.open_whole = source.open

    def open(self, unit):
        unit = replace(unit, locator={name: value[:-1] if name != "root" else value for name, value in unit.locator.items()})
        return self.open_whole(unit)


def test_a_unit_that_lost_its_last_sample_is_refused(labeller, label_set):
    stream = LabelStream(label_set, source=ShorterSource(labeller.source))
    with pytest.raises(MismatchError, match="position 6 the labels are of 'bee/006.jpg', the source holds 'nothing'"):
        read_all(stream)


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_damage_met_while_reading_names_the_part_and_the_remedy(tmp_path, damage):
    labeller = make_labeller(tmp_path)
    label_set = labeller.label()
    stream = LabelStream(label_set, source=labeller.source)
    name = label_set.tar_path(1)
    path = tmp_path / "cache" / name
    block = label_set.parts.column("blocks")[1].as_py()[0]
    data = bytearray(path.read_bytes())
    data[block["offset"] + 40] ^= 4
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flipped" else data[: block["offset"] + 9])
    problem = {"flipped": "has checksum", "short": "the part is truncated", "gone": "is missing"}[damage]
    assert stream.read(epoch=0, block_ids=np.array([0]), rows=np.array([0])).keys == ["ant/000.jpg"]
    with pytest.raises(CorruptError, match=f"{path}.* {problem}.*run decant repair CONFIG"):
        read_all(stream)
    path.unlink(missing_ok=True)
    labeller.label()
    rows = read_all(LabelStream(label_set, source=labeller.source))
    check(rows, labeller, view=0)


def test_a_block_in_the_place_of_another_is_refused(tmp_path, monkeypatch):
    # Whole blocks, right checksums: only what they say of themselves tells.
    labeller = make_labeller(tmp_path)
    original = PartWriter.add_rows

    def add_rows(self, rows: RankedLabels, *, view, **options):
        data = original(self, rows, view=view, **options)
        self._blocks[-1] = self._blocks[-1].model_copy(update={"view": 1 - view})
        return data

    monkeypatch.setattr(PartWriter, "add_rows", add_rows)
    stream = LabelStream(labeller.label(), source=labeller.source)
    with pytest.raises(CorruptError, match=r"the block at \d+ is \(view, first sample, samples, rows\) \(1, 0, 4, 4\)"):
        read_all(stream)


def test_many_units_are_read_with_few_open(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.streams.label_stream._OPEN_UNITS", 1)
    labeller = make_labeller(tmp_path)
    stream = LabelStream(labeller.label(), source=labeller.source, held_blocks=1)
    sizes = stream.block_rows(epoch=0)
    for block_id in [*range(len(sizes)), *reversed(range(len(sizes)))]:
        rows = stream.read(epoch=0, block_ids=np.full(sizes[block_id], block_id), rows=np.arange(sizes[block_id]))
        check(rows, labeller, view=0)


def test_rows_are_narrowed_to_the_target(labeller, label_set):
    asked = label_set.manifest.request.target.model_copy(update={"k": 2})
    narrowed = LabelStream(label_set, source=labeller.source, target=asked)
    whole = read_all(LabelStream(label_set, source=labeller.source))
    found = read_all(narrowed)
    assert found.keys == whole.keys
    assert found.soft_labels.probs.shape[1] == 2 < whole.soft_labels.probs.shape[1]
    np.testing.assert_allclose(found.soft_labels.probs.sum(axis=1) + found.soft_labels.rest, 1, atol=1e-6)
    np.testing.assert_array_equal(np.sort(found.soft_labels.probs), np.sort(whole.soft_labels.probs)[:, 1:])
    assert narrowed.identity() != LabelStream(label_set, source=labeller.source).identity()
    again = pickle.loads(pickle.dumps(narrowed))
    np.testing.assert_array_equal(read_all(again).soft_labels.probs, found.soft_labels.probs)


def test_a_target_the_label_set_does_not_hold_is_refused(labeller, label_set):
    asked = label_set.manifest.request.target.model_copy(update={"k": 4})
    with pytest.raises(MismatchError, match="label set 'tiny' cannot serve this target: target.k is 3, less than 4"):
        LabelStream(label_set, source=labeller.source, target=asked)


def test_a_label_set_may_be_served_by_wider_parts(tmp_path):
    wide = make_labeller(tmp_path, request=make_request(k=5))
    narrow = replace(wide, request=make_request(k=2))
    wide.label(name="wide")
    narrow.cache.add_request(narrow.request)
    used = []
    for indexed in index_source(wide.source).units:
        owner = narrow if indexed.unit.name == "00007-00014" else wide
        part = PartSpec(request=owner.request.fingerprint(), unit_digest=indexed.digest, first_view=0, num_views=2)
        if owner is narrow:
            data, record = owner.make_part(indexed, first_view=0, num_views=2)
            owner.cache.commit_part(data, record=record)
        used.append((UsedPart(unit_name=indexed.unit.name, part=part, first_view=0, num_views=2), owner.cache.find_part(part)))
    label_set = narrow.commit(used, name="mixed", num_views=2)
    assert label_set.manifest.served_by == (wide.request.target,)
    assert verify(label_set).problems == ()
    rows = read_all(LabelStream(label_set, source=wide.source))
    assert rows.soft_labels.probs.shape == (17, 2)
    own = [index for index, key in enumerate(rows.keys) if 7 <= int(key[4:7]) < 14]
    dense = rows.soft_labels.densify()
    assert [dense[index].tolist() for index in own] == [list(stored_row(narrow.request, rows.keys[index], 0)) for index in own]
    stray = replace(wide, request=make_request(k=1))
    stray.cache.add_request(stray.request)
    data, record = stray.make_part(index_source(wide.source).units[0], first_view=0, num_views=2)
    record = stray.cache.commit_part(data, record=record)
    lying = [(replace(used[0][0], part=record.part), record), *used[1:]]
    stream = LabelStream(narrow.commit(lying, name="lying", num_views=2), source=wide.source)
    with pytest.raises(CorruptError, match="is of other labels: target.k is 1, less than 2; run decant label again"):
        read_all(stream)
