"""Token sequences as the byte streams of a block, each guarded by a checksum of its own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import xxhash

from storage.codecs.columns import Bytes, pack, plane_lengths, unpack
from storage.errors import FormatError
from storage.text.token_rows import MaskRows, TokenRows, offsets_of

MAX_SEQUENCE_TOKENS = 65535
MAX_BLOCK_TOKENS = 1 << 22
_COUNT_BITS = 16
_CHECKSUM_BITS = 32


def id_bits(vocabulary_size: int) -> int:
    """Return the bits a token id is stored with: two bytes, or as many as the vocabulary needs."""
    return max(16, -(-(vocabulary_size - 1).bit_length() // 8) * 8)


def token_checksums(tokens: TokenRows) -> npt.NDArray[np.uint32]:
    """Return uint32 [sequences], the low half of an xxh3-64 over each sequence's ids, masked positions and inputs there."""
    ids = np.ascontiguousarray(tokens.token_ids, dtype="<u4").view(np.uint8)
    bounds = (4 * tokens.offsets).tolist()
    masks = tokens.masks
    if masks is not None:
        pairs = np.column_stack([masks.positions.astype("<u4"), masks.input_ids.astype("<u4")])
        seen = np.ascontiguousarray(pairs).reshape(-1).view(np.uint8)
        mask_bounds = (8 * masks.offsets).tolist()
    found = np.empty(len(tokens), dtype=np.uint32)
    for index in range(len(tokens)):
        data = ids[bounds[index] : bounds[index + 1]].tobytes()
        if masks is not None:
            data += seen[mask_bounds[index] : mask_bounds[index + 1]].tobytes()
        found[index] = xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF
    return found


def encode_tokens(tokens: TokenRows, *, vocabulary_size: int) -> dict[str, Bytes]:
    """Return the byte streams of sequences.

    Raises:
        FormatError: they are no sequences of this vocabulary, or too long.
    """
    tokens.check(vocabulary_size=vocabulary_size)
    if tokens.lengths.max(initial=0) > MAX_SEQUENCE_TOKENS or len(tokens.token_ids) > MAX_BLOCK_TOKENS:
        raise FormatError(
            f"a sequence of {tokens.lengths.max(initial=0)} tokens, {len(tokens.token_ids)} in a block; at most "
            f"{MAX_SEQUENCE_TOKENS} and {MAX_BLOCK_TOKENS}"
        )
    columns: dict[str, tuple[npt.NDArray[np.unsignedinteger], int]] = {
        "lengths": (tokens.lengths.astype(np.uint16), _COUNT_BITS),
        "tokens": (tokens.token_ids, id_bits(vocabulary_size)),
        "token_checksums": (token_checksums(tokens), _CHECKSUM_BITS),
    }
    if tokens.masks is not None:
        masks = tokens.masks
        columns |= {
            "mask_counts": (masks.counts.astype(np.uint16), _COUNT_BITS),
            "mask_positions": (masks.positions.astype(np.uint16), _COUNT_BITS),
            "mask_inputs": (masks.input_ids, id_bits(vocabulary_size)),
        }
    return {
        f"{name}{index}": plane
        for name, (values, bits) in columns.items()
        for index, plane in enumerate(pack(np.ascontiguousarray(values), num_bits=bits))
    }


def token_stream_lengths(num_sequences: int, *, num_tokens: int, num_masked: int | None, vocabulary_size: int) -> dict[str, int]:
    """Return the bytes each stream has; a reader allocates no more.

    Args:
        num_masked: None where there are no masks.
    """
    bits = id_bits(vocabulary_size)
    columns = {
        "lengths": (num_sequences, _COUNT_BITS),
        "tokens": (num_tokens, bits),
        "token_checksums": (num_sequences, _CHECKSUM_BITS),
    }
    if num_masked is not None:
        columns |= {
            "mask_counts": (num_sequences, _COUNT_BITS),
            "mask_positions": (num_masked, _COUNT_BITS),
            "mask_inputs": (num_masked, bits),
        }
    return {
        f"{name}{index}": length
        for name, (count, num_bits) in columns.items()
        for index, length in enumerate(plane_lengths(count, num_bits=num_bits))
    }


def decode_tokens(
    streams: Mapping[str, Bytes], *, num_sequences: int, num_tokens: int, num_masked: int | None, vocabulary_size: int
) -> TokenRows:
    """Return the sequences of byte streams.

    Raises:
        FormatError: streams that `encode_tokens` cannot have made, or a sequence that is not the one that was written.
    """
    bits = id_bits(vocabulary_size)

    def column(name: str, *, count: int, num_bits: int) -> npt.NDArray[np.unsignedinteger]:
        planes = len(plane_lengths(count, num_bits=num_bits))
        try:
            return unpack([streams[f"{name}{index}"] for index in range(planes)], count=count, num_bits=num_bits)
        except KeyError as error:
            raise FormatError(f"stream {error} is missing; the block holds {sorted(streams)}") from error

    def offsets(name: str, *, total: int, of: str) -> npt.NDArray[np.int64]:
        found = offsets_of(column(name, count=num_sequences, num_bits=_COUNT_BITS))
        if found[-1] != total:
            raise FormatError(f"{name} sum to {found[-1]}, the block has {total} {of}")
        return found

    masks = None
    if num_masked is not None:
        masks = MaskRows(
            offsets=offsets("mask_counts", total=num_masked, of="masked tokens"),
            positions=column("mask_positions", count=num_masked, num_bits=_COUNT_BITS).astype(np.int64),
            input_ids=column("mask_inputs", count=num_masked, num_bits=bits).astype(np.uint32),
        )
    tokens = TokenRows(
        offsets=offsets("lengths", total=num_tokens, of="tokens"),
        token_ids=column("tokens", count=num_tokens, num_bits=bits).astype(np.uint32),
        masks=masks,
    )
    tokens.check(vocabulary_size=vocabulary_size)
    stored = column("token_checksums", count=num_sequences, num_bits=_CHECKSUM_BITS)
    differing = np.flatnonzero(token_checksums(tokens) != stored)
    if len(differing):
        raise FormatError(f"sequence {int(differing[0])} of the block is not the one that was written: its checksum differs")
    return tokens
