"""Label one source unit of pictures with vectors: hidden states, attention, relations, embeddings."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from pipelines.label_task import LabelTask
from pipelines.label_unit import LabelledUnit, provenance
from pipelines.measuring import measure_values
from pipelines.rendering import RenderedSample
from pipelines.shared_pass import SharedPass
from pipelines.teachers.base import Teacher
from pipelines.teachers.outputs import Wanted
from pipelines.unit_reading import Reading, rendered_batches
from pipelines.values import concatenate_values, empty_values, take_values
from pipelines.vectors import extract_picture_vectors, num_tokens_of, wanted_of
from storage.alignment import rows_per_sample
from storage.block_bounds import block_samples
from storage.block_limits import why_vectors_too_large
from storage.codecs.values import UnstoredValues
from storage.config import GenerationConfig
from storage.errors import ConfigError, TeacherError
from storage.failure_trace import short_traceback, without_addresses
from storage.features import FeatureRows, concatenate_features
from storage.hashing import key_hash
from storage.parts import DeadLetter, PartStatistics, PartWriter
from storage.samples import SampleTable
from storage.sources.base import Source
from storage.specs import FeaturesSpec, RequestSpec, SoftLabelsSpec
from storage.specs.features import rows_of_samples
from storage.target_blocks import decode_target_block, encode_target_block
from storage.text.token_rows import offsets_of, spans


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A block that is done."""

    data: bytes
    first_sample: int
    num_samples: int
    num_rows: int


@dataclass(kw_only=True)
class _View:
    """Rows of one view that are in no block yet.

    Attributes:
        first_sample: position of the first sample that is in no block.
        values: of the samples from there on, sample by sample.
        counts: rows of each of them; 0 of samples that are not present.
        digests: of rendered views, 0 where there is none.
    """

    first_sample: int = 0
    values: list[UnstoredValues]
    counts: list[int] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    blocks: list[_Block] = field(default_factory=list)


@dataclass(kw_only=True)
class VectorsBeingMade:
    """Vectors of a unit as they grow, batch by batch.

    Attributes:
        keys: of the samples so far.
    """

    task: LabelTask
    views: list[_View]
    keys: list[str] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    statistics: PartStatistics = field(default_factory=PartStatistics)
    teacher_seconds: float = 0.0


