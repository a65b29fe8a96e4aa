"""The block: a self-describing run of bytes that holds named streams. Byte-exact description in docs/format.md.

magic (8) | header bytes (u32) | header (canonical JSON) | streams | xxh3-64 of all before (u64); integers are little-endian.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import zstandard

from storage.allocation import keep_freed_memory
from storage.codecs.columns import Bytes
from storage.errors import FormatError, NewerReleaseError
from storage.hashing import canonical_json, checksum

MAGIC = b"DECANT\x00\x01"
"""Six letters, a zero byte, and the version of the container."""

MAX_HEADER_BYTES = 1 << 16
MAX_HEADER_BRACKETS = 256
"""JSON nests no deeper than it opens lists and objects: no header exhausts the stack."""
MAX_STREAM_BYTES = 1 << 30
_SPARE_RAW_BYTES = 1 << 28
_RAW_BYTES_A_BYTE = 256
"""Planes of zeros shrink 30,000-fold. What holds labels does not, and a small block is not to fill a machine's memory."""
_LENGTH = struct.Struct("<I")
_CHECKSUM = struct.Struct("<Q")
_ZSTD_NOISE = {"strategy": zstandard.STRATEGY_FAST, "min_match": 7}
"""Level 3 without its search for short matches: planes of noise have none worth taking. Smaller, and faster both ways."""
_TEXT_LEVEL = 12
"""Keys are text, written once a unit: a fifth smaller than at level 3."""

_WORTHWHILE = 19 / 20
"""A stream that zstd makes hardly smaller is stored as it is: taking it apart again would cost every reader more."""

_local = threading.local()
T = TypeVar("T")


def _compressor(*, text: bool) -> zstandard.ZstdCompressor:
    name = "text_compressor" if text else "noise_compressor"
    if not hasattr(_local, name):
        noise = zstandard.ZstdCompressionParameters.from_level(3, write_checksum=1, write_content_size=1, **_ZSTD_NOISE)
        # A bare level is fitted to the size of what is compressed; keys are short.
        options = {"level": _TEXT_LEVEL, "write_checksum": True} if text else {"compression_params": noise}
        setattr(_local, name, zstandard.ZstdCompressor(**options))
    compressor: zstandard.ZstdCompressor = getattr(_local, name)
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _local.decompressor
    return decompressor


def encode_block(header: Mapping[str, Any], streams: Mapping[str, Bytes], *, text: bool = False) -> bytes:
    """Return the bytes of a block.

    Args:
        header: JSON fields; the key "streams" is the container's own.
        streams: uint8 arrays by name, stored in the order given, each as zstd where that saves a twentieth.
        text: whether the streams are text rather than planes of numbers; only how well they are compressed depends on it.
    """
    table: list[list[Any]] = []
    bodies: list[bytes] = []
    for name, values in streams.items():
        raw = values.tobytes()
        packed = _compressor(text=text).compress(raw)
        body = packed if len(packed) <= _WORTHWHILE * len(raw) else raw
        table.append([name, len(raw), len(body)])
        bodies.append(body)
    head = canonical_json({**header, "streams": table})
    if len(head) > MAX_HEADER_BYTES or _brackets(head) > MAX_HEADER_BRACKETS:
        limits = f"{MAX_HEADER_BYTES} bytes or {MAX_HEADER_BRACKETS} brackets"
        raise FormatError(f"a block header of {len(head)} bytes and {_brackets(head)} brackets is more than {limits}")
    data = b"".join([MAGIC, _LENGTH.pack(len(head)), head, *bodies])
    raw_bytes = sum(raw for _, raw, _ in table)
    if raw_bytes > _max_raw_bytes(len(data)):
        raise FormatError(
            f"streams of {raw_bytes} bytes in a block of {len(data)}, which no reader takes: hardly anything in them differs"
        )
    return data + _CHECKSUM.pack(checksum(data))


def _max_raw_bytes(num_bytes: int) -> int:
    return _SPARE_RAW_BYTES + _RAW_BYTES_A_BYTE * num_bytes


def _brackets(head: bytes) -> int:
    return head.count(b"[") + head.count(b"{")


