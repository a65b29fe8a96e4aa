"""Hidden states of pictures joined to their soft labels: by position, whatever the blocks."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest

from storage.cache import Cache
from storage.config import ImageFolderConfig
from storage.errors import MismatchError
from storage.features import FeatureRows
from storage.hashing import key_hash
from storage.parts import PartStatistics, PartWriter
from storage.picture_tokens import tokens_per_picture
from storage.samples import SampleTable
from storage.sources import open_source
from storage.specs import EmbeddingsSpec, Float16Codec, HiddenStatesSpec, PartSpec, RelationsSpec, RequestSpec
from storage.specs.features import rows_of_samples
from storage.streams.label_tars import ReadsLabelSets
from storage.streams.picture_targets import PictureTargetStream
from storage.target_blocks import encode_target_block
from tests.storage.caches import Labeller, make_labeller, row_seed, stored_row

HIDDEN = HiddenStatesSpec(layers=(1, 2), tokens="all", width=3, codec=Float16Codec())
POOLED = EmbeddingsSpec(width=4, codec=Float16Codec())
TOKENS = 5


def vectors(target, *, key, view):
    rng = np.random.default_rng(zlib.crc32(f"{target.kind} {key} {view}".encode()))
    num_rows = rows_of_samples(target, num_tokens=TOKENS)
    return {name: rng.normal(size=(num_rows, width)).astype(np.float16) for name, width in target.tensors.items()}


@dataclass(frozen=True, kw_only=True)
class FeatureLabeller(Labeller):
    """Makes parts of vectors; digests are those of the labels' teacher."""

    labels: RequestSpec

    def make_part(self, indexed, *, first_view, num_views):
        samples = list(self.source.read(indexed.unit))
        table = SampleTable(keys=tuple(s.key for s in samples), labels=np.array([s.label for s in samples], dtype=np.int64))
        part = PartSpec(
            request=self.request.fingerprint(), unit_digest=indexed.digest, first_view=first_view, num_views=num_views
        )
        target = self.request.target
        writer = PartWriter(part=part, target=target, samples=table)
        num_rows = 0
        for view in range(first_view, first_view + num_views):
            for first in range(0, len(samples), self.rows_per_block):
                keys = table.keys[first : first + self.rows_per_block]
                alive = [key for key in keys if (key, view) not in self.dead]
                found = [vectors(target, key=key, view=view) for key in alive] or [vectors(target, key="", view=0)]
                tensors = {name: np.concatenate([rows[name] for rows in found]) for name in target.tensors}
                values = FeatureRows(tensors={name: rows[: len(rows) if alive else 0] for name, rows in tensors.items()})
                data = encode_target_block(
                    values,
                    target=target,
                    view=view,
                    first_sample=first,
                    present=np.array([key in alive for key in keys]),
                    key_hash=key_hash(keys),
                    tokens_per_picture=TOKENS if rows_of_samples(target, num_tokens=TOKENS) > 1 else 1,
                    view_digests=np.array([row_seed(self.labels, key, view) | 1 for key in keys], dtype=np.uint64),
                )
                writer.add_block(data, view=view, first_sample=first, num_samples=len(keys), num_rows=len(alive))
                num_rows += len(alive)
        return writer.finish(
            unit_name=indexed.unit.name,
            class_means=None,
            dead_letters=(),
            statistics=PartStatistics(num_rows=num_rows),
            provenance=self.provenance,
        )


def make_features(labeller, target, *, rows_per_block, dead=frozenset(), view=None, labels=None):
    request = labeller.request.model_copy(update={"target": target, **({} if view is None else {"view": view})})
    return FeatureLabeller(
        cache=labeller.cache,
        source=labeller.source,
        request=request,
        rows_per_block=rows_per_block,
        dead=dead,
        labels=labels or labeller.request,
    )


def read_all(stream, *, epoch=0, order=None):
    sizes = stream.block_rows(epoch=epoch)
    block_ids = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate([np.arange(size) for size in sizes])
    order = slice(None) if order is None else order
    return stream.read(epoch=epoch, block_ids=block_ids[order], rows=rows[order])


