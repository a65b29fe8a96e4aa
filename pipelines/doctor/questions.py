"""What processes are asked about: made by the submitter from a config, small, and plain enough to be read by any version."""

from __future__ import annotations

import base64
from typing import Any

from pipelines.doctor.report import Said


class AskedSample(Said):
    """The first sample of a source unit, as the submitter read it.

    Attributes:
        unit: fields of a `SourceUnit`.
        checksum: xxh3-64 of the stored bytes; None where the sample cannot be read.
    """

    unit: dict[str, Any]
    key: str
    checksum: int | None


class AskedFile(Said):
    """A file of the teacher, as the submitter read it.

    Attributes:
        ends: xxh3-64 of its first and last bytes.
    """

    path: str
    num_bytes: int
    ends: int


class AskedTeacher(Said):
    """What loading a teacher needs.

    Attributes:
        modules: Python modules that must be importable.
        hub: repositories of the Hugging Face hub.
        device: `teacher.device`.
    """

    name: str
    files: tuple[AskedFile, ...] = ()
    modules: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    device: str = "auto"


class AskedSource(Said):
    """What reading the source needs.

    Attributes:
        config: JSON form of the source's config.
    """

    config: dict[str, Any]
    samples: tuple[AskedSample, ...] = ()


class Questions(Said):
    """What a process is to say of itself.

    Attributes:
        id: of this examination; also what stands in its greeting.
        asked: POSIX time by the submitter's clock.
        store: URL of the store through which reports come back; None: there is none that both sides see.
        folder: of this examination in the store.
        pause_seconds: how long an element keeps a process busy, so that others get some, too.
        limit_seconds: how long a process may take to answer.
    """

    id: str
    asked: float
    store: str | None = None
    folder: str
    source: AskedSource | None = None
    teacher: AskedTeacher | None = None
    pause_seconds: float = 0.0
    limit_seconds: float = 60.0

    @property
    def greeting(self) -> str:
        """Name of the file that the submitter writes before anything else."""
        return f"{self.folder}/greeting.txt"

    def report_name(self, *, process: tuple[str, str, int, float]) -> str:
        """Return the name of a process's report."""
        word = base64.urlsafe_b64encode("/".join(map(str, process)).encode()).decode().rstrip("=")
        return f"{self.folder}/reports/{word}.json"
