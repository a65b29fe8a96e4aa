"""The samples of a source unit as a part keeps them: keys and hard labels, once for all views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.blocks import MAX_STREAM_BYTES, decode_block, encode_block
from storage.codecs.columns import pack, unpack
from storage.errors import FormatError
from storage.sources.base import NO_LABEL
from storage.sources.checks import MAX_LABEL

MAX_UNIT_SAMPLES = 1 << 24


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
        FormatError: a label below NO_LABEL or above 2^32 - 2, a key that holds a zero byte, or more samples than a part holds.
    """
    if len(table.labels) and not NO_LABEL <= int(table.labels.min()) <= int(table.labels.max()) <= MAX_LABEL:
        raise FormatError(f"labels from {table.labels.min()} to {table.labels.max()} leave [{NO_LABEL}, {MAX_LABEL}]")
    if len(table.keys) > MAX_UNIT_SAMPLES:
        raise FormatError(f"{len(table.keys)} samples of a unit, at most {MAX_UNIT_SAMPLES} fit in a part")
    if any("\0" in key for key in table.keys):
        raise FormatError("a key holds a zero byte, which ends keys")
    keys = "\0".join(table.keys).encode()
    labels = (table.labels + 1).astype(np.uint32)
    streams = {"keys": np.frombuffer(keys, dtype=np.uint8)}
    streams |= {f"labels{i}": plane for i, plane in enumerate(pack(labels, num_bits=32))}
    return encode_block({"kind": "samples", "num_samples": len(table.keys)}, streams, text=True)


def _read_header(header: dict[str, Any]) -> tuple[int, dict[str, int]]:
    num_samples = header.get("num_samples")
    if header.get("kind") != "samples" or type(num_samples) is not int or not 0 <= num_samples <= MAX_UNIT_SAMPLES:
        raise FormatError(f"not a sample table: kind {header.get('kind')!r} of {num_samples!r} samples")
    return num_samples, {"keys": MAX_STREAM_BYTES, **{f"labels{i}": num_samples for i in range(4)}}


def decode_samples(data: bytes, *, origin: str) -> SampleTable:
    """Return the sample table of a block.

    Raises:
        FormatError: damage, or not a sample table.
    """
    num_samples, streams = decode_block(data, origin=origin, read_header=_read_header)
    try:
        keys = tuple(streams["keys"].tobytes().decode().split("\0")) if num_samples else ()
        labels = unpack([streams[f"labels{i}"] for i in range(4)], count=num_samples, num_bits=32)
    except FormatError as error:
        raise FormatError(f"{origin}: {error}") from error
    except (KeyError, UnicodeDecodeError) as error:
        raise FormatError(f"{origin}: sample table: {error!r}") from error
    if len(keys) != num_samples:
        raise FormatError(f"{origin}: {len(keys)} keys for {num_samples} samples")
    return SampleTable(keys=keys, labels=labels.astype(np.int64) + NO_LABEL)
