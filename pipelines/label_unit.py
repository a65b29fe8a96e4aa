"""Label one source unit: read, render, run the teacher in fixed batches, encode, and hand back a part."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from pipelines.extraction import ExtractedBatch, extract
from pipelines.rendering import RenderedSample, SampleRenderer, map_ahead
from pipelines.teachers.base import Teacher
from storage.codecs import RankedLabels
from storage.codecs.divergence import codec_kl
from storage.config import GenerationConfig
from storage.errors import SourceError, TeacherError
from storage.label_blocks import block_rows, decode_label_block
from storage.parts import DeadLetter, PartRecord, PartStatistics, PartWriter
from storage.samples import SampleTable
from storage.soft_labels import SoftLabels
from storage.sources import UnitDigest
from storage.sources.base import NO_LABEL, Source, SourceUnit
from storage.specs import CompactCodec, PartSpec, RequestSpec

_PROVENANCE_PACKAGES = ("decant", "torch", "torchvision", "timm", "transformers", "numpy", "pillow", "apache-beam")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelTask:
    """One work unit: a source unit and the range of views that is missing."""

    unit: SourceUnit
    part: PartSpec
    num_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledUnit:
    """A finished part, not yet committed.

    Attributes:
        seconds: wall time of the whole unit.
        teacher_seconds: wall time inside the teacher, extraction included.
    """

    data: bytes
    record: PartRecord
    seconds: float
    teacher_seconds: float


@dataclass(kw_only=True)
class _ViewRows:
    """Rows of one view of the whole unit, filled batch by batch."""

    rows: RankedLabels
    present: npt.NDArray[np.bool_]
    digests: npt.NDArray[np.uint64]

    @classmethod
    def empty(cls, num_samples: int, *, entries: int) -> _ViewRows:
        return cls(
            rows=RankedLabels(
                class_ids=np.zeros((num_samples, entries), dtype=np.uint32),
                log_probs=np.zeros((num_samples, entries), dtype=np.float32),
                log_rest=np.zeros(num_samples, dtype=np.float32),
            ),
            present=np.zeros(num_samples, dtype=np.bool_),
            digests=np.zeros(num_samples, dtype=np.uint64),
        )


@dataclass(kw_only=True)
class UnitLabeller:
    """Labels units with one teacher. Bytes depend on the unit and the specs, never on which worker runs it or when."""

    teacher: Teacher
    source: Source
    request: RequestSpec
    config: GenerationConfig
    _probability_sums: npt.NDArray[np.float64] = field(init=False, repr=False)

    def label(self, task: LabelTask) -> LabelledUnit:
        """Return the part of a work unit.

        Raises:
            SourceError: the unit cannot be read, or no longer holds what was indexed.
            TeacherError: the teacher fails on every sample of a batch and on black pictures, or runs out of memory.
        """
        started = time.perf_counter()
        spec = self.request.target
        self._probability_sums = np.zeros(spec.num_classes)
        views = [_ViewRows.empty(task.num_samples, entries=spec.max_entries) for _ in range(task.part.num_views)]
        keys: list[str] = []
        labels = np.full(task.num_samples, NO_LABEL, dtype=np.int64)
        dead_letters: list[DeadLetter] = []
        unit_digest = UnitDigest()
        teacher_seconds = 0.0
        for batch in self._batches(task):
            for rendered in batch:
                sample = rendered.sample
                if sample.position >= task.num_samples:
                    raise self._changed(task, dead_letters=dead_letters)
                unit_digest.add(sample)
                keys.append(sample.key)
                labels[sample.position] = sample.label
                if rendered.dead_letter is not None:
                    dead_letters.append(rendered.dead_letter)
            for index, rows in enumerate(views):
                teacher_seconds += self._label_view(batch, index=index, rows=rows, task=task, dead_letters=dead_letters)
        if len(keys) != task.num_samples or unit_digest.hexdigest() != task.part.unit_digest:
            raise self._changed(task, dead_letters=dead_letters)
        table = SampleTable(keys=tuple(keys), labels=labels)
        writer = PartWriter(part=task.part, target=spec, samples=table)
        statistics = PartStatistics()
        for index, rows in enumerate(views):
            for measured in self._write_view(writer, view=task.part.first_view + index, rows=rows, labels=labels):
                statistics = statistics.plus(measured)
        data, record = writer.finish(
            unit_name=task.unit.name,
            class_means=self._probability_sums / max(statistics.num_rows, 1),
            dead_letters=tuple(dead_letters),
            statistics=statistics,
            provenance=provenance(self.teacher),
        )
        return LabelledUnit(data=data, record=record, seconds=time.perf_counter() - started, teacher_seconds=teacher_seconds)

    def _changed(self, task: LabelTask, *, dead_letters: list[DeadLetter]) -> SourceError:
        lost = [letter for letter in dead_letters if letter.stage == "read"]
        unread = f"; {len(lost)} samples cannot be read, first {lost[0].key!r}: {lost[0].reason}" if lost else ""
        return SourceError(
            f"unit {task.unit.name!r} changed since it was indexed (its content no longer has digest {task.part.unit_digest[:16]}"
            f"{unread}); no label was stored for it. Run decant label again once the source is at rest"
        )

    def _batches(self, task: LabelTask) -> Iterator[list[RenderedSample]]:
        renderer = SampleRenderer(
            view=self.request.view,
            first_view=task.part.first_view,
            num_views=task.part.num_views,
            max_pixels=self.config.max_image_pixels,
        )
        rendered = map_ahead(
            renderer, self.source.read(task.unit), threads=self.config.decode_threads, ahead=2 * self.config.batch_size
        )
        while batch := list(islice(rendered, self.config.batch_size)):
            yield batch

    def _label_view(
        self, batch: list[RenderedSample], *, index: int, rows: _ViewRows, task: LabelTask, dead_letters: list[DeadLetter]
    ) -> float:
        alive = np.array([item.views is not None for item in batch])
        first = batch[0].sample.position
        span = slice(first, first + len(batch))
        if not alive.any():
            return 0.0
        # A dead sample keeps its place as a black picture: what its neighbours get does not depend on it.
        pixels = np.zeros((self.config.batch_size, *self.request.view.size, 3), dtype=np.uint8)
        for place, item in enumerate(batch):
            if item.views is not None:
                pixels[place] = item.views[index]
        started = time.perf_counter()
        extracted, failed = self._run_teacher(pixels, alive=alive, unit_name=task.unit.name)
        elapsed = time.perf_counter() - started
        for index_dead in np.flatnonzero(alive & ~extracted.finite).tolist():
            sample = batch[index_dead].sample
            reason = failed.get(index_dead, "the teacher's logits hold NaN or infinity")
            view = task.part.first_view + index
            dead_letters.append(DeadLetter(key=sample.key, position=sample.position, view=view, stage="teacher", reason=reason))
        rows.rows.class_ids[span] = extracted.rows.class_ids
        rows.rows.log_probs[span] = extracted.rows.log_probs
        rows.rows.log_rest[span] = extracted.rows.log_rest
        rows.present[span] = alive & extracted.finite
        rows.digests[span] = [item.digests[index] for item in batch]
        self._probability_sums += extracted.probability_sums
        return elapsed

    def _run_teacher(
        self, pixels: npt.NDArray[np.uint8], *, alive: npt.NDArray[np.bool_], unit_name: str
    ) -> tuple[ExtractedBatch, dict[int, str]]:
        """Run a batch; if the teacher raises, run its samples one by one, so that a bad one costs one row."""
        spec = self.request.target
        try:
            return extract(self.teacher.logits(pixels), spec=spec, alive=alive), {}
        except TeacherError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
            whole_batch_error = error
        failed: dict[int, str] = {}
        logits = torch.full((len(alive), spec.num_classes), torch.nan)
        for place in np.flatnonzero(alive):
            alone = np.zeros_like(pixels)
            alone[place] = pixels[place]
            try:
                logits[place] = self.teacher.logits(alone)[place].cpu()
            except TeacherError as error:
                failed[int(place)] = str(error.__cause__ or error)
        if len(failed) == alive.sum():
            # Bad samples can fill a batch, above all a short last one. A teacher that fails on black too is at fault itself.
            try:
                self.teacher.logits(np.zeros_like(pixels))
            except TeacherError as error:
                raise TeacherError(
                    f"the teacher fails on every sample of a batch of unit {unit_name!r}, and on black ones: {whole_batch_error}"
                ) from error
        return extract(logits, spec=spec, alive=alive), failed

    def _write_view(
        self, writer: PartWriter, *, view: int, rows: _ViewRows, labels: npt.NDArray[np.int64]
    ) -> Iterator[PartStatistics]:
        size = block_rows(self.request.target, num_samples=len(rows.present))
        for first in range(0, len(rows.present), size):
            span = slice(first, first + size)
            present = rows.present[span]
            chosen = RankedLabels(
                class_ids=rows.rows.class_ids[span][present],
                log_probs=rows.rows.log_probs[span][present],
                log_rest=rows.rows.log_rest[span][present],
            )
            data = writer.add_rows(chosen, view=view, first_sample=first, present=present, view_digests=rows.digests[span])
            stored = decode_label_block(data, origin=writer.part.name).soft_labels
            yield measure(chosen, stored, labels=labels[span][present], request=self.request)


def measure(rows: RankedLabels, stored: SoftLabels, *, labels: npt.NDArray[np.int64], request: RequestSpec) -> PartStatistics:
    """Return what storing did to some rows: codec KL, mass kept, agreement with hard labels."""
    if not len(rows):
        return PartStatistics()
    kl = codec_kl(rows, stored)
    kept = (stored.probs > 0).sum(axis=1)
    labelled = labels != NO_LABEL
    capped = request.target.k is None and isinstance(request.target.codec, CompactCodec)
    return PartStatistics(
        num_rows=len(rows),
        codec_kl_sum=float(kl.sum()),
        codec_kl_max=float(kl.max()),
        mass_kept_sum=float((1 - stored.rest.astype(np.float64)).sum()),
        entries_sum=int(kept.sum()),
        num_empty_rows=int((kept == 0).sum()),
        num_full_rows=int((kept == request.target.max_entries).sum()) if capped else 0,
        num_labelled_rows=int(labelled.sum()),
        num_agreeing_rows=int((rows.class_ids[:, 0] == labels)[labelled].sum()),
    )


def provenance(teacher: Teacher) -> dict[str, str]:
    """Return what made a part, beside its identity: library versions and device. No time: equal rows give equal records."""
    found = {"python": platform.python_version(), "device": str(teacher.device)}
    for package in _PROVENANCE_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
