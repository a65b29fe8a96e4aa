"""Walk the headers of a tar without trusting it.

Python's tarfile takes a damaged header for the end of the archive and says nothing, so what follows the last member is checked
here: POSIX ends an archive with two zero blocks, and nothing but zeros may follow.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from storage.errors import SourceError

_END_BYTES = 2 * tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_REMEDY = "copy or write it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class TarMember:
    """A file in a tar: its name, and where its bytes are; `is_link` marks a hard or symbolic link, which has none."""

    name: str
    offset: int
    size_bytes: int
    is_link: bool


def scan_tar(file: BinaryIO, *, size_bytes: int, url: str) -> Iterator[TarMember]:
    """Yield the files and links of a tar in order. Between two members the caller may seek and read.

    Args:
        file: the tar, at its start.
        size_bytes: its length.
        url: its name in errors.

    Raises:
        SourceError: the tar is compressed, truncated or damaged, also where tarfile would end quietly.
    """
    try:
        archive = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep every header
            if info.isreg() and info.issparse():
                raise SourceError(
                    f"{url}: member {info.name!r} is a sparse file, whose bytes lie apart; write the tar without -S"
                )
            if info.size < 0 or (info.isreg() and info.offset_data + info.size > size_bytes):
                raise SourceError(f"{url} is truncated: member {info.name!r} reaches beyond its {size_bytes} bytes; {_REMEDY}")
            if info.isreg() or info.islnk() or info.issym():
                yield TarMember(name=info.name, offset=info.offset_data, size_bytes=info.size, is_link=not info.isreg())
        end = archive.offset
    except (tarfile.TarError, ValueError, OverflowError, IndexError) as error:
        file.seek(0)
        start = file.read(2)
        if start in _COMPRESSED:
            raise SourceError(
                f"{url} is compressed ({_COMPRESSED[start]}), so its samples cannot be reached one by one; decompress it"
            ) from error
        raise SourceError(f"{url} is truncated or damaged, or no tar: {error}; {_REMEDY}") from error
    _check_end(file, end=end, url=url)


def _check_end(file: BinaryIO, *, end: int, url: str) -> None:
    file.seek(end)
    num_zeros = 0
    while chunk := file.read(_CHUNK_BYTES):
        if chunk.count(0) != len(chunk):
            if num_zeros == 0 and len(chunk) < tarfile.BLOCKSIZE:
                raise SourceError(f"{url} is truncated: it ends inside the header at byte {end}; {_REMEDY}")
            if num_zeros == 0 and chunk[: tarfile.BLOCKSIZE].count(0) < tarfile.BLOCKSIZE:
                raise SourceError(
                    f"{url} is damaged: the header at byte {end} is not valid, so all that follows is lost; {_REMEDY}"
                )
            raise SourceError(
                f"{url} is damaged: data follow its end at byte {end}, as when a header is zeroed or tars are "
                f"concatenated; {_REMEDY}"
            )
        num_zeros += len(chunk)
    if num_zeros < _END_BYTES:
        raise SourceError(
            f"{url} is truncated: it ends at byte {end + num_zeros} without the two zero blocks that close a tar, so samples "
            f"may be missing; {_REMEDY}"
        )
