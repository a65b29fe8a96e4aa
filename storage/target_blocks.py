"""The block of any target: rows of one view over a contiguous run of a unit's samples, several a sample where it has tokens.

A block of texts carries its token ids, so that a student needs neither corpus nor tokenizer. Soft labels of pictures, a row a
view, have a leaner block of their own: `storage.label_blocks`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from storage.alignment import rows_per_sample
from storage.block_bounds import MAX_BLOCK_SAMPLES, MAX_BLOCK_VALUE_ROWS
from storage.block_fields import DIGEST_STRIDE, read_count, read_key_hash, read_present, read_view_digests
from storage.blocks import decode_block, encode_block
from storage.codecs import values as value_codecs
from storage.codecs.columns import Bytes
from storage.codecs.values import TargetValues, UnstoredValues
from storage.errors import FormatError, NewerReleaseError
from storage.specs import TargetSpec
from storage.text.token_rows import TokenRows, offsets_of
from storage.text.token_streams import MAX_BLOCK_TOKENS, decode_tokens, encode_tokens, token_stream_lengths

MAX_PICTURE_TOKENS = 65535
_TARGET: TypeAdapter[TargetSpec] = TypeAdapter(TargetSpec)


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetBlock:
    """Decoded rows of one view.

    Attributes:
        target: what the rows hold.
        view: view index.
        first_sample: position in the unit of the first sample covered.
        num_samples: samples covered; those that are not present are dead letters.
        positions: int64 [present], position in the unit of each sample that is present, ascending.
        key_hash: `storage.hashing.key_hash` of the keys of all samples covered.
        tokens: sequences of the samples that are present; None of pictures.
        view_digests: uint64 [present], 0 where no digest is stored; None of texts.
        row_offsets: int64 [present + 1], where the values of each sample begin.
        values: the rows.
    """

    target: TargetSpec
    view: int
    first_sample: int
    num_samples: int
    positions: npt.NDArray[np.int64]
    key_hash: int
    tokens: TokenRows | None
    view_digests: npt.NDArray[np.uint64] | None
    row_offsets: npt.NDArray[np.int64]
    values: TargetValues

    def __len__(self) -> int:
        return len(self.positions)


def encode_target_block(
    values: UnstoredValues,
    *,
    target: TargetSpec,
    view: int,
    first_sample: int,
    present: npt.NDArray[np.bool_],
    key_hash: int,
    tokens: TokenRows | None = None,
    vocabulary_size: int | None = None,
    tokens_per_picture: int | None = None,
    view_digests: npt.NDArray[np.uint64] | None = None,
) -> bytes:
    """Return the bytes of a block: of texts with `tokens`, of pictures with `view_digests`.

    Args:
        values: rows of the samples that are present, sample by sample.
        present: bool [samples covered], False for dead letters.
        tokens: sequences of the samples that are present.
        vocabulary_size: token ids are below it.
        tokens_per_picture: rows that every picture has where its target has one a token; 1 elsewhere.
        view_digests: uint64 [samples covered]; every `DIGEST_STRIDE`-th one is stored.

    Raises:
        FormatError: rows that do not match their samples, or are not of this target.
    """
    num_present = int(present.sum())
    header: dict[str, Any] = {
        "kind": "targets",
        "target": target.to_json(),
        "view": view,
        "first_sample": first_sample,
        "num_samples": len(present),
        "num_present": num_present,
        "key_hash": f"{key_hash:016x}",
        "num_rows": len(values),
    }
    streams: dict[str, Bytes] = {}
    if num_present < len(present):
        streams["present"] = np.packbits(present, bitorder="little")
    if tokens is not None and vocabulary_size is not None:
        masks = tokens.masks
        lengths, mask_counts = tokens.lengths, None if masks is None else masks.counts
        header["vocabulary_size"] = vocabulary_size
        header["num_tokens"] = len(tokens.token_ids)
        if masks is not None:
            header["num_masked"] = len(masks.positions)
        streams |= encode_tokens(tokens, vocabulary_size=vocabulary_size)
    elif tokens_per_picture is not None and view_digests is not None:
        if len(view_digests) != len(present):
            raise FormatError(f"{len(view_digests)} view digests for {len(present)} samples")
        _check_tokens_per_picture(tokens_per_picture)
        lengths, mask_counts = np.full(num_present, tokens_per_picture, dtype=np.int64), None
        header["tokens_per_picture"] = tokens_per_picture
        streams["view_digests"] = np.ascontiguousarray(view_digests[::DIGEST_STRIDE]).view(np.uint8)
    else:
        raise ValueError("a block is of texts (tokens and vocabulary_size) or of pictures (tokens_per_picture and view_digests)")
    _check_rows(target, lengths=lengths, mask_counts=mask_counts, num_present=num_present, num_rows=len(values))
    streams |= value_codecs.encode(values, target=target)
    return encode_block(header, streams)


def _check_tokens_per_picture(number: int) -> None:
    if not 1 <= number <= MAX_PICTURE_TOKENS:
        raise FormatError(
            f"{number} tokens a picture, at most {MAX_PICTURE_TOKENS}; one that has no rows of its own for tokens has 1"
        )


def _check_rows(
    target: TargetSpec,
    *,
    lengths: npt.NDArray[np.int64],
    mask_counts: npt.NDArray[np.int64] | None,
    num_present: int,
    num_rows: int,
) -> npt.NDArray[np.int64]:
    """Return int64 [present + 1], where each sample's rows begin, having made sure that there are as many as there must be."""
    if len(lengths) != num_present:
        raise FormatError(f"tokens of {len(lengths)} samples, {num_present} are present")
    counts = rows_per_sample(target, lengths=lengths, mask_counts=mask_counts)
    if counts.sum() != num_rows:
        raise FormatError(
            f"{num_rows} rows of {target.kind} for {num_present} samples whose tokens have {counts.sum()}: rows and tokens are "
            "not aligned"
        )
    return offsets_of(counts)


