"""Label sets: what an experiment reads. A manifest names every part; a reader trusts nothing else."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from storage.cache import Cache
from storage.errors import CacheError, CorruptError, FormatError, MismatchError
from storage.hashing import canonical_json, digest, seal, unseal
from storage.naming import did_you_mean
from storage.parts import Extent, Info, PartRecord, PartStatistics, decode_class_means, encode_class_means
from storage.parts_table import PARTS_OPTIONS, PARTS_SCHEMA, read_parts_table
from storage.remedies import EITHER_AGAIN, EITHER_REPAIR, are_imported, how_to_make_again, how_to_mend
from storage.specs import PartSpec, RequestSpec, SoftLabelsSpec, TargetSpec
from storage.teacher_record import TeacherRecord

_BATCH_PARTS = 8192
"""Parts in a row group of the table."""
_OBJECT_PARTS = 512
"""Parts that are held as Python objects, which weigh many times what arrays do."""
MAX_VIEWS = 99_999
"""Views that configs may ask for, and imports hold: their numbers have five digits."""
_FILE_NAME = r"^[\w-][\w.-]*$"


class Manifest(Info):
    """What a label set is; its parts are listed in parts.parquet, whose digest stands here."""

    format: Literal[1] = 1
    id: str
    name: str
    request: RequestSpec
    num_units: int = Field(ge=0)
    num_samples: int = Field(ge=0)
    num_views: int = Field(ge=1, le=MAX_VIEWS)
    num_rows: int = Field(ge=0)
    num_dead_letters: int = Field(ge=0)
    num_parts: int = Field(ge=0)
    parts_bytes: int = Field(ge=0)
    parts_file: str = Field(pattern=_FILE_NAME)
    """Name of the table of parts; it holds the first digits of `parts_sha256`, so that two writers never mix their files."""
    parts_sha256: str
    class_means_file: str | None = Field(pattern=_FILE_NAME)
    """Mean probability of every class; None: the target is no soft labels."""
    class_means_sha256: str | None
    classes: tuple[str, ...] | None
    source: dict[str, Any]
    """The source's config when the labels were made: where to look, not identity."""
    teacher: TeacherRecord | None = None
    """The teacher's config then; None: labels that were imported, or made before this was kept."""
    statistics: PartStatistics
    served_by: tuple[TargetSpec, ...] = ()
    """Wider targets that some parts hold, which readers narrow; statistics and class means are of the rows as stored."""
    provenance: tuple[dict[str, str], ...]
    """What made the parts: library versions and devices, each different one once."""

    @model_serializer(mode="wrap")
    def _without_unknown_teacher(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name != "teacher" or value is not None}


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """A committed label set, opened.

    Attributes:
        parts: one row a part, the columns of parts.parquet; units in source order.
    """

    cache: Cache
    manifest: Manifest
    parts: pa.Table = field(repr=False)

    @property
    def folder(self) -> str:
        """Folder of the label set in its cache."""
        return f"label_sets/{self.manifest.id}"

    @classmethod
    def open(cls, cache: Cache, *, name_or_id: str) -> Self:
        """Open a label set by name or id.

        Raises:
            MismatchError: there is none of that name.
            CorruptError: its files are not what was committed.
        """
        named = cache.find_name(name_or_id)
        if named is not None:
            return cls.open_id(cache, label_set=named.label_set)
        ids = sorted(cache.label_set_ids())
        matching = [i for i in ids if len(name_or_id) >= 8 and i.startswith(name_or_id)]
        if len(matching) != 1:
            if not ids:
                raise CacheError(f"{cache.store.url} holds no label set; make one with `decant label`")
            known = [*cache.names(), *ids]
            raise MismatchError(
                f"{cache.store.url} holds no label set {name_or_id!r}.{did_you_mean(name_or_id, known)} "
                "If its name was lost, run decant label or the import again: what is there is not made anew"
            )
        return cls.open_id(cache, label_set=matching[0])

    @classmethod
    def open_id(cls, cache: Cache, *, label_set: str) -> Self:
        """Open a label set by its full id."""
        manifest = read_manifest(cache, label_set=label_set)
        name = f"label_sets/{label_set}/{manifest.parts_file}"
        table = _read(cache, name, sha256=manifest.parts_sha256, again=how_to_make_again(manifest.request))
        origin = f"{cache.store.url}/{name}"
        parts = read_parts_table(table, num_parts=manifest.num_parts, num_views=manifest.num_views, origin=origin)
        return cls(cache=cache, manifest=manifest, parts=parts)

    def tar_path(self, part: int) -> str:
        """Return the path in the cache of the tar of a part, given as a row of the table of parts."""
        request, tar_name = self._request_column[part].as_py(), self._tar_name_column[part].as_py()
        return f"{self.cache.request_folder(request)}/{tar_name}"

    @property
    def again(self) -> str:
        """What makes these labels again."""
        return how_to_make_again(self.manifest.request)

    @property
    def mend(self) -> str:
        """What makes a part whole whose tar is damaged."""
        return how_to_mend(imported=are_imported(self.manifest.request))

    def check_values(self) -> None:
        """Refuse labels whose values are known to be wrong, though every byte is what was committed.

        Raises:
            MismatchError: they are.
        """
        wrong = self.manifest.request.why_wrong
        if wrong is not None:
            raise MismatchError(
                f"label set {self.manifest.name!r} ({self.manifest.id}) {wrong}; {self.again}, which computes it anew"
            )

    def read_extent(self, tar_path: str, extent: Extent) -> bytes:
        """Return a block of a part, checked against what was committed.

        Raises:
            CorruptError: the tar is missing, too short, or holds other bytes.
        """
        return self.cache.read_extent(tar_path, extent, imported=are_imported(self.manifest.request))

    @cached_property
    def _request_column(self) -> pa.ChunkedArray:
        return self.parts.column("request")

    @cached_property
    def _tar_name_column(self) -> pa.ChunkedArray:
        return self.parts.column("tar_name")

    def class_means(self) -> npt.NDArray[np.float64]:
        """Return float64 [classes], the mean probability of every class over all rows.

        Raises:
            MismatchError: the target is no soft labels.
        """
        if self.manifest.class_means_file is None:
            raise MismatchError(
                f"label set {self.manifest.name!r} holds {self.manifest.request.target.kind}, so no class has a mean "
                "probability; choose a label set of soft labels"
            )
        name = f"{self.folder}/{self.manifest.class_means_file}"
        data = _read(self.cache, name, sha256=self.manifest.class_means_sha256, again=self.again)
        num_classes = self.manifest.request.soft_labels.num_classes
        return decode_class_means(data, num_classes=num_classes, origin=f"{self.cache.store.url}/{name}")


