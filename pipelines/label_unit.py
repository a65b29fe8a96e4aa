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

from pipelines.extraction import DrawnBatch, ExtractedBatch, extract
from pipelines.label_task import LabelTask
from pipelines.rendering import RenderedSample, SampleRenderer, map_ahead
from pipelines.teachers.base import Teacher
from pipelines.teachers.text_base import TextTeacher
from pipelines.values import concatenate_values, empty_values, take_values
from storage.codecs import UnstoredLabels
from storage.codecs.values import UnstoredValues
from storage.config import GenerationConfig
from storage.errors import SourceError, TeacherError
from storage.failure_trace import short_traceback, without_addresses
from storage.features import FeatureRows
from storage.label_blocks import block_rows, decode_label_block
from storage.measuring import measure
from storage.parts import DeadLetter, PartRecord, PartStatistics, PartWriter
from storage.random import label_uniforms
from storage.samples import SampleTable
from storage.sources import UnitDigest
from storage.sources.base import NO_LABEL, Sample, Source
from storage.specs import RequestSpec, SampledCodec, TargetSpec, ThresholdCodec

_PROVENANCE_PACKAGES = ("decant", "torch", "torchvision", "timm", "transformers", "tokenizers", "numpy", "pillow", "apache-beam")


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
class ViewRows:
    """Rows of one view of the whole unit, filled batch by batch.

    Attributes:
        batches: rows as they came.
        places: int64 [samples], where among these each sample's row is; of samples that were not computed they mean nothing.
        present: bool [samples], whether the sample's row was computed; others mean nothing.
        digests: uint64 [samples], digests of rendered views, 0 where there is none.
    """

    batches: list[UnstoredValues]
    places: npt.NDArray[np.int64]
    present: npt.NDArray[np.bool_]
    digests: npt.NDArray[np.uint64]

    @classmethod
    def empty(cls, num_samples: int, *, target: TargetSpec) -> ViewRows:
        """Return room for the rows of a unit."""
        return cls(
            batches=[empty_values(target)],
            places=np.zeros(num_samples, dtype=np.int64),
            present=np.zeros(num_samples, dtype=np.bool_),
            digests=np.zeros(num_samples, dtype=np.uint64),
        )

    def add(self, values: UnstoredValues, *, positions: npt.NDArray[np.int64]) -> None:
        """Append a row for each of some samples."""
        self.places[positions] = sum(len(batch) for batch in self.batches) + np.arange(len(positions))
        self.batches.append(values)

    def take(self, samples: npt.NDArray[np.int64]) -> UnstoredLabels:
        """Return the rows of some samples."""
        if len(self.batches) > 1:
            self.batches = [concatenate_values(self.batches)]
        found = take_values(self.batches[0], self.places[samples])
        assert not isinstance(found, FeatureRows)
        return found


@dataclass(kw_only=True)
class ComputedUnit:
    """What a teacher said of a unit.

    Attributes:
        table: all samples of the unit, computed or not.
        views: rows of each view of the task.
        probability_sums: float64 [classes], sums of all class probabilities over the rows that are present.
    """

    table: SampleTable
    views: list[ViewRows]
    dead_letters: list[DeadLetter]
    probability_sums: npt.NDArray[np.float64]
    teacher_seconds: float


