"""Dead letters tried again: only rows that a part lacks are computed, all others are kept bit by bit."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipelines.label_task import LabelTask
from pipelines.label_unit import ComputedUnit, LabelledUnit, UnitLabeller, provenance
from pipelines.labellers import Labeller, label_unit
from pipelines.text.labelling import TextUnitLabeller
from storage import codecs
from storage.cache import Cache
from storage.errors import CorruptError
from storage.hashing import digest
from storage.label_blocks import fill_label_block
from storage.label_set import UsedPart
from storage.measuring import measure
from storage.parts import BlockExtent, DeadLetter, EarlierPart, PartRecord, PartStatistics, PartWriter, decode_class_means
from storage.remedies import LABEL_AGAIN
from storage.sources import IndexedUnit
from storage.specs import PartSpec


def dead_rows(record: PartRecord, *, of_text: bool = False) -> npt.NDArray[np.bool_]:
    """Return bool [views of the part, samples], the rows that are worth another try. A sample of texts is a sequence.

    Not those of samples that could not be read: what is read decides the unit's digest, so that a unit whose sample can be read
    again is another unit. Of texts, whose samples are sequences, not those of documents that hold no text either: that is decided
    by the same bytes.

    Raises:
        CorruptError: the record's letters are of other rows than its blocks cover.
    """
    part = record.part
    views = range(part.first_view, part.first_view + part.num_views)
    covered = sum(block.num_samples for block in record.blocks)
    stray = any(
        letter.position >= record.num_samples or not (letter.view is None or letter.view in views)
        for letter in record.dead_letters
    )
    if part.num_views * record.num_samples > covered or stray:
        raise CorruptError(
            f"the record of part {part.name} is of {part.num_views} views of {record.num_samples} samples, and its blocks cover "
            f"{covered} of these, or a dead letter is of another; remove it and {LABEL_AGAIN}"
        )
    hopeless = ("read", "decode") if of_text else ("read",)
    wanted = np.zeros((part.num_views, record.num_samples), dtype=np.bool_)
    for letter in record.dead_letters:
        if letter.stage not in hopeless:
            rows = slice(None) if letter.view is None else letter.view - part.first_view
            wanted[rows, letter.position] = True
    return wanted


def retry_tasks(
    cache: Cache, *, parts: Iterable[UsedPart], units: Mapping[str, IndexedUnit], of_text: bool = False
) -> list[LabelTask]:
    """Return a task for every committed part that has dead letters which are worth another try.

    One for a part that is used twice, around views that another part has.
    """
    tasks: dict[PartSpec, LabelTask] = {}
    for used in parts:
        record = cache.find_part(used.part)
        if record is None or not record.dead_letters:
            continue
        num_dead_rows = int(dead_rows(record, of_text=of_text).sum())
        if num_dead_rows:
            tasks[used.part] = LabelTask(
                unit=units[used.unit_name].unit,
                part=used.part,
                num_samples=units[used.unit_name].num_samples,
                replaces=record.tar_name,
                num_dead_rows=num_dead_rows,
            )
    return list(tasks.values())


def retry(labeller: UnitLabeller, task: LabelTask, *, data: bytes, record: PartRecord) -> LabelledUnit | None:
    """Return the part of a task with rows for dead letters that have a label now; None where none has.

    Mean class probabilities of the rows that were there come from their float16 form, so that those of the whole are exact to it.

    Args:
        data: the part's tar.
        record: its record.

    Raises:
        CorruptError: the tar is damaged.
        SourceError: the unit no longer holds what was labelled.
        TeacherError: the teacher fails on every sample of a batch and on black pictures, or runs out of memory.
    """
    if digest(data) != record.tar_sha256:
        raise CorruptError(f"{record.tar_name}: its bytes are not those that were committed; run decant repair first")
    started = time.perf_counter()
    wanted = dead_rows(record)
    computed = labeller.compute(task, wanted=wanted)
    if not any(rows.present.any() for rows in computed.views):
        return None
    writer = PartWriter(part=task.part, target=labeller.request.soft_labels, samples=computed.table)
    statistics = record.statistics
    for block in record.blocks:
        statistics = statistics.plus(_copy_block(labeller, writer, block=block, data=data, computed=computed))
    extent = record.class_means
    assert extent is not None
    stored = data[extent.offset : extent.offset + extent.num_bytes]
    means = decode_class_means(stored, num_classes=labeller.request.soft_labels.num_classes, origin=record.tar_name)
    sums = record.statistics.num_rows * means + computed.probability_sums
    earlier = EarlierPart(tar_name=record.tar_name, num_rows=record.statistics.num_rows, provenance=record.provenance)
    filled, new_record = writer.finish(
        unit_name=record.unit_name,
        class_means=np.minimum(sums / max(statistics.num_rows, 1), 1.0),
        dead_letters=_letters_left(record, computed=computed, wanted=wanted),
        statistics=statistics,
        provenance=provenance(labeller.teacher),
        earlier=(*record.earlier, earlier),
    )
    return LabelledUnit(
        data=filled,
        record=new_record,
        seconds=time.perf_counter() - started,
        teacher_seconds=computed.teacher_seconds,
    )


def relabel(labeller: Labeller, task: LabelTask, *, record: PartRecord) -> LabelledUnit | None:
    """Return the part of a unit of texts, or of vectors, computed anew; None where no fewer rows are dead than before.

    Sequences share batches by length, and rows of vectors share scales, so no row of the old part is kept: the earlier tar counts
    none.

    Raises:
        SourceError: the unit no longer holds what was labelled.
        TeacherError: the teacher fails on every sample of a batch and on a harmless one, or runs out of memory.
    """
    (labelled,) = label_unit(labeller, [task])
    # A letter may be of one row, or of all views of its sample.
    of_text = isinstance(labeller, TextUnitLabeller)
    if dead_rows(labelled.record, of_text=of_text).sum() >= dead_rows(record, of_text=of_text).sum():
        return None
    earlier = EarlierPart(tar_name=record.tar_name, num_rows=0, provenance=record.provenance)
    new_record = labelled.record.model_copy(update={"earlier": (*record.earlier, earlier)})
    return replace(labelled, record=new_record)


def _copy_block(
    labeller: UnitLabeller, writer: PartWriter, *, block: BlockExtent, data: bytes, computed: ComputedUnit
) -> PartStatistics:
    """Copy a block, with the rows that were computed; return what was measured of these."""
    old = data[block.offset : block.offset + block.num_bytes]
    rows = computed.views[block.view - writer.part.first_view]
    span = slice(block.first_sample, block.first_sample + block.num_samples)
    offsets = np.flatnonzero(rows.present[span])
    shape = {"view": block.view, "first_sample": block.first_sample, "num_samples": block.num_samples}
    if not len(offsets):
        writer.add_block(old, **shape, num_rows=block.num_rows)
        return PartStatistics()
    chosen = rows.take(offsets + block.first_sample)
    spec = labeller.request.soft_labels
    new = fill_label_block(old, chosen, offsets=offsets, view_digests=rows.digests[span], origin=writer.part.name)
    writer.add_block(new, **shape, num_rows=block.num_rows + len(offsets))
    stored = codecs.decode(codecs.encode(chosen, spec=spec), num_rows=len(chosen), spec=spec)
    return measure(chosen, stored, labels=computed.table.labels[span][offsets], target=labeller.request.soft_labels)


def _letters_left(record: PartRecord, *, computed: ComputedUnit, wanted: npt.NDArray[np.bool_]) -> tuple[DeadLetter, ...]:
    """Return the letters that were not tried, and those of the rows that failed again."""
    left = [letter for letter in record.dead_letters if letter.stage == "read"]
    for letter in computed.dead_letters:
        tried = np.flatnonzero(wanted[:, letter.position])
        if letter.view is not None or len(tried) == len(wanted):
            left.append(letter)
        else:
            # The sample has rows of other views, so that this is not a failure of all of them.
            left += [letter.model_copy(update={"view": record.part.first_view + int(index)}) for index in tried]
    return tuple(sorted(left, key=lambda letter: (letter.position, -1 if letter.view is None else letter.view)))


def num_cured_rows(cache: Cache, tasks: Iterable[LabelTask], *, of_text: bool = False) -> int:
    """Return how many rows of parts that tasks tried again have a label now."""
    cured = 0
    for part, num_dead_rows in {task.part: task.num_dead_rows for task in tasks}.items():
        cured += num_dead_rows - _num_dead(cache, part, of_text=of_text)
    return cured


def _num_dead(cache: Cache, part: PartSpec, *, of_text: bool) -> int:
    record = cache.find_part(part)
    return 0 if record is None else int(dead_rows(record, of_text=of_text).sum())
