"""`decant audit`: run the teacher again on some stored rows and compare."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from pipelines.audit_report import AuditedRow, describe_audit
from pipelines.audit_sample import StoredRow, stored_rows
from pipelines.audit_teacher import check_teacher, default_threshold
from pipelines.extraction import extract
from pipelines.label_unit import provenance
from pipelines.rendering import RenderedSample, SampleRenderer, map_ahead
from pipelines.request import label_set_names
from pipelines.survey import Survey, config_of_each_target, survey_run
from pipelines.teachers.base import Teacher
from pipelines.text.audit import audit_texts
from pipelines.transforms import shared_teacher
from pipelines.values import take_values
from storage import codecs
from storage.cache import Cache
from storage.codecs import UnstoredLabels
from storage.codecs.distance import distances, top_class
from storage.config import ExperimentConfig
from storage.errors import CacheError, ConfigError, MismatchError, SampleError
from storage.features import FeatureRows
from storage.label_set import LabelSet
from storage.random import label_uniforms
from storage.soft_labels import SoftLabels, concatenate
from storage.sources.base import Sample, UnitReader
from storage.specs import MaskedTokensView, SampledCodec, SoftLabelsSpec, ThresholdCodec, TokensView
from storage.upkeep.reading import hold_label_set


def audit(
    config: ExperimentConfig,
    *,
    label_set: str | None = None,
    num_rows: int = 64,
    threshold: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Return the figures of an audit, "problems" that are worth an exit status of 1, and a readable form under "text".

    Args:
        label_set: name or id; None: the one that the config's name points at, of several targets that of the first.
        num_rows: rows that are looked at.
        threshold: largest total variation that passes; None: by precision and codec.
        seed: another one chooses other rows.

    Raises:
        MismatchError: teacher or source are not those of the label set; every field that differs, with both values.
        CacheError: the label set cannot be read.
        TeacherError: the teacher cannot be loaded or run.
    """
    if config.cache is None:
        raise ConfigError("cache: is needed to audit")
    if num_rows < 1 or (threshold is not None and not 0 <= threshold <= 1):
        raise ConfigError(f"an audit of {num_rows} rows with threshold {threshold}: give at least 1 row, a threshold in [0, 1]")
    opened = LabelSet.open(Cache.at(config.cache), name_or_id=label_set or next(iter(label_set_names(config).values())))
    of_text = isinstance(opened.manifest.request.view, TokensView | MaskedTokensView)
    with hold_label_set(opened):
        return (audit_texts if of_text else _audit_pictures)(
            config, opened, num_rows=num_rows, threshold=threshold, seed=seed, progress=progress
        )


def _audit_pictures(
    config: ExperimentConfig, opened: LabelSet, *, num_rows: int, threshold: float | None, seed: int, progress: bool
) -> dict[str, Any]:
    manifest = opened.manifest
    manifest.request.rendered_view()
    # Vectors of pictures are checked by decant cache verify alone: the message names what an audit takes.
    _ = manifest.request.soft_labels
    # Of several targets any will do: teacher and source are the same.
    survey = survey_run(next(iter(config_of_each_target(config).values())), progress=progress)
    check_teacher(opened, made_now=survey.request.teacher.to_json())
    _check_source(opened, survey)
    rows = list(stored_rows(opened, num_rows=num_rows, seed=seed))
    if not rows:
        raise CacheError(f"label set {manifest.name!r} ({manifest.id}) holds no rows: there is nothing to audit")
    teacher = shared_teacher(survey.teacher_config)
    assert isinstance(teacher, Teacher)
    if threshold is None:
        targets = {row.target.fingerprint(): row.target for row in rows}.values()
        threshold = max(default_threshold(target, precision=teacher.spec.precision) for target in targets)
    audited = list(_Auditor(survey=survey, label_set=opened, teacher=teacher).audit(rows, progress=progress))
    return describe_audit(opened, audited, threshold=threshold, seed=seed, now=provenance(teacher))


def _check_source(label_set: LabelSet, survey: Survey) -> None:
    digests = {unit.unit.name: unit.digest for unit in survey.units}
    names, made = (label_set.parts.column(name).to_pylist() for name in ("unit_name", "unit_digest"))
    differing: dict[str, str] = {}
    for name, digest in zip(names, made, strict=True):
        if digests.get(name) != digest:
            now = f"is {digests[name][:16]} now" if name in digests else "is gone"
            differing[name] = f"  unit {name!r}: labelled was content {digest[:16]}, it {now}"
    if differing:
        shown = "\n".join(list(differing.values())[:5])
        more = f"\n  ... and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise MismatchError(
            f"the source no longer holds what label set {label_set.manifest.name!r} ({label_set.manifest.id}) was made of:\n"
            f"{shown}{more}\nRestore the source, or run decant label and audit what it makes"
        )