def check(rows, labeller, *, view, targets):
    dense = rows.targets["labels"].values.densify()
    assert rows.soft_labels is None
    for index, key in enumerate(rows.keys):
        assert rows.images[index] == b"picture %d" % int(key[4:7])
        assert dense[index].tolist() == list(stored_row(labeller.request, key, view))
        assert rows.view_digests[index] in (0, row_seed(labeller.request, key, view) | 1)
        for name, target in targets.items():
            found = rows.targets[name].take(np.array([index])).values.tensors
            wanted = vectors(target, key=key, view=view)
            assert {name: values.tolist() for name, values in found.items()} == {
                name: values.tolist() for name, values in wanted.items()
            }


@pytest.mark.parametrize("rows_per_block", [2, 3, 7])
def test_values_are_looked_up_by_position(tmp_path, rows_per_block):
    dead = frozenset({("ant/003.jpg", 0), ("bee/009.jpg", 0), ("bee/010.jpg", 1)})
    labeller = make_labeller(tmp_path, dead=dead)
    dead_there = frozenset({("ant/003.jpg", 0), ("ant/004.jpg", 0), ("cat/016.jpg", 1)})
    label_sets = {
        "hidden": make_features(labeller, HIDDEN, rows_per_block=rows_per_block, dead=dead_there).label(name="hidden"),
        "pooled": make_features(labeller, POOLED, rows_per_block=5).label(name="pooled"),
    }
    label_sets["labels"] = labeller.label()
    stream = PictureTargetStream(label_sets, source=labeller.source)
    all_keys = [key for table in ("ant", "bee", "cat") for key in sorted(labelled_keys(labeller)) if key.startswith(table)]
    for epoch in range(2):
        rows = read_all(stream, epoch=epoch)
        assert rows.keys == [key for key in all_keys if not (dead | dead_there) & {(key, epoch)}]
        check(rows, labeller, view=epoch, targets={"hidden": HIDDEN, "pooled": POOLED})
        shuffled = np.random.default_rng(epoch).permutation(len(rows.keys))[:9]
        found = read_all(pickle.loads(pickle.dumps(stream)), epoch=epoch, order=shuffled)
        assert found.keys == [rows.keys[index] for index in shuffled]
        check(found, labeller, view=epoch, targets={"hidden": HIDDEN, "pooled": POOLED})
    most = max(label_sets.values(), key=lambda found: len(stream_blocks(found)))
    assert len(stream.block_rows(epoch=0)) == len(stream_blocks(most))


def labelled_keys(labeller):
    return [sample.key for unit in labeller.source.units() for sample in labeller.source.read(unit)]


def stream_blocks(label_set):
    return [block for blocks in label_set.parts.column("blocks").to_pylist() for block in blocks if block["view"] == 0]


def test_targets_are_narrowed_and_others_are_refused(tmp_path):
    labeller = make_labeller(tmp_path)
    labels, source = labeller.label(), labeller.source
    hidden = make_features(labeller, HIDDEN, rows_per_block=3).label(name="hidden")
    fewer = HIDDEN.model_copy(update={"layers": (2,)})
    both = {"labels": labels, "hidden": hidden}
    stream = PictureTargetStream(both, source=source, targets={"hidden": fewer})
    rows = read_all(stream)
    assert list(rows.targets) == ["hidden"]
    assert list(rows.targets["hidden"].values.tensors) == ["hidden.2"]
    assert stream.identity() != PictureTargetStream(both, source=source, targets={"hidden": HIDDEN}).identity()
    assert isinstance(stream, ReadsLabelSets)
    assert stream.label_tars().keys() == {labels.manifest.id, hidden.manifest.id}
    view = labeller.request.view.model_copy(update={"seed": 9})
    other = make_features(labeller, HIDDEN, rows_per_block=3, view=view).label(name="other")
    with pytest.raises(MismatchError, match=r"view\.seed: 0 in labels .label set 'tiny'., 9 in hidden"):
        PictureTargetStream({"labels": labels, "hidden": other}, source=source)
    more = make_labeller(tmp_path / "more", num=18)
    longer = make_features(replace(more, request=labeller.request), HIDDEN, rows_per_block=3).label(name="longer")
    with pytest.raises(
        MismatchError, match="not of the same samples: of unit '00014-00017', view 0, the one covers 3 samples, the other 0"
    ):
        PictureTargetStream({"labels": labels, "hidden": longer}, source=source)


