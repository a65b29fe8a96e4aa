"""Tars made in memory."""

from __future__ import annotations

import io
import tarfile


def tar_bytes(members, *, format=tarfile.USTAR_FORMAT):
    """A tar of (name, bytes) members; a TarInfo in place of a name is taken as it is."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()
