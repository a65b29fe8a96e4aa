"""Where and with what a benchmark ran: figures mean nothing without it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("decant", "numpy", "torch", "timm", "pillow", "zstandard", "pyarrow", "webdataset", "apache-beam")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The machine, what else ran on it, and the versions.

    Attributes:
        load_before: mean number of running processes in the minute before the benchmark.
        load_after: likewise in its last minute, its own threads included.
    """

    cpu: str
    cores: int
    load_before: float
    load_after: float
    versions: dict[str, str]

    def describe(self) -> str:
        """Return all of it in one line."""
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.cpu}, {self.cores} cores, load average {self.load_before:.2f} before and {self.load_after:.2f} after; {packages}"


def usable_cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def load_average() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]


def observe(*, load_before: float) -> Conditions:
    """Return the conditions of a benchmark that just ended."""
    return Conditions(
        cpu=_cpu_model(),
        cores=usable_cores(),
        load_before=load_before,
        load_after=load_average(),
        versions={"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}},
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
