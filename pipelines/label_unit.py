"""Label one source unit: read, render, run the teacher in fixed batches, encode, and hand back a part."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt
import torch

from pipelines.extraction import DrawnBatch, ExtractedBatch, extract
from pipelines.label_task import LabelTask
from pipelines.rendering import RenderedSample
from pipelines.shared_pass import SharedPass
from pipelines.teachers.base import Teacher
from pipelines.teachers.text_base import TextTeacher
from pipelines.unit_reading import Reading, rendered_batches
from pipelines.values import concatenate_values, empty_values, take_values
from storage.codecs import UnstoredLabels
from storage.codecs.values import UnstoredValues
from storage.config import GenerationConfig
from storage.errors import TeacherError
from storage.failure_trace import short_traceback, without_addresses
from storage.features import FeatureRows
from storage.label_blocks import block_rows, decode_label_block
from storage.measuring import measure
from storage.parts import DeadLetter, PartRecord, PartStatistics, PartWriter
from storage.random import label_uniforms
from storage.samples import SampleTable
from storage.sources.base import Source
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
class LabelsBeingMade:
    """Soft labels of a unit as they grow, batch by batch.

    Attributes:
        wanted: bool [views of the part, samples].
        views: rows of each view of the task.
        sums: float64 [classes], of all class probabilities over the rows that are present.
    """

    task: LabelTask
    wanted: npt.NDArray[np.bool_]
    views: list[ViewRows]
    sums: npt.NDArray[np.float64]
    dead_letters: list[DeadLetter] = field(default_factory=list)
    teacher_seconds: float = 0.0


@dataclass(kw_only=True)
class UnitLabeller:
    """Labels units with one teacher. Bytes depend on the unit and the specs, never on which worker runs it or when."""

    teacher: Teacher | SharedPass
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
        made = self._make(task, wanted=np.ones((task.part.num_views, task.num_samples), dtype=np.bool_))
        return self.finish(made[0], table=made[1], started=started)

    def block_rows(self, task: LabelTask) -> int:
        """Return the samples of a block."""
        return block_rows(self.request.soft_labels, num_samples=task.num_samples)

    def begin(self, task: LabelTask, *, wanted: npt.NDArray[np.bool_] | None = None) -> LabelsBeingMade:
        """Return room for the rows of a unit.

        Args:
            wanted: bool [views of the part, samples]; None: all.
        """
        spec, num_views = self.request.soft_labels, task.part.num_views
        return LabelsBeingMade(
            task=task,
            wanted=np.ones((num_views, task.num_samples), dtype=np.bool_) if wanted is None else wanted,
            views=[ViewRows.empty(task.num_samples, target=spec) for _ in range(num_views)],
            sums=np.zeros(spec.num_classes),
        )

    def add(self, made: LabelsBeingMade, batch: list[RenderedSample], *, index: int) -> None:
        """Run the teacher on one view of a batch.

        Args:
            index: of the view, among those of the task.
        """
        made.teacher_seconds += self._label_view(
            batch,
            index=index,
            wanted=made.wanted[index],
            rows=made.views[index],
            task=made.task,
            dead_letters=made.dead_letters,
            sums=made.sums,
        )

    def finish(self, made: LabelsBeingMade, *, table: SampleTable, started: float) -> LabelledUnit:
        """Return the part of a unit whose batches are all through."""
        task = made.task
        writer = PartWriter(part=task.part, target=self.request.soft_labels, samples=table)
        statistics = PartStatistics()
        for index, rows in enumerate(made.views):
            for measured in self._write_view(writer, view=task.part.first_view + index, rows=rows, labels=table.labels):
                statistics = statistics.plus(measured)
        data, record = writer.finish(
            unit_name=task.unit.name,
            class_means=made.sums / max(statistics.num_rows, 1),
            dead_letters=tuple(made.dead_letters),
            statistics=statistics,
            provenance=provenance(self.teacher),
        )
        return LabelledUnit(data=data, record=record, seconds=time.perf_counter() - started, teacher_seconds=made.teacher_seconds)

    def compute(self, task: LabelTask, *, wanted: npt.NDArray[np.bool_]) -> ComputedUnit:
        """Read a whole unit and run the teacher on some of its rows.

        Args:
            wanted: bool [views of the part, samples].

        Raises:
            SourceError: the unit cannot be read, or no longer holds what was indexed.
            TeacherError: the teacher fails on every sample of a batch and on black pictures, or runs out of memory.
        """
        made, table = self._make(task, wanted=wanted)
        return ComputedUnit(
            table=table,
            views=made.views,
            dead_letters=made.dead_letters,
            probability_sums=made.sums,
            teacher_seconds=made.teacher_seconds,
        )

    def _make(self, task: LabelTask, *, wanted: npt.NDArray[np.bool_]) -> tuple[LabelsBeingMade, SampleTable]:
        made = self.begin(task, wanted=wanted)
        reading = Reading.of(task, wanted=np.asarray(wanted.any(axis=0), dtype=np.bool_))
        for batch in rendered_batches(
            self.source, task, reading=reading, request=self.request, config=self.config, block_rows=(self.block_rows(task),)
        ):
            made.dead_letters += [item.dead_letter for item in batch if item.dead_letter is not None]
            for index in range(task.part.num_views):
                self.add(made, batch, index=index)
        return made, reading.finish(task)

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


def provenance(teacher: Teacher | TextTeacher | SharedPass) -> dict[str, str]:
    """Return what made a part, beside its identity: library versions and device. No time: equal rows give equal records."""
    # Without its number: which of several equal GPUs a worker had is chance.
    return {"device": teacher.device.type, **library_versions()}


def library_versions() -> dict[str, str]:
    """Return the versions of what labels are made with, of what is installed here."""
    found = {"python": platform.python_version()}
    for package in _PROVENANCE_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
