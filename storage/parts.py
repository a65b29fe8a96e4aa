"""Parts: one tar for the targets of one source unit and a range of views, and the record that makes it count.

Members are blocks. The record holds what a reader must know to trust the tar: its digest, and offset, size and checksum of every
block. A tar without a record is nobody's; `docs/format.md` has the bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from storage import tar
from storage.block_bounds import MAX_BLOCK_SAMPLES
from storage.blocks import decode_block, encode_block
from storage.codecs import UnstoredLabels
from storage.codecs.columns import pack, unpack
from storage.errors import CorruptError, FormatError
from storage.hashing import canonical_json, checksum, digest, key_hash, seal, unseal
from storage.label_blocks import encode_label_block
from storage.remedies import EITHER_REPAIR, how_to_mend
from storage.samples import MAX_UNIT_SAMPLES, SampleTable, encode_samples
from storage.specs import PartSpec, SoftLabelsSpec, TargetSpec

TAR_NAME = r"^[0-9a-f]{32}\.v[0-9]{5,}-[0-9]{5,}\.[0-9a-f]{16}\.tar$"
"""Joined to the folder of its request, so it must lead nowhere else."""
MAX_MEANS = 1 << 26
"""Classes of which there are mean probabilities: half a gigabyte of them."""

_TarName = Annotated[str, Field(pattern=TAR_NAME)]
_Place = Annotated[int, Field(ge=0, lt=2**63)]


class Info(BaseModel):
    """Measured facts, never hashed into an identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _without_empty(data: dict[str, Any], *, name: str) -> dict[str, Any]:
    """Leave out what a record need not say: records without it keep the bytes they always had."""
    return {key: value for key, value in data.items() if key != name or value}


class Extent(Info):
    """Where a block lies in its tar."""

    offset: _Place
    num_bytes: _Place
    checksum: str
    """xxh3-64 of the block, 16 hex digits."""


class BlockExtent(Extent):
    """A block of labels: which rows it holds and where it lies."""

    view: int = Field(ge=0)
    first_sample: int = Field(ge=0)
    num_samples: int = Field(ge=1, le=MAX_BLOCK_SAMPLES)
    num_rows: int = Field(ge=0, le=MAX_BLOCK_SAMPLES)