def _header(data: memoryview, *, origin: str) -> tuple[dict[str, Any], int]:
    start = len(MAGIC) + _LENGTH.size
    if len(data) < start + _CHECKSUM.size:
        raise FormatError(f"{origin}: {len(data)} bytes are too few for a block")
    if data[:7] != MAGIC[:7]:
        raise FormatError(f"{origin}: not a block; it starts with {bytes(data[:8])!r}")
    if data[:8] != MAGIC:
        raise NewerReleaseError(f"{origin}: block container version {data[7]}, this release reads {MAGIC[7]}; upgrade decant")
    if _CHECKSUM.unpack(data[-8:])[0] != checksum(data[:-8]):
        raise FormatError(f"{origin}: checksum differs; the block is damaged")
    (length,) = _LENGTH.unpack(data[8:12])
    if length > MAX_HEADER_BYTES or start + length > len(data) - _CHECKSUM.size:
        raise FormatError(f"{origin}: header of {length} bytes in a block of {len(data)}")
    head = bytes(data[start : start + length])
    if _brackets(head) > MAX_HEADER_BRACKETS:
        raise FormatError(f"{origin}: header with {_brackets(head)} brackets, at most {MAX_HEADER_BRACKETS}")
    try:
        header = json.loads(head)
    except ValueError as error:
        raise FormatError(f"{origin}: header is not JSON: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("streams"), list):
        raise FormatError(f"{origin}: header names no streams")
    return header, start + length


def decode_block(
    data: bytes | memoryview, *, origin: str, read_header: Callable[[dict[str, Any]], tuple[T, Mapping[str, int]]]
) -> tuple[T, dict[str, Bytes]]:
    """Return what a block's header says and its streams, decompressed, having checked every byte.

    Args:
        data: exactly one block.
        origin: where it lies, for messages.
        read_header: given the header's fields, what they mean and the most bytes each stream may have once decompressed; nothing
            larger is allocated.

    Raises:
        FormatError: damage, another version, or anything `encode_block` cannot have written.
    """
    keep_freed_memory()
    view = memoryview(data)
    header, offset = _header(view, origin=origin)
    table = header.pop("streams")
    try:
        meaning, limits = read_header(header)
    except FormatError as error:
        raise type(error)(f"{origin}: {error}") from error
    streams: dict[str, Bytes] = {}
    left = _max_raw_bytes(len(view) - _CHECKSUM.size)
    for entry in table:
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str) and entry[0] not in streams):
            raise FormatError(f"{origin}: stream entry {entry!r}")
        name, raw_bytes, stored_bytes = entry
        if not (type(raw_bytes) is int and type(stored_bytes) is int and 0 <= stored_bytes <= raw_bytes):
            raise FormatError(f"{origin}: stream {name!r} announces {raw_bytes!r} bytes in {stored_bytes!r}")
        if raw_bytes > min(limits.get(name, -1), MAX_STREAM_BYTES):
            raise FormatError(f"{origin}: stream {name!r} of {raw_bytes} bytes is more than its rows allow")
        left -= raw_bytes
        if left < 0:
            raise FormatError(
                f"{origin}: with stream {name!r} of {raw_bytes} bytes, streams are more than a block of {len(view)} holds"
            )
        body = view[offset : offset + stored_bytes]
        offset += stored_bytes
        if offset > len(view) - _CHECKSUM.size:
            raise FormatError(f"{origin}: stream {name!r} runs past the end of the block")
        streams[name] = np.frombuffer(
            body if stored_bytes == raw_bytes else _decompress(body, raw_bytes, origin=origin), dtype=np.uint8
        )
    if offset != len(view) - _CHECKSUM.size:
        raise FormatError(f"{origin}: {len(view) - _CHECKSUM.size - offset} bytes belong to no stream")
    return meaning, streams


def _decompress(body: memoryview, raw_bytes: int, *, origin: str) -> bytes:
    try:
        if zstandard.frame_content_size(body) != raw_bytes:
            raise FormatError(f"{origin}: a zstd frame announces other than {raw_bytes} bytes")
        return _decompressor().decompress(body, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"{origin}: zstd: {error}") from error
