"""Codecs of soft labels: rows to named byte streams and back. Pure numpy; compression and checksums are the block's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, assert_never

from storage.codecs import compact, dense, exact, sampled
from storage.codecs.columns import Bytes
from storage.codecs.ranked import RankedLabels
from storage.codecs.sampled import DrawnLabels
from storage.codecs.stored import StoredRows
from storage.errors import FormatError
from storage.soft_labels import SoftLabels
from storage.specs import CompactCodec, DenseCodec, ExactCodec, SampledCodec, SoftLabelsSpec, ThresholdCodec

__all__ = ["DrawnLabels", "RankedLabels", "StoredRows", "UnstoredLabels", "decode", "encode", "read", "stream_lengths", "write"]

UnstoredLabels: TypeAlias = RankedLabels | DrawnLabels
"""Rows as they leave a teacher: drawn for the codecs that draw, ranked for all others."""


def encode(rows: UnstoredLabels, *, spec: SoftLabelsSpec) -> dict[str, Bytes]:
    """Return the byte streams of a block of rows.

    Raises:
        FormatError: rows that are not a distribution, or not of this spec.
    """
    if isinstance(rows, DrawnLabels):
        if not isinstance(spec.codec, SampledCodec | ThresholdCodec):
            raise FormatError(f"drawn classes; codec {spec.codec.kind} stores the most probable ones")
        return sampled.encode(rows, spec=spec)
    rows.check(num_classes=spec.num_classes)
    if rows.log_probs.shape[1] != spec.max_entries:
        raise FormatError(f"{rows.log_probs.shape[1]} classes a row; the spec asks for {spec.max_entries}")
    match spec.codec:
        case ExactCodec():
            return exact.encode(rows, spec=spec)
        case CompactCodec():
            return compact.encode(rows, spec=spec)
        case DenseCodec():
            return dense.encode(rows)
        case SampledCodec() | ThresholdCodec():
            raise FormatError(f"the most probable classes; codec {spec.codec.kind} stores drawn ones")
        case _:
            assert_never(spec.codec)


def stream_lengths(num_rows: int, *, spec: SoftLabelsSpec) -> dict[str, int]:
    """Return the most bytes each stream of `num_rows` rows may have; a reader allocates no more."""
    match spec.codec:
        case ExactCodec():
            return exact.stream_lengths(num_rows, spec=spec)
        case CompactCodec():
            return compact.stream_lengths(num_rows, spec=spec)
        case SampledCodec() | ThresholdCodec():
            return sampled.stream_lengths(num_rows, spec=spec)
        case DenseCodec():
            return dense.stream_lengths(num_rows, spec=spec)
        case _:
            assert_never(spec.codec)


def write(rows: StoredRows, *, spec: SoftLabelsSpec) -> dict[str, Bytes]:
    """Return the byte streams of a block of rows as `read` gave them."""
    match spec.codec:
        case ExactCodec():
            return exact.write(rows, spec=spec)
        case CompactCodec():
            return compact.write(rows, spec=spec)
        case SampledCodec() | ThresholdCodec():
            return sampled.write(rows, spec=spec)
        case DenseCodec():
            return dense.write(rows)
        case _:
            assert_never(spec.codec)


def read(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> StoredRows:
    """Return the rows of a block as the integers that are stored.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    try:
        match spec.codec:
            case ExactCodec():
                return exact.read(streams, num_rows=num_rows, spec=spec)
            case CompactCodec():
                return compact.read(streams, num_rows=num_rows, spec=spec)
            case SampledCodec() | ThresholdCodec():
                return sampled.read(streams, num_rows=num_rows, spec=spec)
            case DenseCodec():
                return dense.read(streams, num_rows=num_rows, spec=spec)
            case _:
                assert_never(spec.codec)
    except KeyError as error:
        raise FormatError(f"stream {error} is missing; the block holds {sorted(streams)}") from error


def decode(streams: Mapping[str, Bytes], *, num_rows: int, spec: SoftLabelsSpec) -> SoftLabels:
    """Return the rows of a block.

    Raises:
        FormatError: streams that `encode` cannot have made.
    """
    try:
        match spec.codec:
            case ExactCodec():
                return exact.decode(streams, num_rows=num_rows, spec=spec)
            case CompactCodec():
                return compact.decode(streams, num_rows=num_rows, spec=spec)
            case SampledCodec() | ThresholdCodec():
                return sampled.decode(streams, num_rows=num_rows, spec=spec)
            case DenseCodec():
                return dense.decode(streams, num_rows=num_rows, spec=spec)
            case _:
                assert_never(spec.codec)
    except KeyError as error:
        raise FormatError(f"stream {error} is missing; the block holds {sorted(streams)}") from error
