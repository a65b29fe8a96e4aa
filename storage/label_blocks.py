"""The block of soft labels: rows of one view over a contiguous run of a unit's samples."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage import codecs
from storage.blocks import decode_block, encode_block
from storage.codecs.ranked import RankedLabels
from storage.errors import FormatError
from storage.hashing import canonical_json
from storage.soft_labels import SoftLabels
from storage.specs import SoftLabelsSpec

DIGEST_STRIDE = 64
"""Every 64th sample of a block has the digest of its rendered view stored."""

MIN_BLOCK_ROWS = 256
MAX_BLOCK_ROWS = 4096
_BLOCK_ENTRIES = 204_800
_KEY_HASH = re.compile("[0-9a-f]{16}")


def block_rows(spec: SoftLabelsSpec) -> int:
    """Return the samples one block covers: a power of two, so that a decoded block stays inside a core's cache."""
    rows = 1 << max(0, (_BLOCK_ENTRIES // spec.max_entries).bit_length() - 1)
    return min(max(rows, MIN_BLOCK_ROWS), MAX_BLOCK_ROWS)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelBlock:
    """Decoded rows of one view.

    Attributes:
        view: view index.
        first_sample: position in the unit of the first sample covered.
        num_samples: samples covered; those without a row are dead letters.
        positions: int64 [rows], position in the unit of each row's sample, ascending.
        key_hash: `storage.hashing.key_hash` of the keys of all samples covered.
        view_digests: uint64 [rows], 0 where no digest is stored.
        soft_labels: the rows.
    """

    view: int
    first_sample: int
    num_samples: int
    positions: npt.NDArray[np.int64]
    key_hash: int
    view_digests: npt.NDArray[np.uint64]
    soft_labels: SoftLabels


def encode_label_block(
    rows: RankedLabels,
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
    streams = codecs.encode(rows, spec=spec)
    if not present.all():
        streams["present"] = np.packbits(present, bitorder="little")
    streams["view_digests"] = np.ascontiguousarray(view_digests[::DIGEST_STRIDE]).view(np.uint8)
    header = {
        "kind": "soft_labels",
        "target": spec.to_json(),
        "view": view,
        "first_sample": first_sample,
        "num_samples": len(present),
        "num_rows": len(rows),
        "key_hash": f"{key_hash:016x}",
    }
    return encode_block(header, streams)


@functools.lru_cache(maxsize=64)
def _parse_spec(data: bytes) -> SoftLabelsSpec:
    # Blocks of a part share their spec; checking it anew would cost more than decoding a small block.
    return SoftLabelsSpec.model_validate_json(data)


def _checked(header: dict[str, Any]) -> tuple[SoftLabelsSpec, int, int]:
    if header.get("kind") != "soft_labels":
        raise FormatError(f"not a block of soft labels but of {header.get('kind')!r}")
    try:
        spec = _parse_spec(canonical_json(header["target"]))
    except (KeyError, ValueError) as error:
        raise FormatError(f"soft label spec of a block: {error}; a newer release may have written it") from error
    num_rows, num_samples = header.get("num_rows"), header.get("num_samples")
    for name in ("view", "first_sample"):
        if type(header.get(name)) is not int or not 0 <= header[name] < 2**31:
            raise FormatError(f"{name} {header.get(name)!r} of a block")
    if not (type(num_rows) is int and type(num_samples) is int and 0 <= num_rows <= num_samples <= MAX_BLOCK_ROWS):
        raise FormatError(f"{num_rows!r} rows over {num_samples!r} samples in one block, at most {MAX_BLOCK_ROWS}")
    return spec, num_rows, num_samples


def _limits(header: dict[str, Any]) -> dict[str, int]:
    spec, num_rows, num_samples = _checked(header)
    present = {"present": -(-num_samples // 8)} if num_rows < num_samples else {}
    return codecs.stream_lengths(num_rows, spec=spec) | present | {"view_digests": 8 * -(-num_samples // DIGEST_STRIDE)}


def decode_label_block(data: bytes | memoryview, *, origin: str) -> LabelBlock:
    """Return the rows of a block, having checked every byte.

    Raises:
        FormatError: damage, another version, or anything `encode_label_block` cannot have written.
    """
    block = decode_block(data, origin=origin, stream_limits=_limits)
    spec, num_rows, num_samples = _checked(block.header)
    header = block.header
    digests = np.zeros(num_samples, dtype=np.uint64)
    stored = block.streams.get("view_digests", np.zeros(0, dtype=np.uint8))
    if len(stored) != 8 * len(digests[::DIGEST_STRIDE]):
        raise FormatError(f"{origin}: {len(stored)} bytes of view digests for {num_samples} samples")
    digests[::DIGEST_STRIDE] = stored.view(np.uint64)
    if num_rows == num_samples:
        offsets = np.arange(num_samples, dtype=np.int64)
    else:
        bits = block.streams.get("present", np.zeros(0, dtype=np.uint8))
        offsets = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:num_samples]).astype(np.int64)
        if len(offsets) != num_rows or len(bits) != -(-num_samples // 8):
            raise FormatError(f"{origin}: {len(offsets)} samples are present, {num_rows} rows are stored")
    key_hash = header.get("key_hash")
    if not (isinstance(key_hash, str) and _KEY_HASH.fullmatch(key_hash)):
        raise FormatError(f"{origin}: key hash {key_hash!r}")
    try:
        soft_labels = codecs.decode(block.streams, num_rows=num_rows, spec=spec)
    except FormatError as error:
        raise FormatError(f"{origin}: {error}") from error
    return LabelBlock(
        view=header["view"],
        first_sample=header["first_sample"],
        num_samples=num_samples,
        positions=offsets + header["first_sample"],
        key_hash=int(key_hash, 16),
        view_digests=digests[offsets],
        soft_labels=soft_labels,
    )
