"""Hidden states of pictures joined to their soft labels: by position, whatever the blocks."""

from __future__ import annotations

import pickle
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest

from storage.errors import MismatchError
from storage.features import FeatureRows
from storage.hashing import key_hash
from storage.parts import PartStatistics, PartWriter
from storage.samples import SampleTable
from storage.specs import EmbeddingsSpec, Float16Codec, HiddenStatesSpec, PartSpec, RequestSpec
from storage.streams.label_stream import LabelStream
from storage.streams.picture_targets import PictureTargetStream
from storage.target_blocks import encode_target_block
from tests.storage.caches import Labeller, make_labeller, row_seed, stored_row

HIDDEN = HiddenStatesSpec(layers=(1, 2), tokens="all", width=3, codec=Float16Codec())
POOLED = EmbeddingsSpec(width=4, codec=Float16Codec())
TOKENS = 5


def vectors(target, *, key, view):
    rng = np.random.default_rng(zlib.crc32(f"{target.kind} {key} {view}".encode()))
    num_rows = TOKENS if target.per_token else 1
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
                    tokens_per_picture=TOKENS if target.per_token else 1,
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
    dense = rows.soft_labels.densify()
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
    stream = PictureTargetStream(LabelStream(labeller.label(), source=labeller.source), label_sets)
    all_keys = [key for table in ("ant", "bee", "cat") for key in sorted(labelled_keys(labeller)) if key.startswith(table)]
    for epoch in range(2):
        rows = read_all(stream, epoch=epoch)
        assert rows.keys == [key for key in all_keys if not (dead | dead_there) & {(key, epoch)}]
        check(rows, labeller, view=epoch, targets={"hidden": HIDDEN, "pooled": POOLED})
        shuffled = np.random.default_rng(epoch).permutation(len(rows.keys))[:9]
        found = read_all(pickle.loads(pickle.dumps(stream)), epoch=epoch, order=shuffled)
        assert found.keys == [rows.keys[index] for index in shuffled]
        check(found, labeller, view=epoch, targets={"hidden": HIDDEN, "pooled": POOLED})
    most = max(label_sets["hidden"], label_sets["pooled"], labeller.label(), key=lambda found: len(stream_blocks(found)))
    assert len(stream.block_rows(epoch=0)) == len(stream_blocks(most))


def labelled_keys(labeller):
    return [sample.key for unit in labeller.source.units() for sample in labeller.source.read(unit)]


def stream_blocks(label_set):
    return [block for blocks in label_set.parts.column("blocks").to_pylist() for block in blocks if block["view"] == 0]


def test_targets_are_narrowed_and_others_are_refused(tmp_path):
    labeller = make_labeller(tmp_path)
    labels = LabelStream(labeller.label(), source=labeller.source)
    hidden = make_features(labeller, HIDDEN, rows_per_block=3).label(name="hidden")
    fewer = HIDDEN.model_copy(update={"layers": (2,)})
    stream = PictureTargetStream(labels, {"hidden": hidden}, targets={"hidden": fewer})
    assert list(read_all(stream).targets["hidden"].values.tensors) == ["hidden.2"]
    assert stream.identity() != PictureTargetStream(labels, {"hidden": hidden}).identity()
    view = labeller.request.view.model_copy(update={"seed": 9})
    other = make_features(labeller, HIDDEN, rows_per_block=3, view=view).label(name="other")
    with pytest.raises(MismatchError, match=r"view\.seed: 0 in labels .label set 'tiny'., 9 in hidden"):
        PictureTargetStream(labels, {"hidden": other})
    more = make_labeller(tmp_path / "more", num=18)
    longer = make_features(replace(more, request=labeller.request), HIDDEN, rows_per_block=3).label(name="longer")
    with pytest.raises(
        MismatchError, match="not of the same samples: of unit '00014-00017', view 0, the one covers 3 samples, the other 0"
    ):
        PictureTargetStream(labels, {"hidden": longer})


def test_teachers_that_saw_other_pixels_are_not_joined(tmp_path):
    labeller = make_labeller(tmp_path)
    other_pixels = labeller.request.model_copy(update={"target": POOLED})
    hidden = make_features(labeller, HIDDEN, rows_per_block=4, labels=other_pixels).label(name="hidden")
    stream = PictureTargetStream(LabelStream(labeller.label(), source=labeller.source), {"hidden": hidden})
    with pytest.raises(
        MismatchError, match="sample 'ant/000.jpg', view 0: the soft labels are of pixels with digest .* not of one view"
    ):
        read_all(stream)
