"""Experiments read the way a student reads them, so that what damage did to them can be compared bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from storage.cache import Cache
from storage.config import ExperimentConfig
from storage.label_runs.folder import find_run
from storage.label_runs.following import RunFollower
from storage.label_set import LabelSet
from storage.serving import served_picture_target, served_target
from storage.soft_labels import SoftLabels
from storage.sources import open_source
from storage.specs import HiddenStatesSpec
from storage.streams.aligned_rows import AlignedRows
from storage.streams.base import BlockStream, StreamRows, TextRows
from storage.streams.label_stream import LabelStream
from storage.streams.picture_targets import PictureTargetStream
from storage.streams.text_stream import TextLabelStream
from storage.text.serving import served_text_target


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a student gets: every row, view by view, class means, and frozen heads.

    Attributes:
        keys: of each view.
        images: of each view, the pictures that labels were joined with; none of texts.
        arrays: everything else, as bytes.
    """

    keys: tuple[tuple[str, ...], ...]
    images: tuple[tuple[bytes, ...], ...]
    arrays: tuple[bytes, ...]

    @classmethod
    def of(cls, config: ExperimentConfig) -> Self:
        """Open an experiment's label sets by name, check that they serve its config, and read all of them."""
        cache = Cache.at(str(config.cache))
        label_sets = {target: LabelSet.open(cache, name_or_id=name) for target, name in sorted(config.label_set_names.items())}
        first = next(iter(label_sets.values()))
        stream: LabelStream | PictureTargetStream | TextLabelStream
        if config.views.of_text:
            targets = {
                name: served_text_target(label_set, config=config, name=name, sections=None)
                for name, label_set in label_sets.items()
            }
            stream = TextLabelStream(label_sets, targets=targets)
        elif first.manifest.class_means_file is not None and len(label_sets) == 1:
            assert config.source is not None
            stream = LabelStream(first, source=open_source(config.source), target=served_target(first, config=config))
        else:
            assert config.source is not None
            targets = {
                name: served_picture_target(label_set, config=config, name=name, sections=None)
                for name, label_set in label_sets.items()
            }
            stream = PictureTargetStream(label_sets, source=open_source(config.source), targets=targets)
        arrays = [data for label_set in label_sets.values() for data in _beside_rows(label_set)]
        keys, images = [], []
        for epoch in range(first.manifest.num_views):
            rows = stream.read(epoch=epoch, **_every_row(stream, epoch=epoch))
            keys.append(tuple(rows.keys))
            images.append(tuple(rows.images) if isinstance(rows, StreamRows) else ())
            arrays += [np.ascontiguousarray(array).tobytes() for array in _arrays_of(rows)]
        return cls(keys=tuple(keys), images=tuple(images), arrays=tuple(arrays))

    @classmethod
    def of_tag(cls, cache: Cache, *, tag: str) -> Self:
        """Open the label set that a tag points at; its rows are those of the experiment that made it."""
        label_set = LabelSet.open(cache, name_or_id=tag)
        return cls(keys=((label_set.manifest.id,),), images=(), arrays=tuple(_beside_rows(label_set)))

    @classmethod
    def of_run(cls, cache: Cache, *, run: str) -> Self:
        """Follow a run as `decant cache watch` does, to its end."""
        folder, info = find_run(cache.store, wanted=run)
        follower = RunFollower.open(folder, info=info)
        while not (snapshot := follower.look()).counts.whole:
            pass
        return cls(keys=((info.model_dump_json(), repr(snapshot.counts)),), images=(), arrays=())


def _every_row(stream: BlockStream, *, epoch: int) -> dict[str, np.ndarray]:
    sizes = stream.block_rows(epoch=epoch)
    within = [np.arange(size) for size in sizes]
    return {"block_ids": np.repeat(np.arange(len(sizes)), sizes), "rows": np.concatenate(within)}


def _beside_rows(label_set: LabelSet) -> Iterator[bytes]:
    if label_set.manifest.class_means_file is not None:
        yield label_set.class_means().tobytes()
    target = label_set.manifest.request.target
    if isinstance(target, HiddenStatesSpec) and target.head_sha256 is not None:
        head = label_set.cache.head(target.head_sha256)
        yield head.spec.model_dump_json().encode()
        yield from (values.tobytes() for values in head.tensors.values())


def _arrays_of(rows: StreamRows | TextRows) -> Iterator[np.ndarray]:
    yield rows.labels
    if isinstance(rows, StreamRows):
        yield from (rows.view_digests, rows.view_indices)
        if rows.soft_labels is not None:
            yield rows.soft_labels.densify()
    else:
        yield from (rows.tokens.offsets, rows.tokens.token_ids)
        if rows.tokens.masks is not None:
            yield from (rows.tokens.masks.offsets, rows.tokens.masks.positions, rows.tokens.masks.input_ids)
    for _, target in sorted(rows.targets.items()):
        yield from _arrays_of_target(target)


def _arrays_of_target(rows: AlignedRows) -> Iterator[np.ndarray]:
    yield rows.offsets
    if isinstance(rows.values, SoftLabels):
        yield rows.values.densify()
    else:
        yield from (values for _, values in sorted(rows.values.tensors.items()))
