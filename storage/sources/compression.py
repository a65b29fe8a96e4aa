"""Read files whole or in part, decompressed by their endings: .gz and .zst."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from storage.errors import SampleError, SourceError
from storage.sources.files import READ_BLOCK_BYTES, open_store, reaching

SUFFIXES = (".gz", ".zst")
"""Endings of compressed files, lower case; other files are read as they are."""

CHUNK_BYTES = 1 << 20
_ZSTD_INPUT_BYTES = 1 << 9
"""Fed at a time, since four bytes may become a block of 128 KiB."""


def is_compressed(name: str) -> bool:
    """Return whether a file's name says that it is compressed."""
    return name.lower().endswith(SUFFIXES)


def without_suffix(name: str) -> str:
    """Return a name without the ending of its compression."""
    return name.rsplit(".", 1)[0] if is_compressed(name) else name


def read_chunks(url: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the content of a file in pieces of a few MiB.

    Args:
        url: the file; a compressed one is decompressed.
        start: first byte, of files that are not compressed.
        end: byte behind the last one; None for the file's end.

    Raises:
        SourceError: the file does not exist, is truncated or damaged.
    """
    fs, path = open_store(url)
    if end is not None:
        # A file that is opened in a remote store reads a block ahead, often more than is asked for here.
        for first in range(start, end, READ_BLOCK_BYTES):
            with reaching(url, action="read"):
                chunk = fs.cat_file(path, start=first, end=min(first + READ_BLOCK_BYTES, end))
            yield chunk
        return
    with reaching(url, action="open"):
        file = fs.open(path, "rb", block_size=READ_BLOCK_BYTES)
    with file:
        chunks = decompress(file, name=url) if is_compressed(url) else _plain(file, start=start)
        while True:
            with reaching(url, action="read"):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk


def _plain(file: BinaryIO, *, start: int) -> Iterator[bytes]:
    if start:
        file.seek(start)
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def content(data: bytes, *, name: str, max_bytes: int) -> bytes:
    """Return the content of stored bytes, decompressed where their name says so.

    Raises:
        SampleError: it is longer than it may be, or damaged.
    """
    pieces, num_bytes = [data], len(data)
    if is_compressed(name):
        pieces, num_bytes = [], 0
        try:
            for piece in decompress(io.BytesIO(data), name=name):
                pieces.append(piece)
                num_bytes += len(piece)
                if num_bytes > max_bytes:
                    break
        except SourceError as error:
            raise SampleError(str(error)) from error
    if num_bytes > max_bytes:
        raise SampleError(f"it is longer than source.max_document_bytes = {max_bytes}")
    return b"".join(pieces)


def decompress(file: BinaryIO, *, name: str) -> Iterator[bytes]:
    """Yield the decompressed content of a file whose name ends in one of `SUFFIXES`; never much more than a chunk in memory.

    Raises:
        SourceError: it is truncated, damaged, or not compressed in the way that its name says.
    """
    try:
        yield from _gunzip(file) if name.lower().endswith(".gz") else _unzstd(file)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise SourceError(
            f"{name} is truncated or damaged, or not compressed as its name says: {error}; copy it again"
        ) from error


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file, mode="rb") as stream:
        chunk = stream.read(CHUNK_BYTES)
        if not chunk and file.tell() == 0:
            raise EOFError("the file is empty")
        while chunk:
            yield chunk
            chunk = stream.read(CHUNK_BYTES)


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    frame = None
    num_frames, pieces, num_bytes = 0, [], 0
    while stored := file.read(CHUNK_BYTES):
        start = 0
        while start < len(stored):
            if frame is None:
                frame = zstandard.ZstdDecompressor().decompressobj()
                num_frames += 1
            fed = stored[start : start + _ZSTD_INPUT_BYTES]
            pieces.append(frame.decompress(fed))
            num_bytes += len(pieces[-1])
            start += len(fed)
            if frame.eof:
                start -= len(frame.unused_data)
                frame = None
            if num_bytes >= CHUNK_BYTES:
                yield b"".join(pieces)
                pieces, num_bytes = [], 0
    # A stream reader would end here without a word.
    if frame is not None or not num_frames:
        raise EOFError("the file ends inside a frame" if num_frames else "the file is empty")
    if num_bytes:
        yield b"".join(pieces)