@dataclass(kw_only=True)
class Reading:
    """The samples of a unit as they pass by; each is counted, also one that is not wanted."""

    num_samples: int
    wanted: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    keys: list[str] = field(default_factory=list)
    digest: UnitDigest = field(default_factory=UnitDigest)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    too_many: bool = False

    def watch(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Yield the samples that are wanted; ends early where there are more than there should be."""
        for sample in samples:
            if sample.position >= self.num_samples:
                self.too_many = True
                return
            self.digest.add(sample)
            self.keys.append(sample.key)
            self.labels[sample.position] = sample.label
            if sample.error is not None:
                self.unreadable.append((sample.key, sample.error))
            if self.wanted[sample.position]:
                yield sample


@dataclass(kw_only=True)
class UnitLabeller:
    """Labels units with one teacher. Bytes depend on the unit and the specs, never on which worker runs it or when."""

    teacher: Teacher
    source: Source
    request: RequestSpec
    config: GenerationConfig

    def label(self, task: LabelTask) -> LabelledUnit:
        """Return the part of a work unit.

        Raises:
            SourceError: the unit cannot be read, or no longer holds what was indexed.
            TeacherError: the teacher fails on every sample of a batch and on black pictures, or runs out of memory.
        """
        started = time.perf_counter()
        computed = self.compute(task, wanted=np.ones((task.part.num_views, task.num_samples), dtype=np.bool_))
        writer = PartWriter(part=task.part, target=self.request.soft_labels, samples=computed.table)
        statistics = PartStatistics()
        for index, rows in enumerate(computed.views):
            for measured in self._write_view(writer, view=task.part.first_view + index, rows=rows, labels=computed.table.labels):
                statistics = statistics.plus(measured)
        data, record = writer.finish(
            unit_name=task.unit.name,
            class_means=computed.probability_sums / max(statistics.num_rows, 1),
            dead_letters=tuple(computed.dead_letters),
            statistics=statistics,
            provenance=provenance(self.teacher),
        )
        return LabelledUnit(
            data=data, record=record, seconds=time.perf_counter() - started, teacher_seconds=computed.teacher_seconds
        )

    def compute(self, task: LabelTask, *, wanted: npt.NDArray[np.bool_]) -> ComputedUnit:
        """Read a whole unit and run the teacher on some of its rows.

        Args:
            wanted: bool [views of the part, samples].

        Raises:
            SourceError: the unit cannot be read, or no longer holds what was indexed.
            TeacherError: the teacher fails on every sample of a batch and on black pictures, or runs out of memory.
        """
        spec = self.request.soft_labels
        reading = Reading(
            num_samples=task.num_samples,
            wanted=np.asarray(wanted.any(axis=0), dtype=np.bool_),
            labels=np.full(task.num_samples, NO_LABEL, dtype=np.int64),
        )
        views = [ViewRows.empty(task.num_samples, target=spec) for _ in range(task.part.num_views)]
        dead_letters: list[DeadLetter] = []
        sums = np.zeros(spec.num_classes)
        teacher_seconds = 0.0
        for batch in self._batches(task, reading=reading):
            dead_letters += [item.dead_letter for item in batch if item.dead_letter is not None]
            for index, rows in enumerate(views):
                teacher_seconds += self._label_view(
                    batch, index=index, wanted=wanted[index], rows=rows, task=task, dead_letters=dead_letters, sums=sums
                )
        short = len(reading.keys) != task.num_samples
        if reading.too_many or short or reading.digest.hexdigest() != task.part.unit_digest:
            raise unit_changed(task, unreadable=reading.unreadable)
        return ComputedUnit(
            table=SampleTable(keys=tuple(reading.keys), labels=reading.labels),
            views=views,
            dead_letters=dead_letters,
            probability_sums=sums,
            teacher_seconds=teacher_seconds,
        )

    def _batches(self, task: LabelTask, *, reading: Reading) -> Iterator[list[RenderedSample]]:
        renderer = SampleRenderer(
            view=self.request.rendered_view(),
            first_view=task.part.first_view,
            num_views=task.part.num_views,
            max_pixels=self.config.max_image_pixels,
            block_rows=block_rows(self.request.soft_labels, num_samples=task.num_samples),
        )
        rendered = map_ahead(
            renderer,
            reading.watch(self.source.read(task.unit)),
            threads=self.config.decode_threads,
            ahead=2 * self.config.batch_size,
        )
        while batch := list(islice(rendered, self.config.batch_size)):
            yield batch

    def _label_view(
        self,
        batch: list[RenderedSample],
        *,
        index: int,
        wanted: npt.NDArray[np.bool_],
        rows: ViewRows,
        task: LabelTask,
        dead_letters: list[DeadLetter],
        sums: npt.NDArray[np.float64],
    ) -> float:
        """Run the teacher on one view of a batch, fill in its rows, add to `dead_letters` and `sums`; return seconds."""
        positions = np.array([item.sample.position for item in batch])
        alive = np.array([item.views is not None for item in batch]) & wanted[positions]
        if not alive.any():
            return 0.0
        # A dead sample keeps its place as a black picture: what its neighbours get does not depend on it.
        pixels = np.zeros((self.config.batch_size, *self.request.rendered_view().size, 3), dtype=np.uint8)
        for place, item in enumerate(batch):
            if item.views is not None:
                pixels[place] = item.views[index]
        started = time.perf_counter()
        uniforms = self._uniforms(batch, view=task.part.first_view + index)
        extracted, failed = self._run_teacher(pixels, alive=alive, uniforms=uniforms, unit_name=task.unit.name)
        elapsed = time.perf_counter() - started
        for index_dead in np.flatnonzero(alive & ~extracted.finite).tolist():
            sample = batch[index_dead].sample
            error = failed.get(index_dead)
            dead_letters.append(
                DeadLetter(
                    key=sample.key,
                    position=sample.position,
                    view=task.part.first_view + index,
                    stage="teacher",
                    reason="the teacher's logits hold NaN or infinity" if error is None else without_addresses(str(error)),
                    traceback="" if error is None else short_traceback(error),
                )
            )
        rows.add(extracted.rows, positions=positions)
        rows.present[positions] = alive & extracted.finite
        rows.digests[positions] = [item.digests[index] for item in batch]
        sums += extracted.probability_sums
        return elapsed

    def _uniforms(self, batch: list[RenderedSample], *, view: int) -> npt.NDArray[np.float64] | None:
        """Return what classes of a batch's rows are drawn by; None where the codec draws none."""
        codec = self.request.soft_labels.codec
        if not isinstance(codec, SampledCodec | ThresholdCodec):
            return None
        whole = np.zeros(1, dtype=np.int64)
        return np.concatenate([label_uniforms(codec, key=item.sample.key, view_index=view, positions=whole) for item in batch])

    def _run_teacher(
        self,
        pixels: npt.NDArray[np.uint8],
        *,
        alive: npt.NDArray[np.bool_],
        uniforms: npt.NDArray[np.float64] | None,
        unit_name: str,
    ) -> tuple[ExtractedBatch | DrawnBatch, dict[int, BaseException]]:
        """Run a batch; if the teacher raises, run its samples one by one, so that a bad one costs one row."""
        spec = self.request.soft_labels
        try:
            return extract(self.teacher.logits(pixels), spec=spec, alive=alive, uniforms=uniforms), {}
        except TeacherError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
            whole_batch_error = error
        failed: dict[int, BaseException] = {}
        logits = torch.full((len(alive), spec.num_classes), torch.nan)
        for place in np.flatnonzero(alive):
            alone = np.zeros_like(pixels)
            alone[place] = pixels[place]
            try:
                logits[place] = self.teacher.logits(alone)[place].cpu()
            except TeacherError as error:
                failed[int(place)] = error.__cause__ or error
        if len(failed) == alive.sum():
            # Bad samples can fill a batch, above all a short last one. A teacher that fails on black too is at fault itself.
            try:
                self.teacher.logits(np.zeros_like(pixels))
            except TeacherError as error:
                raise TeacherError(
                    f"the teacher fails on every sample of a batch of unit {unit_name!r}, and on black ones: {whole_batch_error}"
                ) from error
        return extract(logits, spec=spec, alive=alive, uniforms=uniforms), failed

    def _write_view(
        self, writer: PartWriter, *, view: int, rows: ViewRows, labels: npt.NDArray[np.int64]
    ) -> Iterator[PartStatistics]:
        size = block_rows(self.request.soft_labels, num_samples=len(rows.present))
        for first in range(0, len(rows.present), size):
            span = slice(first, first + size)
            present = rows.present[span]
            chosen = rows.take(first + np.flatnonzero(present))
            data = writer.add_rows(chosen, view=view, first_sample=first, present=present, view_digests=rows.digests[span])
            stored = decode_label_block(data, origin=writer.part.name).soft_labels
            yield measure(chosen, stored, labels=labels[span][present], target=self.request.soft_labels)


def unit_changed(task: LabelTask, *, unreadable: list[tuple[str, str]]) -> SourceError:
    """Return the error of a unit that no longer holds what was indexed.

    Args:
        unreadable: key and reason of every sample that could not be read.
    """
    lost = f"; {len(unreadable)} samples cannot be read, first {unreadable[0][0]!r}: {unreadable[0][1]}" if unreadable else ""
    return SourceError(
        f"unit {task.unit.name!r} changed since it was indexed (its content no longer has digest {task.part.unit_digest[:16]}"
        f"{lost}); no label was stored for it. Run decant label again once the source is at rest"
    )


def provenance(teacher: Teacher | TextTeacher) -> dict[str, str]:
    """Return what made a part, beside its identity: library versions and device. No time: equal rows give equal records."""
    return {"device": str(teacher.device), **library_versions()}


def library_versions() -> dict[str, str]:
    """Return the versions of what labels are made with, of what is installed here."""
    found = {"python": platform.python_version()}
    for package in _PROVENANCE_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
