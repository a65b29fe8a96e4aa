"""What a process says of itself, and the text in which it travels inside an error."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationError

_BEGIN, _END = "decant-doctor:", ":end"
_TEXT = re.compile(f"{_BEGIN}([A-Za-z0-9_=-]+){_END}")


class Said(BaseModel):
    """Said by a process that may have another version of Decant: what is not known is left out, what is missing has a default."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Gpu(Said):
    """A GPU as torch sees it."""

    name: str
    total_bytes: int
    free_bytes: int | None = None


class Machine(Said):
    """Processors, memory and disk, as far as this process may use them.

    Attributes:
        cpu_threads: hardware threads, no more than a container's limit.
        memory_bytes: of the machine, or a container's limit; None where the system does not say.
        temp_problem: why nothing can be written to the temp folder.
        shared_memory_bytes: size of /dev/shm; None where there is none.
    """

    cpu_threads: int
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None
    temp_folder: str = ""
    temp_free_bytes: int | None = None
    temp_problem: str | None = None
    shared_memory_bytes: int | None = None


class Device(Said):
    """What torch can compute on.

    Attributes:
        torch_threads: None where torch cannot be imported.
        asked: `teacher.device` of the config.
        found: the device that this means here.
        problem: why there is none, or why it does not work.
        idle_gpu: why a GPU that the machine has cannot be used.
    """

    torch_threads: int | None = None
    gpus: tuple[Gpu, ...] = ()
    asked: str | None = None
    found: str | None = None
    problem: str | None = None
    idle_gpu: str | None = None


class StoreReach(Said):
    """Whether a store can be used from a process.

    Attributes:
        url: of the store.
        read_problem: why what the submitter had written there cannot be read.
        write_problem: why nothing can be written there, or does not come back as it was.
        elsewhere: it can be read, but what the submitter had written is not there.
        creates_at_once: whether a file is created only if there is none, in one step; None: not known.
        read_seconds: median of a few reads of a few bytes, to the store and back.
        write_seconds: one write of a few bytes.
    """

    url: str
    read_problem: str | None = None
    write_problem: str | None = None
    elsewhere: bool = False
    creates_at_once: bool | None = None
    read_seconds: float | None = None
    write_seconds: float | None = None

    @property
    def works(self) -> bool:
        """Whether it can be read and written, and is the submitter's."""
        return not self.elsewhere and self.read_problem is None and self.write_problem is None


class Reach(Said):
    """Whether something that was asked for can be read.

    Attributes:
        num_read: samples or files that were read and are as they are where the command was started.
        problems: what cannot be read, or is different.
        notes: what is good to know.
    """

    num_read: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class ClockReading(Said):
    """When a file was written: by a process's clock and by the store's. POSIX seconds.

    Attributes:
        before, after: by the process's clock, around the write.
        stored: by the store's clock; it is cut to `resolution_seconds`.
    """

    before: float
    stored: float
    resolution_seconds: float
    after: float


class ProcessReport(Said):
    """What one process says of itself.

    Attributes:
        address: its address towards others; "" where it has none.
        started: POSIX time, by its own clock, at which it met the first element.
        now: the same when this was said.
        elements: numbers of the elements it met.
        packages: versions by name; a package that is missing is not in it.
        code: digest of Decant's own code.
        cache, source, teacher: None where nothing was asked.
    """

    host: str
    address: str = ""
    pid: int
    started: float
    now: float
    elements: tuple[int, ...] = ()
    python: str = ""
    packages: dict[str, str] = {}
    code: str | None = None
    machine: Machine
    device: Device = Device()
    cache: StoreReach | None = None
    source: Reach | None = None
    teacher: Reach | None = None
    clock: ClockReading | None = None

    @property
    def process(self) -> tuple[str, str, int, float]:
        """What tells processes apart."""
        return (self.host, self.address, self.pid, self.started)


def merge_reports(reports: Iterable[ProcessReport]) -> list[ProcessReport]:
    """Return one report for each process, the last thing it said, with all elements it met."""
    latest: dict[tuple[str, str, int, float], ProcessReport] = {}
    elements: dict[tuple[str, str, int, float], set[int]] = {}
    for report in reports:
        known = latest.get(report.process)
        if known is None or known.now <= report.now:
            latest[report.process] = report
        elements.setdefault(report.process, set()).update(report.elements)
    merged = [report.model_copy(update={"elements": tuple(sorted(elements[name]))}) for name, report in latest.items()]
    return sorted(merged, key=lambda report: (report.host, report.address, report.pid, report.started))


def to_text(reports: Iterable[ProcessReport]) -> str:
    """Return reports as one word that a traceback, a log or a JSON string carries unharmed."""
    data = json.dumps([report.model_dump(mode="json") for report in reports]).encode()
    return f"{_BEGIN}{base64.urlsafe_b64encode(zlib.compress(data, 9)).decode()}{_END}"


def reports_in(text: str) -> list[ProcessReport]:
    """Return the reports that a text carries, each process once; words that are cut off or changed are passed over."""
    found: list[ProcessReport] = []
    for match in _TEXT.finditer(text):
        try:
            data = json.loads(zlib.decompress(base64.urlsafe_b64decode(match[1])))
            found += [ProcessReport.model_validate(one) for one in data]
        except (ValueError, zlib.error, ValidationError):
            continue
    return merge_reports(found)


def without_reports(text: str) -> str:
    """Return a text without the words that carry reports."""
    return _TEXT.sub("", text)
