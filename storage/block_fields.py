"""What headers and streams of all blocks of rows have in common: counts, key hashes, who is present, digests of views."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.codecs.columns import Bytes
from storage.errors import FormatError

DIGEST_STRIDE = 64
"""Every 64th sample of a block has the digest of its rendered view stored."""

_KEY_HASH = re.compile("[0-9a-f]{16}")


def read_count(header: dict[str, Any], name: str, *, limit: int) -> int:
    """Return a whole number below `limit` of a header.

    Raises:
        FormatError: it is none.
    """
    value = header.get(name)
    if type(value) is not int or not 0 <= value < limit:
        raise FormatError(f"{name} {value!r} of a block")
    return value


def read_key_hash(header: dict[str, Any]) -> int:
    """Return the hash of the keys of a header.

    Raises:
        FormatError: it is none.
    """
    key_hash = header.get("key_hash")
    if not (isinstance(key_hash, str) and _KEY_HASH.fullmatch(key_hash)):
        raise FormatError(f"key hash {key_hash!r}")
    return int(key_hash, 16)


def read_present(streams: Mapping[str, Bytes], *, num_samples: int, num_present: int) -> npt.NDArray[np.int64]:
    """Return int64 [present], the samples of a block that are present, ascending.

    Raises:
        FormatError: other than `num_present`.
    """
    if num_present == num_samples:
        return np.arange(num_samples, dtype=np.int64)
    bits = streams.get("present", np.zeros(0, dtype=np.uint8))
    offsets = np.flatnonzero(np.unpackbits(bits, bitorder="little")[:num_samples]).astype(np.int64)
    if len(offsets) != num_present or len(bits) != -(-num_samples // 8):
        raise FormatError(f"{len(offsets)} samples are present, {num_present} are stored")
    return offsets


def read_view_digests(streams: Mapping[str, Bytes], *, num_samples: int) -> npt.NDArray[np.uint64]:
    """Return uint64 [samples], digests of rendered views, 0 where none is stored.

    Raises:
        FormatError: a stream of another length.
    """
    digests = np.zeros(num_samples, dtype=np.uint64)
    stored = streams.get("view_digests", np.zeros(0, dtype=np.uint8))
    if len(stored) != 8 * len(digests[::DIGEST_STRIDE]):
        raise FormatError(f"{len(stored)} bytes of view digests for {num_samples} samples")
    digests[::DIGEST_STRIDE] = stored.view(np.uint64)
    return digests