@dataclass(kw_only=True)
class FeatureUnitLabeller:
    """Labels units of pictures with vectors of one teacher. Bytes depend on the unit and the specs, never on who runs it or when.

    Blocks are encoded as soon as their pictures are through: a unit's vectors would not fit in memory.
    """

    teacher: Teacher | SharedPass
    source: Source
    request: RequestSpec
    config: GenerationConfig
    _num_tokens: int | None = None

    @property
    def _target(self) -> FeaturesSpec:
        assert not isinstance(self.request.target, SoftLabelsSpec)
        return self.request.target

    def num_tokens(self) -> int:
        """Return the tokens of every picture, as the rows of this target count them; a grey one shows it.

        Raises:
            TeacherError: the teacher fails on views of this size.
            ConfigError: vectors of more tokens, or relations of more pairs, than a block holds.
        """
        if self._num_tokens is None:
            wanted = wanted_of([self._target])
            grey = np.full((1, *self.request.rendered_view().size, 3), 128, dtype=np.uint8)
            raw = self.teacher.vectors(grey, wanted=wanted).raw
            found = num_tokens_of(raw)
            per_token = rows_of_samples(self._target, num_tokens=2) > 1
            num_tokens = found if per_token else 1
            why = why_vectors_too_large(self._target, num_tokens=num_tokens)
            if why is not None:
                raise ConfigError(f"target.kind: {self._target.kind} of pictures of {found:,} tokens: {why}")
            self._num_tokens = num_tokens
        return self._num_tokens

    def label(self, task: LabelTask) -> LabelledUnit:
        """Return the part of a work unit.

        Raises:
            SourceError: the unit cannot be read, or no longer holds what was indexed.
            TeacherError: the teacher fails on every sample of a batch, or runs out of memory.
        """
        started = time.perf_counter()
        made, reading = self.begin(task), Reading.of(task)
        for batch in rendered_batches(
            self.source, task, reading=reading, request=self.request, config=self.config, block_rows=(self.block_rows(task),)
        ):
            made.dead_letters += [item.dead_letter for item in batch if item.dead_letter is not None]
            for index in range(task.part.num_views):
                self.add(made, batch, index=index)
        return self.finish(made, table=reading.finish(task), started=started)

    def block_rows(self, task: LabelTask) -> int:
        """Return the samples of a block."""
        return block_samples(num_samples=task.num_samples, num_tokens=self.num_tokens())

    def begin(self, task: LabelTask) -> VectorsBeingMade:
        """Return room for the rows of a unit."""
        views = [_View(values=[empty_values(self._target)]) for _ in range(task.part.num_views)]
        return VectorsBeingMade(task=task, views=views)

    def add(self, made: VectorsBeingMade, batch: list[RenderedSample], *, index: int) -> None:
        """Run the teacher on one view of a batch, and encode the blocks that are through.

        Args:
            index: of the view, among those of the task.
        """
        if index == 0:
            made.keys += [item.sample.key for item in batch]
        task, view = made.task, made.views[index]
        view_index = task.part.first_view + index
        began = time.perf_counter()
        self._add(batch, view=view, index=index, view_index=view_index, dead_letters=made.dead_letters)
        made.teacher_seconds += time.perf_counter() - began
        last = batch[-1].sample.position + 1 == task.num_samples
        made.statistics = self._encode(
            view, view_index=view_index, keys=made.keys, size=self.block_rows(task), last=last, statistics=made.statistics
        )

    def finish(self, made: VectorsBeingMade, *, table: SampleTable, started: float) -> LabelledUnit:
        """Return the part of a unit whose batches are all through."""
        task = made.task
        writer = PartWriter(part=task.part, target=self._target, samples=table)
        for index, view in enumerate(made.views):
            for block in view.blocks:
                writer.add_block(
                    block.data,
                    view=task.part.first_view + index,
                    first_sample=block.first_sample,
                    num_samples=block.num_samples,
                    num_rows=block.num_rows,
                )
        data, record = writer.finish(
            unit_name=task.unit.name,
            class_means=None,
            dead_letters=tuple(made.dead_letters),
            statistics=made.statistics,
            provenance=provenance(self.teacher),
        )
        return LabelledUnit(data=data, record=record, seconds=time.perf_counter() - started, teacher_seconds=made.teacher_seconds)

    def _add(
        self, batch: list[RenderedSample], *, view: _View, index: int, view_index: int, dead_letters: list[DeadLetter]
    ) -> None:
        """Run the teacher on one view of a batch and append its rows."""
        # A dead sample keeps its place as a black picture: what its neighbours get does not depend on it.
        pixels = np.zeros((self.config.batch_size, *self.request.rendered_view().size, 3), dtype=np.uint8)
        for place, item in enumerate(batch):
            if item.views is not None:
                pixels[place] = item.views[index]
        alive = np.array([item.views is not None for item in batch])
        each = int(rows_per_sample(self._target, lengths=np.array([self.num_tokens()]), mask_counts=None)[0])
        counts = np.zeros(len(batch), dtype=np.int64)
        if alive.any():
            values, storable, failed = self._run(pixels, alive=alive, each=each)
            whole = alive & storable
            for place in np.flatnonzero(alive & ~storable).tolist():
                sample, error = batch[place].sample, failed.get(place)
                reason = f"the teacher's {self._target.kind} hold NaN or infinity or more than float16 holds"
                dead_letters.append(
                    DeadLetter(
                        key=sample.key,
                        position=sample.position,
                        view=view_index,
                        stage="teacher",
                        reason=reason if error is None else without_addresses(str(error)),
                        traceback="" if error is None else short_traceback(error),
                    )
                )
            chosen = np.flatnonzero(whole)
            counts[chosen] = each
            view.values.append(take_values(values, spans(each * np.arange(len(batch) + 1), chosen)))
        view.counts += counts.tolist()
        view.present += (counts > 0).tolist()
        view.digests += [int(item.digests[index]) for item in batch]

    def _run(
        self, pixels: npt.NDArray[np.uint8], *, alive: npt.NDArray[np.bool_], each: int
    ) -> tuple[FeatureRows, npt.NDArray[np.bool_], dict[int, BaseException]]:
        """Run a batch; if the teacher raises, run its samples one by one, so that a bad one costs no other.

        Returns:
            rows of all samples of the batch, bool [samples] whether each can be stored, and why some could not be computed.
        """
        wanted = wanted_of([self._target])
        try:
            rows, storable = self._extract(pixels, num_pictures=len(alive), wanted=wanted)
            return rows, storable, {}
        except TeacherError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
            whole_batch_error = error
        failed: dict[int, BaseException] = {}
        found: list[FeatureRows] = []
        whole = np.zeros(len(alive), dtype=np.bool_)
        blank = {name: np.zeros((each, width), dtype=np.float32) for name, width in self._target.tensors.items()}
        for place in range(len(alive)):
            alone = np.zeros_like(pixels)
            alone[0] = pixels[place]
            one = FeatureRows(tensors=blank)
            if alive[place]:
                try:
                    one, storable = self._extract(alone, num_pictures=1, wanted=wanted)
                    whole[place] = storable[0]
                except TeacherError as error:
                    failed[place] = error.__cause__ or error
            found.append(one)
        if len(failed) == alive.sum():
            try:
                self.teacher.vectors(np.zeros_like(pixels), wanted=wanted)
            except TeacherError as error:
                raise TeacherError(
                    f"the teacher fails on every sample of a batch, and on black ones: {whole_batch_error}"
                ) from error
        return concatenate_features(found), whole, failed

    def _extract(
        self, pixels: npt.NDArray[np.uint8], *, num_pictures: int, wanted: Wanted
    ) -> tuple[FeatureRows, npt.NDArray[np.bool_]]:
        outputs = self.teacher.vectors(pixels, wanted=wanted)
        return extract_picture_vectors(outputs, target=self._target, num_pictures=num_pictures, device=self.teacher.device)

    def _encode(
        self, view: _View, *, view_index: int, keys: list[str], size: int, last: bool, statistics: PartStatistics
    ) -> PartStatistics:
        """Encode the blocks whose samples are all through, and return what was measured until then."""
        while len(view.counts) >= size or (last and view.counts):
            num = min(size, len(view.counts))
            values = concatenate_values(view.values)
            offsets = offsets_of(np.array(view.counts, dtype=np.int64))
            rows = take_values(values, np.arange(offsets[num]))
            present = np.array(view.present[:num])
            data = encode_target_block(
                rows,
                target=self._target,
                view=view_index,
                first_sample=view.first_sample,
                present=present,
                key_hash=key_hash(keys[view.first_sample : view.first_sample + num]),
                tokens_per_picture=self.num_tokens(),
                view_digests=np.array(view.digests[:num], dtype=np.uint64),
            )
            num_rows = int(present.sum())
            view.blocks.append(_Block(data=data, first_sample=view.first_sample, num_samples=num, num_rows=num_rows))
            stored = decode_target_block(data, origin="a block just encoded").values
            statistics = statistics.plus(
                measure_values(rows, stored, target=self._target, num_samples=num_rows, labels=np.zeros(0, dtype=np.int64))
            )
            view.values = [take_values(values, np.arange(offsets[num], len(values)))]
            view.counts, view.present, view.digests = view.counts[num:], view.present[num:], view.digests[num:]
            view.first_sample += num
        return statistics
