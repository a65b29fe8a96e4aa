"""Blocks of every kind, broken: as bytes, behind a right checksum, in the header, and below the compression."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from storage.blocks import encode_block
from tests.reliability.fuzz_target import Reading, Target
from tests.reliability.mutation import mutated, replaced
from tests.storage.blocks import block_bytes, sealed
from tests.storage.test_fuzz_decoders import RENAMED, VALID, decode_targets, header_of, streams_of

Decode: TypeAlias = Callable[[bytes], object]

_KINDS = {
    "decode_labels": "labels of pictures",
    "decode_table": "samples of a part",
    "decode_means": "class means",
    "decode_frozen_head": "heads",
}


def _kind_of(decode: Decode, whole: bytes) -> str:
    if decode is decode_targets:
        return "targets of texts, tokens" if "vocabulary_size" in header_of(whole) else "vectors of pictures"
    return _KINDS[decode.__name__]


def block_targets() -> Iterator[Target]:
    """Yield the targets of each kind of block; what is read must keep the promises of `tests/storage/test_fuzz_decoders.py`."""
    kinds: dict[str, list[tuple[Decode, bytes]]] = {}
    for decode, whole in VALID:
        kinds.setdefault(_kind_of(decode, whole), []).append((decode, whole))
    for kind, valid in kinds.items():
        # A short block of one stream takes less looking for than the sixteen forms of others.
        weight = 0.4 if kind in {"class means", "samples of a part"} else 1.0
        yield Target(
            name=f"{kind}: bytes",
            seeds=tuple(valid),
            change=lambda made, rng: (made[0], mutated(made[1], rng)),
            prepare=lambda made: partial(made[0], made[1]),
            weight=6 * weight,
        )
        yield Target(
            name=f"{kind}: bytes, checksum right",
            seeds=tuple((decode, whole[:-8]) for decode, whole in valid),
            change=lambda made, rng: (made[0], mutated(made[1], rng)),
            prepare=lambda made: partial(made[0], sealed(made[1])),
            weight=14 * weight,
        )
        yield Target(
            name=f"{kind}: header, checksum right",
            seeds=tuple((decode, header_of(whole), _body_of(whole)) for decode, whole in valid),
            change=lambda made, rng: (made[0], replaced(made[1], rng), made[2]),
            prepare=lambda made: partial(made[0], block_bytes(made[1], made[2])),
            weight=8 * weight,
        )
        yield Target(
            name=f"{kind}: streams below zstd",
            seeds=tuple((decode, *_taken_apart(whole)) for decode, whole in valid),
            change=lambda made, rng: (made[0], made[1], _other_streams(made[2], rng)),
            prepare=_put_together,
            weight=7 * weight,
        )


def _body_of(whole: bytes) -> bytes:
    (length,) = struct.unpack("<I", whole[8:12])
    return whole[12 + length : -8]


def _taken_apart(whole: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the header as it is given to `encode_block`, and the streams."""
    header, streams = streams_of(whole)
    return {key: value for key, value in header.items() if key != "streams"}, {
        name: bytes(np.asarray(stream).tobytes()) for name, stream in streams.items()
    }


def _other_streams(valid: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    streams = dict(valid)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(sorted(streams))
        match rng.randrange(5):
            case 0 | 1:
                streams[name] = mutated(streams[name], rng)
            case 2:
                streams[name] = bytes([rng.choice((0, 1, 0x7C, 0x7F, 0x80, 0xFF))]) * len(streams[name])
            case 3:
                other = rng.choice(sorted(streams))
                streams[name], streams[other] = streams[other], streams[name]
            case _ if len(streams) > 1:
                streams[rng.choice(RENAMED)] = streams.pop(name)
    return streams


def _put_together(made: tuple[Decode, dict[str, Any], dict[str, bytes]]) -> Reading:
    decode, header, streams = made
    arrays = {name: np.frombuffer(data, dtype=np.uint8) for name, data in streams.items()}
    return partial(decode, encode_block(header, arrays))