def test_teachers_that_saw_other_pixels_are_not_joined(tmp_path):
    labeller = make_labeller(tmp_path)
    other_pixels = labeller.request.model_copy(update={"target": POOLED})
    hidden = make_features(labeller, HIDDEN, rows_per_block=4, labels=other_pixels).label(name="hidden")
    stream = PictureTargetStream({"labels": labeller.label(), "hidden": hidden}, source=labeller.source)
    with pytest.raises(
        MismatchError, match="sample 'ant/000.jpg', view 0: target 'hidden' is of pixels with digest .* not of one view"
    ):
        read_all(stream)


def test_vectors_need_no_soft_labels(tmp_path):
    labeller = make_labeller(tmp_path)
    hidden = make_features(labeller, HIDDEN, rows_per_block=3).label(name="hidden")
    rows = read_all(PictureTargetStream({"hidden": hidden}, source=labeller.source))
    assert rows.keys == labelled_keys(labeller)
    labels = {sample.key: sample.label for unit in labeller.source.units() for sample in labeller.source.read(unit)}
    assert rows.labels.tolist() == [labels[key] for key in rows.keys]
    assert rows.targets["hidden"].counts.tolist() == [TOKENS] * len(rows.keys)


def test_labels_of_two_teachers(tmp_path):
    labeller = make_labeller(tmp_path)
    teacher = labeller.request.teacher.model_copy(update={"weights_sha256": "ab" * 32})
    request = labeller.request.model_copy(update={"teacher": teacher})
    other = replace(labeller, request=request, seen_as=labeller.request, rows_per_block=3)
    stream = PictureTargetStream({"one": labeller.label(), "two": other.label(name="two")}, source=labeller.source)
    rows = read_all(stream, epoch=1)
    for index, key in enumerate(rows.keys):
        for name, by in {"one": labeller, "two": other}.items():
            assert rows.targets[name].values.densify()[index].tolist() == list(stored_row(by.request, key, 1))


def test_a_source_that_changed_is_refused(tmp_path):
    labeller = make_labeller(tmp_path)
    hidden = make_features(labeller, HIDDEN, rows_per_block=3).label(name="hidden")
    (tmp_path / "pictures" / "bee" / "008.jpg").rename(tmp_path / "pictures" / "bee" / "008a.jpg")
    source = open_source(ImageFolderConfig(kind="image_folder", path=str(tmp_path / "pictures"), unit_size=7))
    stream = PictureTargetStream({"hidden": hidden}, source=source)
    with pytest.raises(
        MismatchError,
        match="unit '.*' does not hold the samples that were labelled: at position 1 the labels are of 'bee/008.jpg'",
    ):
        read_all(stream)


def test_tokens_of_pictures_are_found_in_the_first_block_that_has_some(tmp_path):
    labeller = make_labeller(tmp_path)
    relations = RelationsSpec(layer=1, vectors=("value",), num_relation_heads=2, codec=Float16Codec())
    first = frozenset((key, 0) for key in labelled_keys(labeller)[:3])
    for name, target in {"hidden": HIDDEN, "relations": relations}.items():
        label_set = make_features(labeller, target, rows_per_block=3, dead=first).label(name=name)
        assert tokens_per_picture(label_set) == TOKENS
    everywhere = frozenset((key, view) for key in labelled_keys(labeller) for view in range(2))
    with pytest.raises(MismatchError, match="label set 'none' holds no picture: all are dead letters"):
        tokens_per_picture(
            make_features(
                replace(labeller, cache=Cache.at(str(tmp_path / "other"))), HIDDEN, rows_per_block=3, dead=everywhere
            ).label(name="none")
        )