@dataclass(kw_only=True)
class _Auditor:
    survey: Survey
    label_set: LabelSet
    teacher: Teacher

    def audit(self, rows: list[StoredRow], *, progress: bool) -> Iterator[AuditedRow]:
        """Yield every row compared, in fixed batches as when they were labelled."""
        size = self.survey.config.generation.batch_size
        threads = self.survey.config.generation.torch_threads
        if threads is not None:
            torch.set_num_threads(threads)
        units = {unit.unit.name: unit.unit for unit in self.survey.units}
        with tqdm(
            total=len(rows), unit="row", desc="audit", file=sys.stderr, disable=not (progress and sys.stderr.isatty())
        ) as bar:
            for _, of_target in groupby(rows, key=lambda row: row.target):
                of_one = list(of_target)
                for first in range(0, len(of_one), size):
                    batch = of_one[first : first + size]
                    samples: list[tuple[StoredRow, Sample, Sample | None]] = []
                    for name, of_unit in groupby(batch, key=lambda row: row.unit_name):
                        with closing(self.survey.source.open(units[name])) as reader:
                            samples += [self._read(row, reader) for row in of_unit]
                    yield from self._compare(samples)
                    bar.update(len(batch))

    def _read(self, row: StoredRow, reader: UnitReader) -> tuple[StoredRow, Sample, Sample | None]:
        proof = None
        if row.digest_position is not None and row.digest_key is not None and row.digest_position != row.position:
            proof = _read_sample(reader, position=row.digest_position, key=row.digest_key)
        return row, _read_sample(reader, position=row.position, key=row.key), proof

    def _render(self, asked: tuple[StoredRow, Sample, Sample | None]) -> tuple[RenderedSample, bool | None]:
        row, sample, proof = asked
        renderer = SampleRenderer(
            view=self.label_set.manifest.request.rendered_view(),
            first_view=row.view,
            num_views=1,
            max_pixels=self.survey.config.generation.max_image_pixels,
            block_rows=1,
        )
        rendered = renderer(sample)
        if row.digest_position is None:
            return rendered, None
        proven = rendered if proof is None else renderer(proof)
        return rendered, proven.views is not None and int(proven.digests[0]) == row.view_digest

    def _compare(self, samples: list[tuple[StoredRow, Sample, Sample | None]]) -> Iterator[AuditedRow]:
        generation = self.survey.config.generation
        rendered = list(map_ahead(self._render, samples, threads=generation.decode_threads, ahead=2 * generation.decode_threads))
        height, width = self.label_set.manifest.request.rendered_view().size
        pixels = np.zeros((generation.batch_size, height, width, 3), dtype=np.uint8)
        for place, (one, _) in enumerate(rendered):
            if one.views is not None:
                pixels[place] = one.views[0]
        alive = np.array([one.views is not None for one, _ in rendered])
        target = samples[0][0].target
        uniforms = None
        if isinstance(target.codec, SampledCodec | ThresholdCodec):
            # The same draws: what is drawn now differs only as far as the teacher does.
            whole = np.zeros(1, dtype=np.int64)
            drawn = [label_uniforms(target.codec, key=row.key, view_index=row.view, positions=whole) for row, _, _ in samples]
            uniforms = np.concatenate(drawn)
        extracted = extract(self.teacher.logits(pixels), spec=target, alive=alive, uniforms=uniforms)
        known = alive & extracted.finite
        stored = concatenate([row.soft_labels for row, _, _ in samples])
        now = _as_stored(extracted.rows, known=known, target=target)
        compared = distances(stored.take(np.flatnonzero(known)), now)
        place_of = np.cumsum(known) - 1
        tops, tops_now = top_class(stored), top_class(now)
        for index, ((row, _, _), (one, agree)) in enumerate(zip(samples, rendered, strict=True)):
            place = int(place_of[index])
            problem = None
            if not known[index]:
                letter = one.dead_letter
                problem = f"{letter.stage}: {letter.reason}" if letter else "teacher: its logits hold NaN or infinity"
            yield AuditedRow(
                unit_name=row.unit_name,
                key=row.key,
                position=row.position,
                view=row.view,
                total_variation=1.0 if problem else float(compared.total_variation[place]),
                kl=None if problem else float(compared.kl[place]),
                stored_top=int(tops[index]),
                top_now=None if problem else int(tops_now[place]),
                same_top=not problem and bool(compared.same_top[place]),
                digests_agree=agree,
                problem=problem,
            )


def _read_sample(reader: UnitReader, *, position: int, key: str) -> Sample:
    found = reader.keys[position] if position < len(reader.keys) else None
    if found != key:
        raise MismatchError(f"at position {position} the labels are of {key!r}, the source holds {found!r}; restore the source")
    image, error = None, None
    try:
        image = reader.read(position)
    except SampleError as failure:
        error = str(failure)
    return Sample(position=position, key=key, label=int(reader.labels[position]), data=image, error=error)


def _as_stored(rows: UnstoredLabels, *, known: npt.NDArray[np.bool_], target: SoftLabelsSpec) -> SoftLabels:
    """Return rows after the way through their codec."""
    kept = take_values(rows, np.flatnonzero(known))
    assert not isinstance(kept, FeatureRows)
    return codecs.decode(codecs.encode(kept, spec=target), num_rows=len(kept), spec=target)
