"""Run the teacher again on some stored views of pictures and compare: soft labels, or vectors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipelines.audit_distance import compare_values
from pipelines.audit_report import AuditedRow
from pipelines.audit_sample import StoredRow
from pipelines.audit_sample_report import AuditedSample
from pipelines.audit_teacher import default_threshold
from pipelines.extraction import extract
from pipelines.rendering import RenderedSample, SampleRenderer, map_ahead
from pipelines.survey import Survey
from pipelines.teachers.base import Teacher
from pipelines.values import take_values
from pipelines.vectors import extract_picture_vectors, wanted_of
from storage import codecs
from storage.codecs import UnstoredLabels
from storage.codecs.distance import distances, top_class
from storage.errors import MismatchError, SampleError
from storage.features import FeatureRows
from storage.label_set import LabelSet
from storage.random import label_uniforms
from storage.soft_labels import SoftLabels, concatenate
from storage.sources.base import Sample, UnitReader
from storage.specs import SampledCodec, SoftLabelsSpec, TargetSpec, ThresholdCodec


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rendered:
    """A stored row, its view rendered again, and whether the digest of that one, or of one nearby, is the stored one."""

    row: StoredRow
    view: RenderedSample
    digests_agree: bool | None

    @property
    def why_dead(self) -> str | None:
        letter = self.view.dead_letter
        return f"{letter.stage}: {letter.reason}" if letter else None


@dataclass(kw_only=True)
class PictureAuditor:
    """Renders stored views again, in batches of the size they were labelled in, and runs the teacher on them.

    Attributes:
        thresholds: default ones of the targets met so far.
    """

    survey: Survey
    label_set: LabelSet
    teacher: Teacher
    thresholds: list[float] = field(default_factory=list)

    def audit_labels(self, rows: Iterable[StoredRow], *, total: int, progress: bool) -> Iterator[AuditedRow]:
        """Yield every row of soft labels, compared."""
        for target, batch in self._batches(rows, total=total, progress=progress):
            assert isinstance(target, SoftLabelsSpec)
            yield from self._compare_labels(batch, target=target)

    def audit_vectors(self, rows: Iterable[StoredRow], *, total: int, progress: bool) -> Iterator[AuditedSample]:
        """Yield every view's vectors, compared."""
        for target, batch in self._batches(rows, total=total, progress=progress):
            yield from self._compare_vectors(batch, target=target)

    def _batches(self, rows: Iterable[StoredRow], *, total: int, progress: bool) -> Iterator[tuple[TargetSpec, list[_Rendered]]]:
        generation = self.survey.config.generation
        units = {unit.unit.name: unit.unit for unit in self.survey.units}
        with tqdm(total=total, unit="row", desc="audit", file=sys.stderr, disable=not (progress and sys.stderr.isatty())) as bar:
            for target, of_target in groupby(rows, key=lambda row: row.target):
                self.thresholds.append(default_threshold(target, precision=self.teacher.spec.precision))
                while batch := list(islice(of_target, generation.batch_size)):
                    samples: list[tuple[StoredRow, Sample, Sample | None]] = []
                    for name, of_unit in groupby(batch, key=lambda row: row.unit_name):
                        with closing(self.survey.source.open(units[name])) as reader:
                            samples += [_read(row, reader) for row in of_unit]
                    threads = generation.decode_threads
                    yield target, list(map_ahead(self._render, samples, threads=threads, ahead=2 * threads))
                    bar.update(len(batch))

    def _render(self, asked: tuple[StoredRow, Sample, Sample | None]) -> _Rendered:
        row, sample, proof = asked
        renderer = SampleRenderer(
            view=self.label_set.manifest.request.rendered_view(),
            first_view=row.view,
            num_views=1,
            max_pixels=self.survey.config.generation.max_image_pixels,
            block_rows=(1,),
        )
        rendered = renderer(sample)
        if row.digest_position is None:
            return _Rendered(row=row, view=rendered, digests_agree=None)
        proven = rendered if proof is None else renderer(proof)
        agree = proven.views is not None and int(proven.digests[0]) == row.view_digest
        return _Rendered(row=row, view=rendered, digests_agree=agree)

    def _pixels(self, batch: list[_Rendered]) -> npt.NDArray[np.uint8]:
        size = self.label_set.manifest.request.rendered_view().size
        pixels = np.zeros((self.survey.config.generation.batch_size, *size, 3), dtype=np.uint8)
        for place, one in enumerate(batch):
            if one.view.views is not None:
                pixels[place] = one.view.views[0]
        return pixels

    def _compare_vectors(self, batch: list[_Rendered], *, target: TargetSpec) -> Iterator[AuditedSample]:
        assert not isinstance(target, SoftLabelsSpec)
        outputs = self.teacher.vectors(self._pixels(batch), wanted=wanted_of([target]))
        now, storable = extract_picture_vectors(outputs, target=target, num_pictures=len(batch), device=self.teacher.device)
        each = len(now) // len(batch)
        for place, one in enumerate(batch):
            row, problem = one.row, one.why_dead
            if problem is None and len(row.values) != each:
                problem = f"teacher: a picture has {each} rows of {target.kind} where {len(row.values)} are stored"
            if problem is None and not storable[place]:
                problem = f"teacher: its {target.kind} hold NaN or infinity or more than is stored"
            distance = 1.0
            if problem is None:
                mine = now.take(np.arange(place * each, (place + 1) * each))
                distance, _ = compare_values(row.values, mine, target=target, limits=row.limits)
            yield AuditedSample(
                unit_name=row.unit_name,
                key=row.key,
                view=row.view,
                num_rows=len(row.values),
                distance=distance,
                same_top=None,
                digests_agree=one.digests_agree,
                problem=problem,
            )

    def _compare_labels(self, batch: list[_Rendered], *, target: SoftLabelsSpec) -> Iterator[AuditedRow]:
        alive = np.array([one.view.views is not None for one in batch])
        uniforms = None
        if isinstance(target.codec, SampledCodec | ThresholdCodec):
            # The same draws: what is drawn now differs only as far as the teacher does.
            whole = np.zeros(1, dtype=np.int64)
            drawn = [label_uniforms(target.codec, key=one.row.key, view_index=one.row.view, positions=whole) for one in batch]
            uniforms = np.concatenate(drawn)
        extracted = extract(self.teacher.logits(self._pixels(batch)), spec=target, alive=alive, uniforms=uniforms)
        known = alive & extracted.finite
        stored = concatenate([_labels_of(one.row) for one in batch])
        now = _as_stored(extracted.rows, known=known, target=target)
        compared = distances(stored.take(np.flatnonzero(known)), now)
        place_of = np.cumsum(known) - 1
        tops, tops_now = top_class(stored), top_class(now)
        for index, one in enumerate(batch):
            place = int(place_of[index])
            problem = None if known[index] else one.why_dead or "teacher: its logits hold NaN or infinity"
            yield AuditedRow(
                unit_name=one.row.unit_name,
                key=one.row.key,
                position=one.row.position,
                view=one.row.view,
                total_variation=1.0 if problem else float(compared.total_variation[place]),
                kl=None if problem else float(compared.kl[place]),
                stored_top=int(tops[index]),
                top_now=None if problem else int(tops_now[place]),
                same_top=not problem and bool(compared.same_top[place]),
                digests_agree=one.digests_agree,
                problem=problem,
            )


def _labels_of(row: StoredRow) -> SoftLabels:
    assert isinstance(row.values, SoftLabels)
    return row.values


def _read(row: StoredRow, reader: UnitReader) -> tuple[StoredRow, Sample, Sample | None]:
    proof = None
    if row.digest_position is not None and row.digest_key is not None and row.digest_position != row.position:
        proof = _read_sample(reader, position=row.digest_position, key=row.digest_key)
    return row, _read_sample(reader, position=row.position, key=row.key), proof


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