def read_manifest(cache: Cache, *, label_set: str) -> Manifest:
    """Return the manifest of a label set by its full id.

    Raises:
        CorruptError: it is missing or damaged, or of another release.
        MismatchError: it is that of another label set.
    """
    origin = f"{cache.store.url}/label_sets/{label_set}/manifest.json"
    body = unseal(_read(cache, f"label_sets/{label_set}/manifest.json"))
    if body is None:
        raise CorruptError(f"{origin} is damaged (its sha256 differs); {EITHER_AGAIN}")
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        raise FormatError(f"{origin}: not a manifest this release can read: {error}") from error
    if manifest.id != label_set:
        raise MismatchError(f"{origin} is that of {manifest.id}; the folder was renamed or the file moved: {EITHER_REPAIR}")
    return manifest


def _read(cache: Cache, name: str, *, sha256: str | None = None, again: str = EITHER_AGAIN) -> bytes:
    """Return a file of a label set, which must be there and have the digest its manifest says."""
    try:
        data = cache.store.read(name)
    except FileNotFoundError as error:
        raise CorruptError(f"{cache.store.url}/{name} is missing; {again}") from error
    if sha256 is not None and digest(data) != sha256:
        raise CorruptError(f"{cache.store.url}/{name} is damaged (its sha256 differs from the manifest's); {again}")
    return data


@dataclass(frozen=True, kw_only=True, slots=True)
class UsedPart:
    """A range of views of a unit and the part that holds it.

    Attributes:
        unit_name: name of the unit in this source; the part does not depend on it.
        first_view: first view that is used; the part may hold others.
        num_views: views that are used.
    """

    unit_name: str
    part: PartSpec
    first_view: int
    num_views: int


def _row(used: UsedPart, record: PartRecord) -> dict[str, Any]:
    views = range(used.first_view, used.first_view + used.num_views)
    return {
        "unit_name": used.unit_name,
        "unit_digest": record.part.unit_digest,
        "request": record.part.request,
        "num_samples": record.num_samples,
        "first_view": used.first_view,
        "num_views": used.num_views,
        "tar_name": record.tar_name,
        "tar_bytes": record.tar_bytes,
        "tar_sha256": record.tar_sha256,
        "samples": record.samples.model_dump(),
        "blocks": [block.model_dump() for block in record.blocks if block.view in views],
    }


def label_set_id(*, request: str, parts: Iterable[UsedPart]) -> str:
    """Return the identity of a label set: its request and, in order, unit, content and views of every part.

    A part that was made for another request, and serves this one, is named with that request.
    """
    # The fingerprint of {"request": ..., "parts": [...]}, without holding it: of a million parts it is a hundred megabytes.
    hashed = hashlib.sha256(b'{"parts":[')
    members = (_member(used, request=request) for used in parts)
    separator = b""
    while batch := list(islice(members, _OBJECT_PARTS)):
        hashed.update(separator + canonical_json(batch)[1:-1])
        separator = b","
    hashed.update(b'],"request":' + canonical_json(request) + b"}")
    return hashed.hexdigest()[:32]


def _member(used: UsedPart, *, request: str) -> list[Any]:
    other = [used.part.request] if used.part.request != request else []
    return [used.unit_name, used.part.unit_digest, used.first_view, used.num_views, *other]


