"""How much memory a piece of work had resident at its most, whoever allocated it: Python, numpy, Arrow, zstd."""

from __future__ import annotations

import os
from pathlib import Path

from tests.benchmarks.peak_memory import peak_bytes

_RESET_PEAK = b"5"
_PEAK, _NOW = b"VmHWM:", b"VmRSS:"


class ResidentMemory:
    """The peak of this process since it was last reset, from Linux; elsewhere a peak that can only rise."""

    def __init__(self) -> None:
        on_linux = Path("/proc/self/clear_refs").exists()
        self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY) if on_linux else None
        self._status = os.open("/proc/self/status", os.O_RDONLY) if on_linux else None

    def start(self) -> int:
        """Return what is resident now, and begin to look for the most."""
        if self._reset is None:
            return peak_bytes()
        os.pwrite(self._reset, _RESET_PEAK, 0)
        return self._read(_NOW)

    def most(self) -> int:
        """Return the most that was resident since."""
        return peak_bytes() if self._status is None else self._read(_PEAK)

    def _read(self, field: bytes) -> int:
        assert self._status is not None
        status = os.pread(self._status, 4096, 0)
        place = status.index(field) + len(field)
        return int(status[place : status.index(b"kB", place)]) << 10

    def close(self) -> None:
        """Give the files back."""
        for file in (self._reset, self._status):
            if file is not None:
                os.close(file)
