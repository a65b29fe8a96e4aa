"""Devices, memory and disks of the processes that would label."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.doctor.findings import Finding, Heard
from pipelines.doctor.report import ProcessReport

_GIB = 1 << 30
_MIB = 1 << 20
LITTLE_MEMORY_BYTES = 2 * _GIB
"""A worker with torch, timm, transformers and a small teacher takes about one and a half."""
LITTLE_DISK_BYTES, NO_DISK_BYTES = _GIB, 100 * _MIB
"""Beam stages its files there, and sources fetch compressed shards through it."""


def size_words(num_bytes: int | None) -> str:
    """Return a number of bytes as people read it."""
    if num_bytes is None:
        return "?"
    for unit, size in (("TiB", 1 << 40), ("GiB", _GIB), ("MiB", _MIB)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"


def device_words(report: ProcessReport) -> str:
    """Return what a process would compute on."""
    gpus: dict[str, int] = {}
    for gpu in report.device.gpus:
        words = f"{gpu.name} {size_words(gpu.total_bytes)}"
        gpus[words] = gpus.get(words, 0) + 1
    listed = ", ".join(f"{count} x {words}" for words, count in gpus.items())
    return listed or f"cpu, {report.machine.cpu_threads} threads"


def judge_devices(heard: Heard) -> Iterator[Finding]:
    """Yield devices that are missing, that are shared by too many, or that lie idle."""
    good: dict[str, list[str]] = {}
    for name, report in heard.labellers:
        if report.device.problem is not None:
            yield Finding(
                level="error" if report.device.asked is not None else "warning",
                topic="device",
                message=report.device.problem,
                remedy="Every process that labels needs the device of the config (teacher.device)",
                places=(name,),
            )
        else:
            found = f"{report.device.found}: " if report.device.found not in (None, "cpu") else ""
            good.setdefault(f"{found}{device_words(report)}", []).append(name)
        if report.device.idle_gpu is not None:
            yield Finding(
                level="warning",
                topic="device",
                message=f"there is a GPU, but {report.device.idle_gpu}",
                remedy="Install a build of torch for its driver (pytorch.org), or leave it idle and go on",
                places=(name,),
            )
    for words, names in good.items():
        yield Finding(level="ok", topic="device", message=words, places=tuple(names))
    yield from _crowded(heard)


def _crowded(heard: Heard) -> Iterator[Finding]:
    for reports in heard.hosts.values():
        found = {report.device.found for report in reports if (report.device.found or "").startswith("cuda")}
        for device in sorted(name for name in found if name is not None):
            sharing = [report for report in reports if report.device.found == device]
            if len(sharing) > 1:
                yield Finding(
                    level="warning",
                    topic="device",
                    message=f"{len(sharing)} processes of one host share {device}, each with a copy of the teacher",
                    remedy="One process a GPU is usually fastest: fewer workers there, or other CUDA_VISIBLE_DEVICES for each",
                    places=(heard.host_name(sharing[0]),),
                )


def judge_memory(heard: Heard) -> Iterator[Finding]:
    """Yield hosts with little memory for the processes that they have."""
    for reports in heard.hosts.values() or [[heard.here]]:
        available = [
            report.machine.memory_available_bytes for report in reports if report.machine.memory_available_bytes is not None
        ]
        if not available:
            continue
        # Workers measured themselves before a teacher was loaded.
        each = min(available) // len(reports)
        place = heard.host_name(reports[0])
        if each < LITTLE_MEMORY_BYTES:
            yield Finding(
                level="warning",
                topic="memory",
                message=f"{size_words(min(available))} available for {_count(len(reports), 'process', 'processes')}",
                remedy="A process takes about 1.5 GiB and the teacher's size: fewer workers a host, or a larger container limit",
                places=(place,),
            )
        else:
            total = reports[0].machine.memory_bytes
            words = f"{size_words(min(available))} of {size_words(total)} available"
            yield Finding(level="ok", topic="memory", message=words, places=(place,))


def judge_disks(heard: Heard) -> Iterator[Finding]:
    """Yield temp folders that are full or cannot be written."""
    for _, report in heard.everyone:
        machine, place = report.machine, heard.host_name(report)
        remedy = "Make room, or set TMPDIR to a folder on a larger disk before the process starts"
        free = machine.temp_free_bytes
        if machine.temp_problem is not None:
            yield Finding(
                level="error",
                topic="disk",
                message=f"the temp folder {machine.temp_folder} cannot be written: {machine.temp_problem}",
                remedy=remedy,
                places=(place,),
            )
        elif free is not None and free < LITTLE_DISK_BYTES:
            yield Finding(
                level="error" if free < NO_DISK_BYTES else "warning",
                topic="disk",
                message=f"the temp folder {machine.temp_folder} has {size_words(free)} left",
                remedy=remedy,
                places=(place,),
            )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