@functools.lru_cache(maxsize=64)
def _parse_target(data: str) -> TargetSpec:
    return _TARGET.validate_json(data)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    target: TargetSpec
    view: int
    first_sample: int
    num_samples: int
    num_present: int
    num_rows: int
    key_hash: int
    vocabulary_size: int
    num_tokens: int
    num_masked: int | None
    tokens_per_picture: int | None


def _read_header(header: dict[str, Any]) -> tuple[_Header, Mapping[str, int]]:
    if header.get("kind") != "targets":
        raise FormatError(f"not a block of targets but of {header.get('kind')!r}")
    num_samples = read_count(header, "num_samples", limit=MAX_BLOCK_SAMPLES + 1)
    num_present = read_count(header, "num_present", limit=num_samples + 1)
    num_rows = read_count(header, "num_rows", limit=MAX_BLOCK_VALUE_ROWS)
    try:
        target = _parse_target(json.dumps(header["target"]))
    except (KeyError, ValueError) as error:
        raise NewerReleaseError(f"target of a block: {error}; a newer release may have written it: upgrade decant") from error
    of_text = "vocabulary_size" in header
    read = _Header(
        target=target,
        view=read_count(header, "view", limit=2**31),
        first_sample=read_count(header, "first_sample", limit=2**31),
        num_samples=num_samples,
        num_present=num_present,
        num_rows=num_rows,
        key_hash=read_key_hash(header),
        vocabulary_size=read_count(header, "vocabulary_size", limit=2**32 + 1) if of_text else 0,
        num_tokens=read_count(header, "num_tokens", limit=MAX_BLOCK_TOKENS + 1) if of_text else 0,
        num_masked=read_count(header, "num_masked", limit=MAX_BLOCK_TOKENS + 1) if header.get("num_masked") is not None else None,
        tokens_per_picture=None if of_text else read_count(header, "tokens_per_picture", limit=MAX_PICTURE_TOKENS + 1),
    )
    if read.tokens_per_picture is not None:
        _check_tokens_per_picture(read.tokens_per_picture)
    limits = dict(value_codecs.stream_lengths(num_rows, target=target))
    if num_present < num_samples:
        limits["present"] = -(-num_samples // 8)
    if of_text:
        limits |= token_stream_lengths(
            num_present, num_tokens=read.num_tokens, num_masked=read.num_masked, vocabulary_size=read.vocabulary_size
        )
    else:
        limits["view_digests"] = 8 * -(-num_samples // DIGEST_STRIDE)
    return read, limits


def decode_target_block(data: bytes | memoryview, *, origin: str) -> TargetBlock:
    """Return the rows of a block, having checked every byte and that rows and tokens are aligned.

    Raises:
        FormatError: damage, another version, or anything `encode_target_block` cannot have written.
    """
    header, streams = decode_block(data, origin=origin, read_header=_read_header)
    try:
        return _decode(header, streams)
    except FormatError as error:
        raise FormatError(f"{origin}: {error}") from error


def _decode(header: _Header, streams: Mapping[str, Bytes]) -> TargetBlock:
    offsets = read_present(streams, num_samples=header.num_samples, num_present=header.num_present)
    tokens: TokenRows | None = None
    digests: npt.NDArray[np.uint64] | None = None
    if header.tokens_per_picture is None:
        tokens = decode_tokens(
            streams,
            num_sequences=header.num_present,
            num_tokens=header.num_tokens,
            num_masked=header.num_masked,
            vocabulary_size=header.vocabulary_size,
        )
        lengths, mask_counts = tokens.lengths, None if tokens.masks is None else tokens.masks.counts
    else:
        lengths, mask_counts = np.full(header.num_present, header.tokens_per_picture, dtype=np.int64), None
        digests = read_view_digests(streams, num_samples=header.num_samples)[offsets]
    row_offsets = _check_rows(
        header.target, lengths=lengths, mask_counts=mask_counts, num_present=header.num_present, num_rows=header.num_rows
    )
    return TargetBlock(
        target=header.target,
        view=header.view,
        first_sample=header.first_sample,
        num_samples=header.num_samples,
        positions=offsets + header.first_sample,
        key_hash=header.key_hash,
        tokens=tokens,
        view_digests=digests,
        row_offsets=row_offsets,
        values=value_codecs.decode(streams, num_rows=header.num_rows, target=header.target),
    )