@dataclass
class _Totals:
    """What the manifest says of all parts together."""

    statistics: PartStatistics = field(default_factory=PartStatistics)
    num_rows: int = 0
    num_dead_letters: int = 0
    parts_bytes: int = 0
    num_parts: int = 0
    unit_samples: dict[str, int] = field(default_factory=dict)
    requests: set[str] = field(default_factory=set)
    provenance: set[tuple[tuple[str, str], ...]] = field(default_factory=set)


def _write_parts(parts: Iterable[tuple[UsedPart, PartRecord]], totals: _Totals) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    batches: list[pa.RecordBatch] = []
    for used, record in parts:
        rows.append(_row(used, record))
        totals.statistics = totals.statistics.plus(record.statistics)
        totals.num_rows += sum(block["num_rows"] for block in rows[-1]["blocks"])
        views = range(used.first_view, used.first_view + used.num_views)
        totals.num_dead_letters += sum(letter.view is None or letter.view in views for letter in record.dead_letters)
        totals.parts_bytes += record.tar_bytes
        totals.num_parts += 1
        totals.requests.add(record.part.request)
        for made in (record.provenance, *(earlier.provenance for earlier in record.earlier)):
            totals.provenance.add(tuple(sorted(made.items())))
        totals.unit_samples[used.unit_name] = record.num_samples
        if len(rows) == _OBJECT_PARTS:
            batches.append(pa.RecordBatch.from_pylist(rows, schema=PARTS_SCHEMA))
            rows = []
        if len(batches) * _OBJECT_PARTS == _BATCH_PARTS:
            yield pa.concat_batches(batches)
            batches = []
    if rows:
        batches.append(pa.RecordBatch.from_pylist(rows, schema=PARTS_SCHEMA))
    if batches:
        yield pa.concat_batches(batches)


def commit_label_set(
    cache: Cache,
    *,
    identity: str,
    name: str,
    request: RequestSpec,
    parts: Iterable[tuple[UsedPart, PartRecord]],
    num_views: int,
    classes: tuple[str, ...] | None,
    source: dict[str, Any],
    teacher: TeacherRecord | None = None,
) -> LabelSet:
    """Write a label set over committed parts; the manifest last. If the label set exists already and is whole, that one counts.

    Args:
        identity: `label_set_id` of the parts.
        parts: in source order, views of a unit in order; read once.
    """
    folder = f"label_sets/{identity}"
    totals = _Totals()
    sums = np.zeros(request.target.num_classes) if isinstance(request.target, SoftLabelsSpec) else None

    def summed() -> Iterator[tuple[UsedPart, PartRecord]]:
        for used, record in parts:
            if sums is not None and record.class_means is not None and record.statistics.num_value_rows:
                data = cache.read_extent(cache.tar_name(record), record.class_means)
                means = decode_class_means(data, num_classes=len(sums), origin=record.tar_name)
                np.add(sums, record.statistics.num_value_rows * means, out=sums)
            yield used, record

    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, PARTS_SCHEMA, **PARTS_OPTIONS) as writer:
        for batch in _write_parts(summed(), totals):
            writer.write_batch(batch)
    table = buffer.getvalue()
    means = None if sums is None else encode_class_means(sums / max(totals.statistics.num_value_rows, 1))
    manifest = Manifest(
        id=identity,
        name=name,
        request=request,
        num_units=len(totals.unit_samples),
        num_samples=sum(totals.unit_samples.values()),
        num_views=num_views,
        num_rows=totals.num_rows,
        num_dead_letters=totals.num_dead_letters,
        num_parts=totals.num_parts,
        parts_bytes=totals.parts_bytes,
        parts_file=f"parts-{digest(table)[:16]}.parquet",
        parts_sha256=digest(table),
        class_means_file=None if means is None else f"class_means-{digest(means)[:16]}.block",
        class_means_sha256=None if means is None else digest(means),
        classes=classes,
        source=source,
        teacher=teacher,
        statistics=totals.statistics,
        served_by=tuple(cache.request(lender).target for lender in sorted(totals.requests - {request.fingerprint()})),
        provenance=tuple(dict(items) for items in sorted(totals.provenance)),
    )
    cache.store.write(f"{folder}/{manifest.parts_file}", table)
    if means is not None:
        cache.store.write(f"{folder}/{manifest.class_means_file}", means)
    sealed = seal(canonical_json(manifest.model_dump(mode="json")))
    if not cache.store.create(f"{folder}/manifest.json", sealed) and not _stands(cache, manifest):
        cache.store.write(f"{folder}/manifest.json", sealed)
    cache.point_name(name, label_set=identity)
    return LabelSet.open_id(cache, label_set=identity)


def _stands(cache: Cache, manifest: Manifest) -> bool:
    """Return whether a label set that exists already is whole, and names the parts and the classes of now, where these are known.

    It names other parts when some were lost and made anew: their bytes may differ on another device. What its classes are called
    is no part of any identity.
    """
    try:
        there = LabelSet.open_id(cache, label_set=manifest.id)
        if there.manifest.class_means_file is not None:
            there.class_means()
    except FormatError:
        raise
    except CorruptError:
        return False
    return there.manifest.parts_sha256 == manifest.parts_sha256 and manifest.classes in (None, there.manifest.classes)
