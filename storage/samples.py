"""The samples of a source unit as a part keeps them: keys and hard labels, once for all views."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.blocks import MAX_STREAM_BYTES, decode_block, encode_block
from storage.codecs.columns import pack, unpack
from storage.errors import FormatError
from storage.sources.base import NO_LABEL
from storage.sources.checks import MAX_KEY_BYTES, MAX_LABEL

MAX_UNIT_SAMPLES = 1 << 24
_KEY_BYTES = 2 * MAX_KEY_BYTES
"""What a sample adds at most to the table's keys: those of a text's sequences say where each begins, too."""
_SPARE_SAMPLES = 4096
_SAMPLES_A_BYTE = 32
"""Keys differ, and what is new in each takes some bits, whatever compresses it: a byte of a table holds far fewer samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleTable:
    """Keys and hard labels of a unit's samples, in position order.

    Attributes:
        keys: unique in the source.
        labels: int64 [samples], NO_LABEL where there is none.
    """

    keys: tuple[str, ...]
    labels: npt.NDArray[np.int64]


def encode_samples(table: SampleTable) -> bytes:
    """Return the block of a sample table.

    Raises:
        FormatError: a label below NO_LABEL or above 2^32 - 2, a key that holds a zero byte, or more samples or longer keys than a
            part holds.
    """
    if len(table.labels) and not NO_LABEL <= int(table.labels.min()) <= int(table.labels.max()) <= MAX_LABEL:
        raise FormatError(f"labels from {table.labels.min()} to {table.labels.max()} leave [{NO_LABEL}, {MAX_LABEL}]")
    if len(table.keys) > MAX_UNIT_SAMPLES:
        raise FormatError(f"{len(table.keys)} samples of a unit, at most {MAX_UNIT_SAMPLES} fit in a part")
    if any("\0" in key for key in table.keys):
        raise FormatError("a key holds a zero byte, which ends keys")
    keys = "\0".join(table.keys).encode()
    if len(keys) > _max_keys(len(table.keys)):
        raise FormatError(
            f"keys of {len(keys)} bytes for {len(table.keys)} samples, at most {_max_keys(len(table.keys))} fit in a part; give "
            "shorter keys, or fewer samples a unit"
        )
    labels = (table.labels + 1).astype(np.uint32)
    streams = {"keys": np.frombuffer(keys, dtype=np.uint8)}
    streams |= {f"labels{i}": plane for i, plane in enumerate(pack(labels, num_bits=32))}
    return encode_block({"kind": "samples", "num_samples": len(table.keys)}, streams, text=True)


def _max_keys(num_samples: int) -> int:
    return min(_KEY_BYTES * num_samples, MAX_STREAM_BYTES)


def _read_header(header: dict[str, Any], *, num_bytes: int) -> tuple[int, dict[str, int]]:
    num_samples = header.get("num_samples")
    if header.get("kind") != "samples" or type(num_samples) is not int or not 0 <= num_samples <= MAX_UNIT_SAMPLES:
        raise FormatError(f"not a sample table: kind {header.get('kind')!r} of {num_samples!r} samples")
    if num_samples > _SPARE_SAMPLES + _SAMPLES_A_BYTE * num_bytes:
        raise FormatError(f"{num_samples} different keys cannot lie in {num_bytes} bytes")
    return num_samples, {"keys": _max_keys(num_samples), **{f"labels{i}": num_samples for i in range(4)}}


def decode_samples(data: bytes, *, origin: str) -> SampleTable:
    """Return the sample table of a block.

    Raises:
        FormatError: damage, or not a sample table.
    """
    num_samples, streams = decode_block(data, origin=origin, read_header=partial(_read_header, num_bytes=len(data)))
    try:
        # Counted before they are taken apart: each of 2^30 empty keys would be an object.
        num_keys = len(streams["keys"]) - int(np.count_nonzero(streams["keys"])) + 1
        if num_samples and num_keys != num_samples:
            raise FormatError(f"{num_keys} keys for {num_samples} samples")
        keys = tuple(str(streams["keys"].data, "utf-8").split("\0")) if num_samples else ()
        labels = unpack([streams[f"labels{i}"] for i in range(4)], count=num_samples, num_bits=32)
    except FormatError as error:
        raise FormatError(f"{origin}: {error}") from error
    except (KeyError, UnicodeDecodeError) as error:
        raise FormatError(f"{origin}: sample table: {error!r}") from error
    return SampleTable(keys=keys, labels=labels.astype(np.int64) + NO_LABEL)
