"""Fingerprints of specs and digests of bytes.

A fingerprint names what something *is* (a hash of a spec); a digest names what something *holds* (a hash of bytes).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import xxhash

_SEAL_BYTES = 66


def canonical_json(value: Any) -> bytes:
    """Encode JSON data so that equal values give equal bytes.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON cannot carry.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def fingerprint(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value`, 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest(data: bytes | memoryview) -> str:
    """Return the sha256 of bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def seal(body: bytes) -> bytes:
    """Return bytes followed by their sha256 on a line of its own, so that a reader sees when any were changed or cut off."""
    return body + b"\n" + digest(body).encode() + b"\n"


def unseal(data: bytes) -> bytes | None:
    """Return the bytes that `seal` was given, or None if `data` is nothing that it returned."""
    body = data[:-_SEAL_BYTES]
    return body if seal(body) == data else None


def checksum(data: bytes | memoryview) -> int:
    """Return the xxh3-64 of bytes: fast, for finding damage, not for identity."""
    return xxhash.xxh3_64_intdigest(data)


def key_hash(keys: Iterable[str]) -> int:
    """Return one xxh3-64 over keys in order, each ended by a zero byte (keys never hold one)."""
    return xxhash.xxh3_64_intdigest(b"".join(key.encode() + b"\0" for key in keys))
