"""Run the teacher again on some stored sequences and compare. Parts of texts hold what the teacher saw, so no source is read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipelines.audit_sample import chosen_places
from pipelines.audit_teacher import check_teacher, default_threshold
from pipelines.label_unit import provenance
from pipelines.teachers.text_base import TextTeacher
from pipelines.text.batches import batches
from pipelines.text.labelling import extract_rows
from pipelines.transforms import shared_teacher
from pipelines.values import take_values
from pipelines.vectors import wanted_of
from storage.codecs import values as value_codecs
from storage.codecs.distance import distances
from storage.codecs.values import TargetValues, UnstoredValues
from storage.config import ExperimentConfig
from storage.errors import CacheError, ConfigError
from storage.features import FeatureRows
from storage.label_set import LabelSet
from storage.parts import BlockExtent, Extent
from storage.samples import decode_samples
from storage.soft_labels import SoftLabels
from storage.specs import SoftLabelsSpec, TargetSpec
from storage.target_blocks import TargetBlock, decode_target_block
from storage.text.token_rows import offsets_of, spans

_NUM_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedSequence:
    """A stored sequence beside what the teacher says of it now.

    Attributes:
        num_rows: its rows of values.
        distance: largest of its rows: total variation of soft labels, relative distance of vectors; 1 where nothing can be said.
        same_top: its rows whose most probable class is the same; None of vectors.
        problem: why nothing can be said now.
    """

    unit_name: str
    key: str
    view: int
    num_rows: int
    distance: float
    same_top: int | None
    problem: str | None


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
    found: list[AuditedSequence] = []
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
    return _describe(
        label_set,
        found,
        threshold=max(thresholds) if threshold is None else threshold,
        seed=seed,
        now=provenance(teacher),
    )


def _blocks(
    label_set: LabelSet, *, part: int, asked: list[tuple[int, int]]
) -> Iterator[tuple[tuple[str, ...], TargetBlock, npt.NDArray[np.int64]]]:
    """Yield keys of a part, blocks, and which of their sequences are looked at; a dead letter's place goes to the next one."""
    table, path = label_set.parts, label_set.tar_path(part)
    origin = f"{label_set.cache.store.url}/{path}"
    keys = decode_samples(label_set.read_extent(path, Extent(**table.column("samples")[part].as_py())), origin=origin).keys
    extents = [BlockExtent(**block) for block in table.column("blocks")[part].as_py()]

    def extent_of(place: tuple[int, int]) -> int:
        view, position = place
        return next(
            index
            for index, one in enumerate(extents)
            if one.view == view and one.first_sample <= position < one.first_sample + one.num_samples
        )

    for index, of_block in groupby(asked, key=extent_of):
        block = decode_target_block(label_set.read_extent(path, extents[index]), origin=origin)
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
) -> Iterator[AuditedSequence]:
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
            stored = block.values.take(np.arange(block.row_offsets[row], block.row_offsets[row + 1]))
            distance, same_top, problem = 1.0, None, None
            if now.whole[place]:
                mine = take_values(now.values, spans(offsets, np.array([place])))
                distance, same_top = _compare(stored, mine, target=block.target)
            else:
                problem = "teacher: its outputs hold NaN or infinity"
            yield AuditedSequence(
                unit_name=unit_name,
                key=batch.keys[place],
                view=block.view,
                num_rows=len(stored),
                distance=distance,
                same_top=same_top,
                problem=problem,
            )


def _compare(stored: TargetValues, now: UnstoredValues, *, target: TargetSpec) -> tuple[float, int | None]:
    """Return the largest distance of a row, and how many rows of soft labels name the same class as most probable."""
    if isinstance(now, FeatureRows):
        assert isinstance(stored, FeatureRows)
        largest = 0.0
        for name, given in now.tensors.items():
            apart = np.linalg.norm(stored.tensors[name].astype(np.float64) - given, axis=1)
            largest = max(largest, float((apart / np.maximum(np.linalg.norm(given, axis=1), 1e-6)).max(initial=0.0)))
        return largest, None
    assert isinstance(target, SoftLabelsSpec)
    assert isinstance(stored, SoftLabels)
    as_stored = value_codecs.decode(value_codecs.encode(now, target=target), num_rows=len(now), target=target)
    assert isinstance(as_stored, SoftLabels)
    compared = distances(stored, as_stored)
    return float(compared.total_variation.max(initial=0.0)), int(compared.same_top.sum())


def _describe(
    label_set: LabelSet, found: list[AuditedSequence], *, threshold: float, seed: int, now: dict[str, str]
) -> dict[str, Any]:
    manifest = label_set.manifest
    of_labels = isinstance(manifest.request.target, SoftLabelsSpec)
    apart = np.array([one.distance for one in found])
    num_values = sum(one.num_rows for one in found)
    failing = [one for one in found if one.problem or one.distance > threshold]
    tops = sum(one.same_top or 0 for one in found) / max(num_values, 1) if of_labels else None
    problems = []
    if failing:
        problems.append(
            f"{len(failing)} of {len(found)} sequences are not what the teacher says of them now (a row further apart than "
            f"{threshold:.4g}): teacher or labels changed since, or precision explains it and --threshold should be wider"
        )
    measure = "total variation" if of_labels else "distance"
    lines = [
        f"label set {manifest.id}, name {manifest.name!r}",
        f"  audited          {len(found):,} of {manifest.num_rows:,} sequences, {num_values:,} rows of values, seed {seed}",
        f"  {measure:<16} {apart.mean():.2e} mean of the largest of each, {apart.max():.2e} largest; {threshold:.4g} passes",
        *([] if tops is None else [f"  top-1 agreement  {tops:.4f}"]),
    ]
    for one in sorted(failing, key=lambda one: (one.problem is None, -one.distance))[:_NUM_SHOWN]:
        said = f"it was labelled, and now {one.problem}" if one.problem else f"{measure} {one.distance:.4f}"
        lines.append(f"    unit {one.unit_name!r}, {one.key!r}, view {one.view}: {said}")
    lines += problems or [f"right: no row is further apart than {threshold:.4g}"]
    return {
        "label_set": manifest.id,
        "name": manifest.name,
        "num_rows": len(found),
        "num_values": num_values,
        "seed": seed,
        "threshold": threshold,
        "distance_mean": float(apart.mean()),
        "distance_max": float(apart.max()),
        "top1_agreement": tops,
        "num_failing_rows": len(failing),
        "provenance": now,
        "problems": problems,
        "text": "\n".join(lines),
    }
