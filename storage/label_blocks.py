"""The block of soft labels: rows of one view over a contiguous run of a unit's samples."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage import codecs
from storage.block_fields import DIGEST_STRIDE, read_count, read_key_hash, read_present, read_view_digests
from storage.blocks import decode_block, encode_block
from storage.codecs import UnstoredLabels
from storage.codecs.columns import Bytes
from storage.codecs.stored import interleave
from storage.errors import FormatError, NewerReleaseError
from storage.soft_labels import SoftLabels
from storage.specs import SoftLabelsSpec

MIN_BLOCK_ROWS = 320
MAX_BLOCK_ROWS = 8000
"""No powers of two: columns a power of two apart fall on the same cache lines, and transposing them takes three times as long."""
_BLOCK_ENTRIES = 400000


def block_rows(spec: SoftLabelsSpec, *, num_samples: int) -> int:
    """Return the samples one block of a unit of `num_samples` covers: even shares, of a few megabytes decoded."""
    most = min(max(_BLOCK_ENTRIES // spec.max_entries, MIN_BLOCK_ROWS), MAX_BLOCK_ROWS)
    num_blocks = max(1, -(-num_samples // most))
    return max(1, -(-num_samples // num_blocks))


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelBlock:
    """Decoded rows of one view.

    Attributes:
        target: what the rows hold.
        view: view index.
        first_sample: position in the unit of the first sample covered.
        num_samples: samples covered; those without a row are dead letters.
        positions: int64 [rows], position in the unit of each row's sample, ascending.
        key_hash: `storage.hashing.key_hash` of the keys of all samples covered.
        view_digests: uint64 [rows], 0 where no digest is stored.
        soft_labels: the rows.
    """

    target: SoftLabelsSpec
    view: int
    first_sample: int
    num_samples: int
    positions: npt.NDArray[np.int64]
    key_hash: int
    view_digests: npt.NDArray[np.uint64]
    soft_labels: SoftLabels


def encode_label_block(
    rows: UnstoredLabels,
    *,
    spec: SoftLabelsSpec,
    view: int,
    first_sample: int,
    present: npt.NDArray[np.bool_],
    key_hash: int,
    view_digests: npt.NDArray[np.uint64],
) -> bytes:
    """Return the bytes of a block.

    Args:
        rows: one row for each sample that is present.
        present: bool [samples covered], False for dead letters.
        view_digests: uint64 [samples covered]; every `DIGEST_STRIDE`-th one is stored.
    """
    return _encode(
        codecs.encode(rows, spec=spec),
        spec=spec,
        view=view,
        first_sample=first_sample,
        present=present,
        key_hash=key_hash,
        view_digests=view_digests,
    )


def _encode(
    streams: dict[str, Bytes],
    *,
    spec: SoftLabelsSpec,
    view: int,
    first_sample: int,
    present: npt.NDArray[np.bool_],
    key_hash: int,
    view_digests: npt.NDArray[np.uint64],
) -> bytes:
    if not present.all():
        streams["present"] = np.packbits(present, bitorder="little")
    streams["view_digests"] = np.ascontiguousarray(view_digests[::DIGEST_STRIDE]).view(np.uint8)
    header = {
        "kind": "soft_labels",
        "target": spec.to_json(),
        "view": view,
        "first_sample": first_sample,
        "num_samples": len(present),
        "num_rows": int(present.sum()),
        "key_hash": f"{key_hash:016x}",
    }
    return encode_block(header, streams)


@functools.lru_cache(maxsize=64)
def _parse_target(data: str, *, num_rows: int) -> tuple[SoftLabelsSpec, dict[str, int]]:
    # Blocks of a part share their spec and mostly their size; checking it anew would cost more than decoding a small block.
    spec = SoftLabelsSpec.model_validate_json(data)
    return spec, codecs.stream_lengths(num_rows, spec=spec)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    spec: SoftLabelsSpec
    view: int
    first_sample: int
    num_samples: int
    num_rows: int
    key_hash: int


def _read_header(header: dict[str, Any]) -> tuple[_Header, dict[str, int]]:
    if header.get("kind") != "soft_labels":
        raise FormatError(f"not a block of soft labels but of {header.get('kind')!r}")
    num_rows, num_samples = header.get("num_rows"), header.get("num_samples")
    if not (type(num_rows) is int and type(num_samples) is int and 0 <= num_rows <= num_samples <= MAX_BLOCK_ROWS):
        raise FormatError(f"{num_rows!r} rows over {num_samples!r} samples in one block, at most {MAX_BLOCK_ROWS}")
    try:
        spec, lengths = _parse_target(json.dumps(header["target"]), num_rows=num_rows)
    except (KeyError, ValueError) as error:
        problem = f"soft label spec of a block: {error}; a newer release may have written it: upgrade decant"
        raise NewerReleaseError(problem) from error
    read = _Header(
        spec=spec,
        view=read_count(header, "view", limit=2**31),
        first_sample=read_count(header, "first_sample", limit=2**31),
        num_samples=num_samples,
        num_rows=num_rows,
        key_hash=read_key_hash(header),
    )
    present = {"present": -(-num_samples // 8)} if num_rows < num_samples else {}
    digests = {"view_digests": 8 * -(-num_samples // DIGEST_STRIDE)}
    return read, lengths | present | digests


def decode_label_block(data: bytes | memoryview, *, origin: str) -> LabelBlock:
    """Return the rows of a block, having checked every byte.

    Raises:
        FormatError: damage, another version, or anything `encode_label_block` cannot have written.
    """
    header, streams = decode_block(data, origin=origin, read_header=_read_header)
    try:
        digests = read_view_digests(streams, num_samples=header.num_samples)
        offsets = read_present(streams, num_samples=header.num_samples, num_present=header.num_rows)
        soft_labels = codecs.decode(streams, num_rows=header.num_rows, spec=header.spec)
    except FormatError as error:
        raise FormatError(f"{origin}: {error}") from error
    complete = header.num_rows == header.num_samples
    return LabelBlock(
        target=header.spec,
        view=header.view,
        first_sample=header.first_sample,
        num_samples=header.num_samples,
        positions=offsets + header.first_sample,
        key_hash=header.key_hash,
        view_digests=digests if complete else digests[offsets],
        soft_labels=soft_labels,
    )


def fill_label_block(
    data: bytes, rows: UnstoredLabels, *, offsets: npt.NDArray[np.int64], view_digests: npt.NDArray[np.uint64], origin: str
) -> bytes:
    """Return a block with rows for samples that had none; what is stored of all other rows stays as it is, bit by bit.

    Args:
        data: the block.
        rows: the new rows.
        offsets: int64 [new rows], ascending, in the block's samples; none of them has a row.
        view_digests: uint64 [samples covered]; taken where the block has none.

    Raises:
        FormatError: damage, or a sample that has a row already.
    """
    header, streams = decode_block(data, origin=origin, read_header=_read_header)
    there = read_present(streams, num_samples=header.num_samples, num_present=header.num_rows)
    order = np.argsort(np.concatenate([there, offsets]), kind="stable")
    present = np.zeros(header.num_samples, dtype=np.bool_)
    present[there] = True
    if present[offsets].any():
        raise FormatError(f"{origin}: sample {int(offsets[present[offsets]][0])} of a block has a row already")
    present[offsets] = True
    added = codecs.read(codecs.encode(rows, spec=header.spec), num_rows=len(rows), spec=header.spec)
    stored = interleave(codecs.read(streams, num_rows=header.num_rows, spec=header.spec), added, order=order)
    digests = read_view_digests(streams, num_samples=header.num_samples)
    return _encode(
        codecs.write(stored, spec=header.spec),
        spec=header.spec,
        view=header.view,
        first_sample=header.first_sample,
        present=present,
        key_hash=header.key_hash,
        view_digests=np.where(digests == 0, view_digests, digests),
    )
