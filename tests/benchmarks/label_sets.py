"""Label sets of given logits, written the way the product writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch

from pipelines.extraction import ExtractedBatch
from pipelines.label_unit import provenance
from pipelines.teachers.base import Teacher
from storage.cache import Cache
from storage.codecs import RankedLabels
from storage.label_blocks import block_rows, decode_label_block
from storage.label_set import LabelSet, UsedPart, commit_label_set, label_set_id
from storage.measuring import measure
from storage.parts import PartRecord, PartStatistics, PartWriter
from storage.samples import SampleTable
from storage.sources.base import Sample, SourceUnit, UnitReader
from storage.specs import Normalization, PartSpec, RandomResizedCropView, RequestSpec, SoftLabelsSpec, TeacherSpec


@dataclass(frozen=True, kw_only=True)
class UnitLabels:
    """The labels of one unit: its samples, and what a teacher step kept of each view."""

    samples: SampleTable
    views: Sequence[ExtractedBatch]


def request_of(target: SoftLabelsSpec) -> RequestSpec:
    """Return a request as an ImageNet run of TinyViT's kind makes it."""
    teacher = TeacherSpec(
        kind="timm",
        architecture="mobilenetv1_075.ra4_e3600_r224_in1k",
        weights_sha256=hashlib.sha256(b"benchmark").hexdigest(),
        num_classes=target.num_classes,
        normalization=Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        precision="fp32",
    )
    return RequestSpec(teacher=teacher, view=RandomResizedCropView(size=(224, 224)), target=target)


def write_label_set(folder: Path, *, target: SoftLabelsSpec, units: Iterable[UnitLabels]) -> LabelSet:
    """Write parts and a label set over them into a new cache."""
    cache = Cache.at(str(folder))
    request = request_of(target)
    fingerprint = cache.add_request(request)
    parts: list[tuple[UsedPart, PartRecord]] = []
    for index, unit in enumerate(units):
        digest = hashlib.sha256("\0".join(unit.samples.keys).encode()).hexdigest()
        part = PartSpec(request=fingerprint, unit_digest=digest, first_view=0, num_views=len(unit.views))
        name = f"imagenet-train-{index:06d}.tar"
        record = _write_part(cache, part=part, unit=unit, request=request, unit_name=name)
        parts.append((UsedPart(unit_name=name, part=part, first_view=0, num_views=part.num_views), record))
    return commit_label_set(
        cache,
        identity=label_set_id(request=fingerprint, parts=[used for used, _ in parts]),
        name="benchmark",
        request=request,
        parts=parts,
        num_views=parts[0][0].num_views,
        classes=None,
        source={"kind": "webdataset", "path": "/data/imagenet/imagenet-train-{000000..000999}.tar", "label_field": "cls"},
    )


def _write_part(cache: Cache, *, part: PartSpec, unit: UnitLabels, request: RequestSpec, unit_name: str) -> PartRecord:
    writer = PartWriter(part=part, target=request.soft_labels, samples=unit.samples)
    statistics = PartStatistics()
    num_samples = len(unit.samples.keys)
    size = block_rows(request.soft_labels, num_samples=num_samples)
    for view, batch in enumerate(unit.views):
        digests = np.random.default_rng([view, num_samples]).integers(0, 2**64, size=num_samples, dtype=np.uint64)
        for first in range(0, num_samples, size):
            span = slice(first, min(first + size, num_samples))
            rows = RankedLabels(
                class_ids=batch.rows.class_ids[span], log_probs=batch.rows.log_probs[span], log_rest=batch.rows.log_rest[span]
            )
            present = np.ones(len(rows), dtype=np.bool_)
            data = writer.add_rows(rows, view=view, first_sample=first, present=present, view_digests=digests[span])
            stored = decode_label_block(data, origin="benchmark").soft_labels
            statistics = statistics.plus(measure(rows, stored, labels=unit.samples.labels[span], target=request.soft_labels))
    data, record = writer.finish(
        unit_name=unit_name,
        class_means=sum(batch.probability_sums for batch in unit.views) / max(statistics.num_rows, 1),
        dead_letters=(),
        statistics=statistics,
        provenance=provenance(cast(Teacher, SimpleNamespace(device=torch.device("cpu")))),
    )
    return cache.commit_part(data, record=record)


class LabelledNames:
    """The source of a label set whose pictures are not here: its units by name, so that labels can be read without a join."""

    classes = None

    def __init__(self, label_set: LabelSet) -> None:
        self._names: list[str] = label_set.parts.column("unit_name").to_pylist()

    def units(self) -> list[SourceUnit]:
        """List the units the label set was made of."""
        return [SourceUnit(name=name, locator={}, stat_token="") for name in self._names]

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        """Refuse: labels alone are measured here."""
        raise FileNotFoundError(unit.name)

    def open(self, unit: SourceUnit) -> UnitReader:
        """Refuse: labels alone are measured here."""
        raise FileNotFoundError(unit.name)


def folder_bytes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