class DeadLetter(Info):
    """A sample, or one view of it, that has no label."""

    key: str
    position: int = Field(ge=0, lt=MAX_UNIT_SAMPLES)
    view: int | None
    """None: the sample failed before it had views."""
    stage: Literal["read", "decode", "render", "teacher", "import"]
    reason: str
    traceback: str = ""
    """Where it was raised, innermost last, without paths or addresses: equal failures say the same. Empty: nothing was raised."""

    @model_serializer(mode="wrap")
    def _without_empty_traceback(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_empty(serialize(self), name="traceback")


class EarlierPart(Info):
    """A tar that a part replaced to fill in dead letters: every row of it is kept as it was."""

    tar_name: _TarName
    num_rows: int
    provenance: dict[str, str]
    """What made those rows."""


class PartStatistics(Info):
    """What was measured of the rows; sums, so that parts add up. No times: equal rows give equal records."""

    num_rows: int = 0
    codec_kl_sum: float = 0.0
    """Nats, summed over rows: KL of the exact selection, rest spread evenly, to what is stored."""
    codec_kl_max: float = 0.0
    mass_kept_sum: float = 0.0
    entries_sum: int = 0
    num_empty_rows: int = 0
    """Rows that keep no class at all."""
    num_full_rows: int = 0
    """Rows of a quality level that ran into the cap on classes."""
    num_labelled_rows: int = 0
    num_agreeing_rows: int = 0
    """Rows whose most probable class is the hard label."""
    num_positions: int = 0
    """Tokens that have values of their own, where a row of the label set is a text."""
    squared_error_sum: float = 0.0
    """Of vectors as stored, against vectors as the teacher gave them."""
    squared_sum: float = 0.0
    """Of vectors as the teacher gave them."""

    @model_serializer(mode="wrap")
    def _without_zeros(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        late = ("num_positions", "squared_error_sum", "squared_sum")
        return {name: value for name, value in serialize(self).items() if name not in late or value}

    @property
    def num_value_rows(self) -> int:
        """Rows of values that sums are over: tokens that have values, or rows of the label set where it has one a row."""
        return self.num_positions or self.num_rows

    @property
    def relative_error(self) -> float:
        """Root of the mean squared error of stored vectors, over that of the vectors."""
        return math.sqrt(self.squared_error_sum / self.squared_sum) if self.squared_sum else 0.0

    def plus(self, other: PartStatistics) -> PartStatistics:
        """Return the statistics of both together."""
        summed = {name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields}
        return PartStatistics.model_validate({**summed, "codec_kl_max": max(self.codec_kl_max, other.codec_kl_max)})


class CommittedTar(BaseModel):
    """Of the record of a part what says whether its tar is there: plans ask for a million of them."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    part: PartSpec
    tar_name: _TarName
    tar_bytes: int

    @classmethod
    def from_bytes(cls, data: bytes, *, origin: str) -> Self:
        """Return it from the stored form of a part's record.

        Raises:
            FormatError: damage, another version, or not a part record.
        """
        body = unseal(data)
        if body is None:
            raise FormatError(f"{origin}: the part record is damaged (its sha256 differs); {EITHER_REPAIR}")
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise FormatError(f"{origin}: not a part record this release can read: {error}") from error


class PartRecord(CommittedTar):
    """The commit of a part."""

    model_config = ConfigDict(extra="forbid")

    unit_name: str
    num_samples: int = Field(ge=0, le=MAX_UNIT_SAMPLES)
    tar_sha256: str
    samples: Extent
    class_means: Extent | None
    """None: the target is no soft labels."""
    blocks: tuple[BlockExtent, ...]
    dead_letters: tuple[DeadLetter, ...]
    statistics: PartStatistics
    provenance: dict[str, str]
    """What made the rows that no earlier tar held."""
    earlier: tuple[EarlierPart, ...] = ()
    """Tars of this part that were replaced, oldest first."""

    @model_serializer(mode="wrap")
    def _without_nothing_earlier(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_empty(serialize(self), name="earlier")

    def to_bytes(self) -> bytes:
        """Return the stored form: canonical JSON, then the sha256 of it on a line of its own."""
        return seal(canonical_json(self.model_dump(mode="json")))


@dataclass(kw_only=True)
class PartWriter:
    """Collects the blocks of a part and gives its bytes; the same rows always give the same bytes."""

    part: PartSpec
    target: TargetSpec
    samples: SampleTable
    _pieces: list[bytes] = field(default_factory=list, repr=False)
    _num_bytes: int = 0
    _blocks: list[BlockExtent] = field(default_factory=list, repr=False)
    _samples: Extent | None = None

    def __post_init__(self) -> None:
        self._samples = self._add("keys.samples", encode_samples(self.samples))

    def _add(self, name: str, data: bytes) -> Extent:
        header = tar.member_header(f"{self.part.name.replace('.', '-')}-{name}", num_bytes=len(data))
        extent = Extent(offset=self._num_bytes + len(header), num_bytes=len(data), checksum=f"{checksum(data):016x}")
        self._pieces += [header, data, tar.padding(len(data))]
        self._num_bytes += sum(len(piece) for piece in self._pieces[-3:])
        return extent

    def add_rows(
        self,
        rows: UnstoredLabels,
        *,
        view: int,
        first_sample: int,
        present: npt.NDArray[np.bool_],
        view_digests: npt.NDArray[np.uint64],
    ) -> bytes:
        """Append a block of soft labels, a row a view, and return its bytes, for measuring. See `encode_label_block`."""
        assert isinstance(self.target, SoftLabelsSpec)
        keys = self.samples.keys[first_sample : first_sample + len(present)]
        data = encode_label_block(
            rows,
            spec=self.target,
            view=view,
            first_sample=first_sample,
            present=present,
            key_hash=key_hash(keys),
            view_digests=view_digests,
        )
        self.add_block(data, view=view, first_sample=first_sample, num_samples=len(present), num_rows=len(rows))
        return data

    def add_block(self, data: bytes, *, view: int, first_sample: int, num_samples: int, num_rows: int) -> None:
        """Append a block of rows that is encoded already."""
        extent = self._add(f"v{view:05d}-{first_sample:08d}.{self.target.kind}", data)
        self._blocks.append(
            BlockExtent(**extent.model_dump(), view=view, first_sample=first_sample, num_samples=num_samples, num_rows=num_rows)
        )

    def finish(
        self,
        *,
        unit_name: str,
        class_means: npt.NDArray[np.float64] | None,
        dead_letters: tuple[DeadLetter, ...],
        statistics: PartStatistics,
        provenance: dict[str, str],
        earlier: tuple[EarlierPart, ...] = (),
    ) -> tuple[bytes, PartRecord]:
        """Return the bytes of the tar and its record.

        Args:
            class_means: [classes], mean probability of every class over the rows; None where the target is no soft labels.
        """
        assert self._samples is not None
        means = None if class_means is None else self._add("means.class_means", encode_class_means(class_means))
        data = b"".join([*self._pieces, tar.END_OF_ARCHIVE])
        tar_sha256 = digest(data)
        record = PartRecord(
            part=self.part,
            unit_name=unit_name,
            num_samples=len(self.samples.keys),
            tar_name=f"{self.part.name}.{tar_sha256[:16]}.tar",
            tar_bytes=len(data),
            tar_sha256=tar_sha256,
            samples=self._samples,
            class_means=means,
            blocks=tuple(self._blocks),
            dead_letters=dead_letters,
            statistics=statistics,
            provenance=provenance,
            earlier=earlier,
        )
        return data, record


def encode_class_means(means: npt.NDArray[np.float64]) -> bytes:
    """Return the block of mean class probabilities, float16 logs.

    Raises:
        FormatError: of more classes than a reader takes.
    """
    if len(means) > MAX_MEANS:
        raise FormatError(f"mean probabilities of {len(means)} classes, at most {MAX_MEANS} can be kept")
    with np.errstate(divide="ignore"):
        logs = np.log(means).astype(np.float16).view(np.uint16)
    planes = pack(logs, num_bits=16)
    return encode_block({"kind": "class_means", "num_classes": len(means)}, {f"logs{i}": plane for i, plane in enumerate(planes)})


def _read_class_means_header(header: dict[str, Any], *, num_classes: int) -> tuple[None, dict[str, int]]:
    found = header.get("num_classes")
    if header.get("kind") != "class_means" or type(found) is not int or not 0 < found <= MAX_MEANS:
        raise FormatError(f"not mean class probabilities: kind {header.get('kind')!r} of {found!r} classes, at most {MAX_MEANS}")
    if found != num_classes:
        raise FormatError(f"mean probabilities of {found} classes, where the labels have {num_classes}")
    return None, {"logs0": num_classes, "logs1": num_classes}


def decode_class_means(data: bytes, *, num_classes: int, origin: str) -> npt.NDArray[np.float64]:
    """Return float64 [classes], mean probabilities.

    Args:
        num_classes: of the labels that they are of.

    Raises:
        FormatError: damage, not such a block, or one of another number of classes.
    """
    _, streams = decode_block(data, origin=origin, read_header=partial(_read_class_means_header, num_classes=num_classes))
    try:
        patterns = unpack([streams["logs0"], streams["logs1"]], count=num_classes, num_bits=16)
    except FormatError as error:
        raise FormatError(f"{origin}: {error}") from error
    except KeyError as error:
        raise FormatError(f"{origin}: stream {error} is missing") from error
    logs = patterns.view(np.float16).astype(np.float64)
    if np.isnan(logs).any() or (logs > 1e-3).any():
        raise FormatError(f"{origin}: mean class probabilities above 1 or NaN")
    return np.exp(logs, out=logs)


def check_extent(data: bytes, extent: Extent, *, origin: str, imported: bool = False) -> None:
    """Refuse bytes that are not those a record committed.

    Args:
        imported: whether the labels were.

    Raises:
        CorruptError: too few bytes, or another checksum.
    """
    remedy = how_to_mend(imported=imported)
    if len(data) != extent.num_bytes:
        raise CorruptError(
            f"{origin}: {len(data)} of {extent.num_bytes} bytes at {extent.offset}; the part is truncated; {remedy}"
        )
    found = f"{checksum(data):016x}"
    if found != extent.checksum:
        problem = f"block at {extent.offset} has checksum {found}, committed was {extent.checksum}"
        raise CorruptError(f"{origin}: {problem}; {remedy}")
