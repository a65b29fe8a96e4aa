"""USTAR archives with reproducible bytes: mtime 0, owner 0, no padding beyond the two closing blocks."""

from __future__ import annotations

import tarfile

from storage.errors import FormatError

TAR_BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * TAR_BLOCK_BYTES)


def member_header(name: str, *, num_bytes: int) -> bytes:
    """Return the 512-byte USTAR header of a member.

    Raises:
        FormatError: the name does not fit a USTAR header.
    """
    info = tarfile.TarInfo(name)
    info.size = num_bytes
    info.mode = 0o644
    try:
        header = info.tobuf(format=tarfile.USTAR_FORMAT)
    except ValueError as error:
        raise FormatError(f"{name!r} does not fit a tar header: {error}") from error
    return header


def padding(num_bytes: int) -> bytes:
    """Return the zeros that fill the last 512-byte block of a member."""
    return bytes(-num_bytes % TAR_BLOCK_BYTES)
