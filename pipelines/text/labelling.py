"""Label one unit of texts: documents to sequences, masks, teacher batches, blocks; and hand back a part for each target."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from pipelines.label_task import LabelTask
from pipelines.label_unit import LabelledUnit, provenance
from pipelines.measuring import measure_values, true_classes
from pipelines.teachers.outputs import Wanted
from pipelines.teachers.text_base import TextOutputs, TextTeacher, ordinary_ids
from pipelines.text.batches import TextBatch, batches, windows
from pipelines.text.features import extract_features
from pipelines.text.soft_labels import ExtractedRows, extract_soft_labels
from pipelines.text.window_values import WindowValues
from pipelines.unit_reading import unit_changed
from pipelines.values import concatenate_values, empty_values
from pipelines.vectors import wanted_of
from storage.block_bounds import block_bounds
from storage.config import GenerationConfig
from storage.errors import SourceError, TeacherError
from storage.failure_trace import short_traceback, without_addresses
from storage.hashing import key_hash
from storage.parts import DeadLetter, PartStatistics, PartWriter
from storage.samples import MAX_UNIT_SAMPLES, SampleTable
from storage.sources import UnitDigest
from storage.sources.base import Sample, Source
from storage.specs import (
    MaskedTokensView,
    RequestSpec,
    SoftLabelsSpec,
    TargetSpec,
)
from storage.target_blocks import decode_target_block, encode_target_block
from storage.text.masking import mask_tokens
from storage.text.sequences import Sequences, sequences_of
from storage.text.token_rows import TokenRows, offsets_of


@dataclass(kw_only=True)
class _Reading:
    """The documents of a unit as they pass by."""

    num_samples: int
    digest: UnitDigest = field(default_factory=UnitDigest)
    num_read: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def watch(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """Yield the documents; ends early where there are more than there should be."""
        for sample in samples:
            self.num_read += 1
            if self.num_read > self.num_samples:
                return
            self.digest.add(sample)
            if sample.error is not None:
                self.unreadable.append((sample.key, sample.error))
            yield sample


@dataclass(kw_only=True)
class _Part:
    """A part of one target as it grows."""

    task: LabelTask
    target: TargetSpec
    writer: PartWriter
    dead_letters: list[DeadLetter]
    statistics: PartStatistics = field(default_factory=PartStatistics)
    probability_sums: npt.NDArray[np.float64] | None = None

    def add_sums(self, sums: npt.NDArray[np.float64] | None) -> None:
        if sums is not None:
            self.probability_sums = sums if self.probability_sums is None else self.probability_sums + sums


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    """Consecutive blocks of one view of a unit.

    Attributes:
        samples: the sequences covered, absent ones too.
        blocks: int64 [blocks + 1], where blocks begin and end among them.
        present: bool [samples].
        tokens: the sequences that are present.
    """

    view: int
    samples: range
    blocks: npt.NDArray[np.int64]
    present: npt.NDArray[np.bool_]
    tokens: TokenRows
    keys: tuple[str, ...]


@dataclass(kw_only=True)
class TextUnitLabeller:
    """Labels units of texts with one teacher, for one or several targets in one pass.

    Bytes depend on the unit and the specs, never on which worker runs it or when.

    Attributes:
        requests: of the teacher's, over one view, by fingerprint.
    """

    teacher: TextTeacher
    source: Source
    requests: dict[str, RequestSpec]
    config: GenerationConfig

    def label(self, tasks: Sequence[LabelTask]) -> list[LabelledUnit]:
        """Return the parts of a work unit.

        Args:
            tasks: of one unit and range of views, each for another request.

        Raises:
            SourceError: the unit cannot be read, or no longer holds what was indexed.
            TeacherError: the teacher fails on every sequence of a batch and on one of ordinary tokens, or runs out of memory.
        """
        started = time.perf_counter()
        first = tasks[0]
        sequences = self._read(first)
        table = SampleTable(keys=sequences.keys, labels=sequences.labels)
        parts = []
        for task in tasks:
            target = self.requests[task.part.request].target
            writer = PartWriter(part=task.part, target=target, samples=table)
            parts.append(_Part(task=task, target=target, writer=writer, dead_letters=list(sequences.dead_letters)))
        teacher_seconds = 0.0
        bounds = block_bounds(sequences.num_tokens)
        for view in range(first.part.first_view, first.part.first_view + first.part.num_views):
            for window in self._windows(sequences, view=view, bounds=bounds):
                teacher_seconds += self._label_window(window, sequences=sequences, parts=parts)
        made_by = provenance(self.teacher)
        labelled = []
        for part in parts:
            means = None
            if isinstance(part.target, SoftLabelsSpec):
                sums = np.zeros(part.target.num_classes) if part.probability_sums is None else part.probability_sums
                means = sums / max(part.statistics.num_value_rows, 1)
            data, record = part.writer.finish(
                unit_name=part.task.unit.name,
                class_means=means,
                dead_letters=tuple(part.dead_letters),
                statistics=part.statistics,
                provenance=made_by,
            )
            labelled.append(
                LabelledUnit(
                    data=data, record=record, seconds=time.perf_counter() - started, teacher_seconds=teacher_seconds / len(parts)
                )
            )
        return labelled

    def _read(self, task: LabelTask) -> Sequences:
        reading = _Reading(num_samples=task.num_samples)
        view = self.requests[task.part.request].text_view()
        sequences = sequences_of(reading.watch(self.source.read(task.unit)), tokenizer=self.teacher.tokenizer, view=view)
        if reading.num_read != task.num_samples or reading.digest.hexdigest() != task.part.unit_digest:
            raise unit_changed(task, unreadable=reading.unreadable)
        if len(sequences.keys) > MAX_UNIT_SAMPLES:
            raise SourceError(
                f"the {task.num_samples:,} documents of unit {task.unit.name!r} become {len(sequences.keys):,} sequences, a part "
                f"holds at most {MAX_UNIT_SAMPLES:,}; raise views.length, or make units smaller (source.unit_size, smaller files)"
            )
        return sequences

    def _windows(self, sequences: Sequences, *, view: int, bounds: npt.NDArray[np.int64]) -> Iterator[_Window]:
        spec = next(iter(self.requests.values())).text_view()
        keys, starts = sequences.present_keys, sequences.word_starts
        before = offsets_of(sequences.present.astype(np.int64))
        for blocks in windows(bounds, batch_size=self.config.batch_size):
            samples = range(int(blocks[0]), int(blocks[-1]))
            first, last = int(before[samples.start]), int(before[samples.stop])
            tokens = sequences.tokens.take(np.arange(first, last))
            if isinstance(spec, MaskedTokensView):
                # Masks of a sequence depend on its key alone; drawn for a unit at once, they were 30 times its tokens.
                own = slice(sequences.tokens.offsets[first], sequences.tokens.offsets[last])
                masks = mask_tokens(
                    tokens,
                    keys=keys[first:last],
                    maskable=sequences.maskable[own],
                    view=spec,
                    view_index=view,
                    word_starts=None if starts is None else starts[own],
                )
                tokens = replace(tokens, masks=masks)
            yield _Window(
                view=view,
                samples=samples,
                blocks=blocks - samples.start,
                present=sequences.present[samples.start : samples.stop],
                tokens=tokens,
                keys=keys[first:last],
            )

    def _label_window(self, window: _Window, *, sequences: Sequences, parts: list[_Part]) -> float:
        """Run the teacher on a window and add its blocks to every part; return seconds in the teacher."""
        started = time.perf_counter()
        whole = [np.ones(len(window.tokens), dtype=np.bool_) for _ in parts]
        found: list[list[ExtractedRows]] = [[] for _ in parts]
        order: list[npt.NDArray[np.int64]] = []
        wanted = wanted_of([part.target for part in parts])
        for batch in batches(window.tokens, keys=window.keys, batch_size=self.config.batch_size):
            order.append(batch.sequences)
            extracted, failed = self._run(batch, parts=parts, wanted=wanted, view=window.view)
            for index, rows in enumerate(extracted):
                found[index].append(rows)
                parts[index].add_sums(rows.probability_sums)
                whole[index][batch.sequences[~rows.whole]] = False
                parts[index].dead_letters += [
                    self._letter(
                        window, sequence=int(batch.sequences[place]), key=batch.keys[place], part=parts[index], error=error
                    )
                    for place, error in ((int(place), failed.get(int(place))) for place in np.flatnonzero(~rows.whole))
                ]
        seconds = time.perf_counter() - started
        for index, part in enumerate(parts):
            values = WindowValues.of(found[index], order=order, target=part.target)
            self._write(window, part, sequences=sequences, values=values, whole=whole[index])
        return seconds

    def _letter(self, window: _Window, *, sequence: int, key: str, part: _Part, error: BaseException | None) -> DeadLetter:
        position = window.samples.start + int(np.flatnonzero(window.present)[sequence])
        limit = " or more than float16 holds" if not isinstance(part.target, SoftLabelsSpec) else ""
        what = "logits" if isinstance(part.target, SoftLabelsSpec) else part.target.kind
        return DeadLetter(
            key=key,
            position=position,
            view=window.view,
            stage="teacher",
            reason=(f"the teacher's {what} hold NaN or infinity{limit}" if error is None else without_addresses(str(error))),
            traceback="" if error is None else short_traceback(error),
        )

    def _run(
        self, batch: TextBatch, *, parts: list[_Part], wanted: Wanted, view: int
    ) -> tuple[list[ExtractedRows], dict[int, BaseException]]:
        """Run a batch; if the teacher raises, run its sequences one by one, so that a bad one costs no other."""
        targets = [part.target for part in parts]
        try:
            return self._extract(batch, targets=targets, wanted=wanted, view=view), {}
        except TeacherError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
            whole_batch_error = error
        failed: dict[int, BaseException] = {}
        alone: list[list[ExtractedRows] | None] = []
        for place in range(len(batch)):
            try:
                alone.append(self._extract(_alone(batch, place=place), targets=targets, wanted=wanted, view=view))
            except TeacherError as error:
                failed[place] = error.__cause__ or error
                alone.append(None)
        if len(failed) == len(batch):
            # Bad sequences can fill a batch, above all a short last one. A teacher that fails on any other is at fault itself.
            try:
                self._extract(self._ordinary(batch), targets=targets, wanted=wanted, view=view)
            except TeacherError as error:
                raise TeacherError(
                    f"the teacher fails on every sequence of a batch of unit {parts[0].task.unit.name!r}, and on one of ordinary "
                    f"tokens that is as long: {whole_batch_error}"
                ) from error
        joined = [
            _joined([None if rows is None else rows[index] for rows in alone], target=target)
            for index, target in enumerate(targets)
        ]
        return joined, failed

    def _extract(self, batch: TextBatch, *, targets: Sequence[TargetSpec], wanted: Wanted, view: int) -> list[ExtractedRows]:
        outputs = self.teacher.run(batch.token_ids, lengths=batch.lengths, wanted=wanted)
        return [extract_rows(outputs, batch, target=target, view=view) for target in targets]

    def _ordinary(self, batch: TextBatch) -> TextBatch:
        """Return a batch of its longest sequence, of which the teacher sees ordinary tokens only."""
        longest = _alone(batch, place=int(np.argmax(batch.lengths)))
        ids = ordinary_ids(self.teacher.tokenizer.facts, num_tokens=longest.token_ids.shape[1])
        return replace(longest, token_ids=ids[None])

    def _write(
        self,
        window: _Window,
        part: _Part,
        *,
        sequences: Sequences,
        values: WindowValues,
        whole: npt.NDArray[np.bool_],
    ) -> None:
        """Add a window's blocks to a part."""
        vocabulary_size = self.requests[part.task.part.request].text_view().vocabulary_size
        of_sequence = np.full(len(window.samples), -1, dtype=np.int64)
        of_sequence[window.present] = np.arange(len(window.tokens))
        for first, last in pairwise(window.blocks.tolist()):
            covered = of_sequence[first:last]
            present = covered >= 0
            present[present] = whole[covered[present]]
            chosen = covered[present]
            rows = values.of_sequences(chosen)
            tokens = window.tokens.take(chosen)
            start = window.samples.start + first
            keys = sequences.keys[start : start + len(covered)]
            data = encode_target_block(
                rows,
                target=part.target,
                view=window.view,
                first_sample=start,
                present=present,
                key_hash=key_hash(keys),
                tokens=tokens,
                vocabulary_size=vocabulary_size,
            )
            part.writer.add_block(data, view=window.view, first_sample=start, num_samples=len(covered), num_rows=len(chosen))
            stored = decode_target_block(data, origin=part.task.part.name).values
            labels = sequences.labels[start : start + len(covered)][present]
            part.statistics = part.statistics.plus(
                measure_values(
                    rows,
                    stored,
                    target=part.target,
                    num_samples=len(chosen),
                    labels=true_classes(tokens, target=part.target, labels=labels),
                )
            )


