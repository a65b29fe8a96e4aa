"""What stands in the way, or may: levels, places, and how findings of many processes become one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.doctor.clocks import Offset
from pipelines.doctor.report import ProcessReport

Level = Literal["ok", "warning", "error"]
_ORDER: tuple[Level, ...] = ("error", "warning", "ok")
_SHOWN_PLACES = 4

HERE = "here"
"""Where the command was started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: what it is about, in a word.
        remedy: what to do; "" where nothing is to be done.
        places: names of processes or hosts; empty where it is of none in particular.
    """

    level: Level
    topic: str
    message: str
    remedy: str = ""
    places: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Return the finding and its remedy in a line."""
        return f"{self.what_and_where()}{'. ' if self.remedy else ''}{self.remedy}"

    def what_and_where(self) -> str:
        """Return the finding without its remedy."""
        shown = ", ".join(self.places[:_SHOWN_PLACES])
        more = f" and {len(self.places) - _SHOWN_PLACES} more" if len(self.places) > _SHOWN_PLACES else ""
        where = f" ({shown}{more})" if self.places else ""
        return f"{self.message}{where}"


@dataclass(frozen=True, kw_only=True)
class Heard:
    """All that was said.

    Attributes:
        here: what the process says in which the command was started.
        workers: what each worker process says; may be the same process.
        offsets: how far each worker's clock is ahead of this one's, in the workers' order.
        local: workers are on this machine, and import what this process imports.
        allow_version_differences: see `generation.allow_version_differences`.
    """

    here: ProcessReport
    workers: Sequence[ProcessReport]
    offsets: Sequence[Offset] = ()
    local: bool = True
    allow_version_differences: bool = False

    @property
    def hosts(self) -> dict[tuple[str, str], list[ProcessReport]]:
        """Workers by host name and address."""
        found: dict[tuple[str, str], list[ProcessReport]] = {}
        for worker in self.workers:
            found.setdefault((worker.host, worker.address), []).append(worker)
        return found

    @property
    def everyone(self) -> list[tuple[str, ProcessReport]]:
        """All processes with their names, the submitter first; once, if it is the only worker."""
        others = [worker for worker in self.workers if not self._is_here(worker)]
        return [(HERE, self.here), *((self.name(worker), worker) for worker in others)]

    @property
    def labellers(self) -> list[tuple[str, ProcessReport]]:
        """The processes that would label, with their names: workers, or this one where there are none."""
        return [(self.name(worker), worker) for worker in self.workers] or [(HERE, self.here)]

    def host_name(self, report: ProcessReport) -> str:
        """Return a name for a host; with its address where others share its name."""
        addresses = {address for host, address in self.hosts if host == report.host}
        return f"{report.host}/{report.address}" if len(addresses) > 1 else report.host

    def name(self, report: ProcessReport) -> str:
        """Return a name for a process."""
        return HERE if self._is_here(report) else f"{self.host_name(report)}:{report.pid}"

    def _is_here(self, report: ProcessReport) -> bool:
        return (report.host, report.address, report.pid) == (self.here.host, self.here.address, self.here.pid)


def gathered(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings that say the same as one, with all their places; errors first, else in the order they came."""
    places: dict[tuple[Level, str, str, str], dict[str, None]] = {}
    for one in findings:
        places.setdefault((one.level, one.topic, one.message, one.remedy), {}).update(dict.fromkeys(one.places))
    merged = [
        Finding(level=level, topic=topic, message=message, remedy=remedy, places=tuple(where))
        for (level, topic, message, remedy), where in places.items()
    ]
    return sorted(merged, key=lambda one: _ORDER.index(one.level))


def worst(findings: Iterable[Finding]) -> Level:
    """Return the worst level."""
    return min((one.level for one in findings), key=_ORDER.index, default="ok")
