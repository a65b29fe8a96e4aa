"""Blocks written by hand, so that what is wrong with them is not what a checksum finds."""

from __future__ import annotations

import json
import struct

import xxhash


def sealed(data):
    """Bytes with the checksum of a block behind them."""
    return data + struct.pack("<Q", xxhash.xxh3_64_intdigest(data))


def block_bytes(header, *bodies, magic=b"DECANT\0\1"):
    """A block of a header (JSON data, or bytes as they are) and stored streams."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return sealed(magic + struct.pack("<I", len(head)) + head + b"".join(bodies))
