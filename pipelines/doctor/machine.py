"""What a process says of its machine: processors, memory, disk, versions."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import socket
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import storage
from pipelines.doctor.report import Machine

PACKAGES = ("decant", "torch", "torchvision", "timm", "transformers", "tokenizers", "numpy", "pillow", "apache-beam")
"""Packages on which labels, or whether processes understand each other, may depend."""

_OWN_PACKAGES = ("pipelines", "storage")
_NOWHERE = ("192.0.2.1", 9)
"""An address for documentation: asking for the way there sends nothing."""
_NO_LIMIT_BYTES = 1 << 60
"""Version 1 of control groups says a number near 2^63 where there is no limit."""


def installed_packages() -> dict[str, str]:
    """Return the versions of the packages that count, those that are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def code_digest() -> str | None:
    """Return 16 hex digits over Decant's code that labels; None where it does not lie in files."""
    root = Path(storage.__file__).resolve().parents[1]
    files = sorted(file for package in _OWN_PACKAGES for file in (root / package).rglob("*.py"))
    if not files:
        return None
    result = hashlib.sha256()
    for file in files:
        data = file.read_bytes()
        result.update(f"{file.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    return result.hexdigest()[:16]


def own_address() -> str:
    """Return this machine's address towards others; "" where it has none."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_NOWHERE)
        return str(probe.getsockname()[0])
    return ""


def examine_machine(*, root: Path = Path("/")) -> Machine:
    """Return what this process may use of its machine.

    Args:
        root: where the system's own files (proc, sys, dev) lie.
    """
    total, available = _memory(root)
    folder = tempfile.gettempdir()
    free, problem = None, None
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"probe")
    except OSError as error:
        problem = error.strerror or str(error)
    shared = None
    with contextlib.suppress(OSError):
        shared = shutil.disk_usage(root / "dev" / "shm").total
    return Machine(
        cpu_threads=cpu_threads(root),
        memory_bytes=total,
        memory_available_bytes=available,
        temp_folder=folder,
        temp_free_bytes=free,
        temp_problem=problem,
        shared_memory_bytes=shared,
    )


def cpu_threads(root: Path = Path("/")) -> int:
    """Return how many hardware threads this process may use, no more than a container's limit."""
    affinity = getattr(os, "sched_getaffinity", None)
    threads = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota, _, period = _text(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        return max(1, min(threads, math.ceil(int(quota) / int(period))))
    return threads


def _memory(root: Path) -> tuple[int | None, int | None]:
    """Return total and available bytes, both no more than what a container's limit leaves."""
    total, available = _memory_of_machine(root)
    for limit_file, usage_file, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        group = root / "sys/fs/cgroup"
        limit, usage = _text(group / limit_file), _text(group / usage_file)
        if not limit.isdecimal() or int(limit) >= _NO_LIMIT_BYTES:
            continue
        total = min(total or int(limit), int(limit))
        if usage.isdecimal():
            statistics = dict(line.split() for line in _text((group / limit_file).parent / "memory.stat").splitlines())
            left = max(0, int(limit) - int(usage) + int(statistics.get(cached, 0)))
            available = left if available is None else min(available, left)
    return total, available


def _memory_of_machine(root: Path) -> tuple[int | None, int | None]:
    lines = dict(line.split(":", 1) for line in _text(root / "proc/meminfo").splitlines() if ":" in line)
    if "MemTotal" in lines:
        available = lines.get("MemAvailable", lines.get("MemFree", "")).split()
        return int(lines["MemTotal"].split()[0]) * 1024, int(available[0]) * 1024 if available else None
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    return None, None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
