"""What labels will cost, measured: some samples are labelled in memory, nothing is stored but the figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from pydantic import ValidationError

from pipelines.label_task import LabelTask
from pipelines.label_unit import LabelledUnit
from pipelines.labellers import label_unit, make_labeller
from pipelines.planned_run import PlannedRun
from pipelines.transforms import shared_teacher
from storage import tar
from storage.block_bounds import BLOCK_TOKENS, MAX_BLOCK_SAMPLES
from storage.errors import CacheError
from storage.hashing import canonical_json, fingerprint, seal, unseal
from storage.sources.base import Sample, Source, SourceUnit, UnitReader
from storage.sources.unit_digest import UnitDigest
from storage.specs import Spec
from storage.target_blocks import decode_target_block

SAMPLE_SIZE = 32
_WARM_UP_SIZE = 1
_TEXT_TOKENS = BLOCK_TOKENS * 7 // 8
"""Tokens of the documents that are labelled: a block of them, and seldom the beginning of a second one."""


class Measured(Spec):
    """What labelling some samples took.

    Attributes:
        num_samples: pictures or documents.
        num_sequences: what these became; of pictures as many.
        sample_bytes: of blocks and keys, one view of each; of documents also what makes blocks members of a tar.
        part_bytes: of a part whatever it holds: mean class probabilities, and what makes it a tar.
        teacher_seconds: of a teacher that has run before.
    """

    num_samples: int
    num_sequences: int
    num_positions: int
    sample_bytes: int
    part_bytes: int
    teacher_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a plan will cost.

    Attributes:
        total_bytes: parts of the whole label set, reused ones too.
        missing_bytes: parts that must be computed.
        teacher_seconds: for these, on one device like the one here.
    """

    bytes_per_sample: float
    bytes_per_position: float | None
    sequences_per_sample: float
    total_bytes: int
    missing_bytes: int
    teacher_seconds: float
    num_measured_samples: int


@dataclass(frozen=True, kw_only=True)
class _FirstSamples:
    """A source of which each unit ends early."""

    source: Source
    num_samples: int

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.source.classes

    def units(self) -> list[SourceUnit]:
        return self.source.units()

    def read(self, unit: SourceUnit) -> Iterator[Sample]:
        return islice(self.source.read(unit), self.num_samples)

    def open(self, unit: SourceUnit) -> UnitReader:
        return self.source.open(unit)


def estimate(runs: Sequence[PlannedRun]) -> list[Estimate | None]:
    """Return what each target of a config will cost; None of those that have nothing left to compute.

    Some documents or pictures of the first unit that is missing are labelled, unless figures of an earlier look are in the cache.

    Raises:
        DecantError: the teacher cannot label them.
    """
    return [_estimate(run, _remembered(run)) if run.plan.tasks else None for run in runs]


def _estimate(run: PlannedRun, measured: Measured) -> Estimate:
    plan = run.plan
    num_parts, num_views = len(plan.parts), plan.num_views
    per_view = measured.sample_bytes / max(measured.num_samples, 1)
    return Estimate(
        bytes_per_sample=per_view * num_views,
        bytes_per_position=measured.sample_bytes / measured.num_positions if measured.num_positions else None,
        sequences_per_sample=measured.num_sequences / max(measured.num_samples, 1),
        total_bytes=round(per_view * plan.num_rows + measured.part_bytes * num_parts),
        missing_bytes=round(per_view * plan.num_missing_rows + measured.part_bytes * len(plan.tasks)),
        teacher_seconds=measured.teacher_seconds / max(measured.num_samples, 1) * plan.num_missing_rows,
        num_measured_samples=measured.num_samples,
    )


def _remembered(run: PlannedRun) -> Measured:
    """Return what was measured for the same request, batch size and device before, or measure it."""
    about = {
        "request": run.plan.request.fingerprint(),
        "batch_size": run.config.generation.batch_size,
        "device": run.teacher_config.device,
        "source": run.source_config.model_dump(mode="json"),
    }
    name = f"teachers/estimate-{fingerprint(about)}.json"
    store = run.cache.store
    with contextlib.suppress(FileNotFoundError, ValidationError):
        return Measured.model_validate_json(unseal(store.read(name)) or b"")
    measured = _measure(run)
    # A plan is asked for by those who may only read the cache, too.
    with contextlib.suppress(CacheError):
        store.write(name, seal(canonical_json(measured.to_json())))
    return measured


def _measure(run: PlannedRun) -> Measured:
    task = next((task for task in run.plan.tasks if task.replaces is None), run.plan.tasks[0])
    _label(run, task=task, num_samples=_WARM_UP_SIZE)
    num_samples = min(SAMPLE_SIZE, task.num_samples)
    unit = _label(run, task=task, num_samples=num_samples)
    if run.plan.of_text:
        num_samples, unit = _block_of_documents(run, task=task, num_samples=num_samples, unit=unit)
    record = unit.record
    sample_bytes = sum(block.num_bytes for block in record.blocks) + record.samples.num_bytes
    if run.plan.of_text:
        sample_bytes += sum(tar.TAR_BLOCK_BYTES + len(tar.padding(block.num_bytes)) for block in record.blocks)
    return Measured(
        num_samples=num_samples,
        num_sequences=record.num_samples,
        num_positions=record.statistics.num_positions,
        sample_bytes=sample_bytes,
        part_bytes=record.tar_bytes - sample_bytes,
        teacher_seconds=unit.teacher_seconds,
    )


def _block_of_documents(run: PlannedRun, *, task: LabelTask, num_samples: int, unit: LabelledUnit) -> tuple[int, LabelledUnit]:
    """Return as many documents as fill a block, and the part of them: the header of a block of few is most of its bytes.

    Args:
        num_samples, unit: the first documents, already labelled.
    """
    # A second time where later documents are longer, or shorter, than the first.
    for _ in range(2):
        tokens = max(_num_tokens(unit), 1)
        full = max(min(num_samples * _TEXT_TOKENS // tokens, MAX_BLOCK_SAMPLES, task.num_samples), min(SAMPLE_SIZE, num_samples))
        spills = full < num_samples and len(unit.record.blocks) > 1
        if not spills and full * _TEXT_TOKENS <= num_samples * BLOCK_TOKENS:
            break
        num_samples, unit = full, _label(run, task=task, num_samples=full)
    return num_samples, unit


def _num_tokens(unit: LabelledUnit) -> int:
    total = 0
    for extent in unit.record.blocks:
        block = decode_target_block(unit.data[extent.offset : extent.offset + extent.num_bytes], origin="estimate")
        assert block.tokens is not None
        total += int(block.tokens.offsets[-1])
    return total


def _label(run: PlannedRun, *, task: LabelTask, num_samples: int) -> LabelledUnit:
    """Label the first samples of a unit, one view of each, in memory."""
    source = _FirstSamples(source=run.source, num_samples=num_samples)
    digest = UnitDigest()
    num_read = 0
    for sample in source.read(task.unit):
        digest.add(sample)
        num_read += 1
    request = run.plan.request
    part = task.part.model_copy(
        update={"request": request.fingerprint(), "unit_digest": digest.hexdigest(), "first_view": 0, "num_views": 1}
    )
    few = replace(task, part=part, num_samples=num_read, replaces=None, num_dead_rows=0)
    teacher = shared_teacher(run.teacher_config)
    labeller = make_labeller(teacher, source=source, requests={part.request: request}, config=run.config.generation)
    return label_unit(labeller, [few])[0]