def extract_rows(outputs: TextOutputs, batch: TextBatch, *, target: TargetSpec, view: int) -> ExtractedRows:
    """Return the rows of a batch's sequences."""
    if isinstance(target, SoftLabelsSpec):
        return extract_soft_labels(outputs, batch, target=target, view=view)
    return extract_features(outputs, batch, target=target)


def _alone(batch: TextBatch, *, place: int) -> TextBatch:
    """Return a batch of one of its sequences, as long as the whole."""
    return TextBatch(
        sequences=batch.sequences[place : place + 1],
        token_ids=batch.token_ids[place : place + 1],
        tokens=batch.tokens.take(np.array([place])),
        keys=batch.keys[place : place + 1],
    )


def _joined(found: Sequence[ExtractedRows | None], *, target: TargetSpec) -> ExtractedRows:
    """Put sequences that ran one by one together; one that failed has no rows and is not whole."""
    good = [rows for rows in found if rows is not None]
    sums = [rows.probability_sums for rows in good if rows.probability_sums is not None]
    return ExtractedRows(
        values=concatenate_values([empty_values(target), *(rows.values for rows in good)]),
        counts=np.array([0 if rows is None else int(rows.counts[0]) for rows in found], dtype=np.int64),
        whole=np.array([rows is not None and bool(rows.whole[0]) for rows in found]),
        probability_sums=np.sum(sums, axis=0) if sums else None,
    )
