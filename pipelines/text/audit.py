"""Run the teacher again on some stored sequences and compare. Parts of texts hold what the teacher saw, so no source is read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipelines.audit_distance import compare_values
from pipelines.audit_sample import chosen_places, values_of
from pipelines.audit_sample_report import AuditedSample, describe_samples
from pipelines.audit_teacher import check_teacher, default_threshold
from pipelines.label_unit import provenance
from pipelines.teachers.text_base import TextTeacher
from pipelines.text.batches import batches
from pipelines.text.labelling import extract_rows
from pipelines.transforms import shared_teacher
from pipelines.values import take_values
from pipelines.vectors import wanted_of
from storage.checked_reading import read_block, read_samples
from storage.config import ExperimentConfig
from storage.errors import CacheError, ConfigError
from storage.label_set import LabelSet
from storage.parts import BlockExtent
from storage.target_blocks import TargetBlock, decode_target_block
from storage.text.token_rows import offsets_of, spans


def audit_texts(
    config: ExperimentConfig, label_set: LabelSet, *, num_rows: int, threshold: float | None, seed: int, progress: bool
) -> dict[str, Any]:
    """Return the figures of an audit, "problems" that are worth an exit status of 1, and a readable form under "text".

    Args:
        num_rows: sequences that are looked at.
        threshold: largest distance of a row that passes; None: by precision and codec.
        seed: another one chooses other sequences.

    Raises:
        MismatchError: the teacher is not that of the label set.
        CacheError: the label set cannot be read.
        TeacherError: the teacher cannot be loaded or run.
    """
    if config.teacher is None:
        raise ConfigError("teacher: is needed to audit")
    teacher = shared_teacher(config.teacher)
    check_teacher(label_set, made_now=teacher.spec.to_json())
    assert isinstance(teacher, TextTeacher)
    found: list[AuditedSample] = []
    thresholds: list[float] = []
    places = chosen_places(label_set, num_rows=num_rows, seed=seed)
    total = sum(len(asked) for asked in places.values())
    with tqdm(total=total, unit="row", desc="audit", file=sys.stderr, disable=not (progress and sys.stderr.isatty())) as bar:
        for part, asked in places.items():
            for keys, block, rows in _blocks(label_set, part=part, asked=asked):
                thresholds.append(default_threshold(block.target, precision=teacher.spec.precision))
                unit_name = label_set.parts.column("unit_name")[part].as_py()
                found += _audit_block(
                    teacher, block, rows=rows, keys=keys, unit_name=unit_name, batch_size=config.generation.batch_size
                )
            bar.update(len(asked))
    if not found:
        raise CacheError(
            f"label set {label_set.manifest.name!r} ({label_set.manifest.id}) holds no rows: there is nothing to audit"
        )
    return describe_samples(
        label_set,
        found,
        threshold=max(thresholds) if threshold is None else threshold,
        seed=seed,
        now=provenance(teacher),
        what="sequences",
    )


def _blocks(
    label_set: LabelSet, *, part: int, asked: list[tuple[int, int]]
) -> Iterator[tuple[tuple[str, ...], TargetBlock, npt.NDArray[np.int64]]]:
    """Yield keys of a part, blocks, and which of their sequences are looked at; a dead letter's place goes to the next one."""
    keys = read_samples(label_set, part=part).keys
    extents = [BlockExtent(**block) for block in label_set.parts.column("blocks")[part].as_py()]

    def extent_of(place: tuple[int, int]) -> int:
        view, position = place
        return next(
            index
            for index, one in enumerate(extents)
            if one.view == view and one.first_sample <= position < one.first_sample + one.num_samples
        )

    for index, of_block in groupby(asked, key=extent_of):
        block = read_block(label_set, part=part, extent=extents[index], decode=decode_target_block)
        if len(block):
            positions = np.array([position for _, position in of_block], dtype=np.int64)
            yield keys, block, np.unique(np.searchsorted(block.positions, positions) % len(block))


def _audit_block(
    teacher: TextTeacher,
    block: TargetBlock,
    *,
    rows: npt.NDArray[np.int64],
    keys: tuple[str, ...],
    unit_name: str,
    batch_size: int,
) -> Iterator[AuditedSample]:
    assert block.tokens is not None
    chosen = block.tokens.take(rows)
    chosen_keys = tuple(keys[position] for position in block.positions[rows].tolist())
    wanted = wanted_of([block.target])
    for batch in batches(chosen, keys=chosen_keys, batch_size=batch_size):
        outputs = teacher.run(batch.token_ids, lengths=batch.lengths, wanted=wanted)
        now = extract_rows(outputs, batch, target=block.target, view=block.view)
        offsets = offsets_of(now.counts)
        for place, sequence in enumerate(batch.sequences.tolist()):
            row = rows[sequence]
            stored, limits = values_of(block, row=int(row))
            distance, same_top, problem = 1.0, None, None
            if now.whole[place]:
                mine = take_values(now.values, spans(offsets, np.array([place])))
                distance, same_top = compare_values(stored, mine, target=block.target, limits=limits)
            else:
                problem = "teacher: its outputs hold NaN or infinity"
            yield AuditedSample(
                unit_name=unit_name,
                key=batch.keys[place],
                view=block.view,
                num_rows=len(stored),
                distance=distance,
                same_top=same_top,
                digests_agree=None,
                problem=problem,
            )
