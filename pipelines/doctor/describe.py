"""An examination in words and in figures."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.doctor.checkup import Examination
from pipelines.doctor.clocks import Offset
from pipelines.doctor.findings import HERE, Finding, Heard, worst
from pipelines.doctor.judge_machines import device_words, size_words
from pipelines.doctor.judge_reach import milliseconds
from pipelines.doctor.judge_versions import MISSING, same_release, versions_of
from pipelines.doctor.report import ProcessReport

_WIDTH = 130
_SHOWN_PROCESSES = 20
_MARKS = {"ok": "ok", "warning": "WARNING", "error": "ERROR"}


def describe_examination(found: Examination) -> dict[str, Any]:
    """Return the figures of an examination, and a readable form under "text"."""
    heard = found.heard
    return {
        "verdict": worst(found.findings),
        "name": found.name,
        "engine": None if found.engine is None else asdict(found.engine),
        "job": None if found.outcome is None else asdict(found.outcome),
        "num_processes": len(heard.workers),
        "num_hosts": len(heard.hosts),
        "findings": [asdict(finding) for finding in found.findings],
        "versions": {
            name: {"here": wanted, "workers": dict(Counter(versions_of(worker)[name] for worker in heard.workers))}
            for name, wanted in versions_of(heard.here).items()
        },
        "here": heard.here.model_dump(mode="json"),
        "workers": [
            {
                **worker.model_dump(mode="json"),
                "name": heard.name(worker),
                "clock_ahead_seconds": {"least": offset.least, "most": offset.most},
            }
            for worker, offset in zip(heard.workers, heard.offsets, strict=True)
        ],
        "problems": [finding.in_words() for finding in found.errors],
        "text": "\n".join(_lines(found)),
    }


def _lines(found: Examination) -> list[str]:
    heard = found.heard
    what = found.name or "this machine"
    engine = "" if found.engine is None else f", {found.engine.in_words()}"
    lines = [f"{what}{engine}", "", *_processes(heard), "", *_versions(heard), ""]
    for finding in reversed(found.findings):
        lines += _finding(finding)
    return [*lines, "", _verdict(found)]


def _verdict(found: Examination) -> str:
    num_warnings = sum(finding.level == "warning" for finding in found.findings)
    warnings = f", {num_warnings} to look at" if num_warnings else ""
    if found.errors:
        return f"{len(found.errors)} in the way of labelling{warnings}"
    return f"nothing in the way{warnings}"


def _finding(finding: Finding) -> list[str]:
    head = f"{_MARKS[finding.level]:8}{finding.topic:10}"
    lines = _wrapped(finding.what_and_where(), head=head)
    return [*lines, *_wrapped(finding.remedy, head=" " * len(head))] if finding.remedy else lines


def _wrapped(text: str, *, head: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=_WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _processes(heard: Heard) -> list[str]:
    rows = [["process", "elements", "device", "memory free", "temp free", "read", "write", "clock"]]
    named = [(heard.name(worker), worker, offset) for worker, offset in zip(heard.workers, heard.offsets, strict=True)]
    of_here = next((worker for name, worker, _ in named if name == HERE), None)
    rows.append(_process(HERE, of_here or heard.here, clock="", worker=of_here is not None))
    others = [_process(name, worker, clock=_clock(offset), worker=True) for name, worker, offset in named if name != HERE]
    more = len(others) - _SHOWN_PROCESSES
    return [*_table([*rows, *others[:_SHOWN_PROCESSES]]), *([f"  ... and {more} more; --json lists them"] if more > 0 else [])]


def _process(name: str, report: ProcessReport, *, clock: str, worker: bool) -> list[str]:
    cache = report.cache
    return [
        name,
        str(len(report.elements)) if worker else "",
        device_words(report),
        size_words(report.machine.memory_available_bytes),
        size_words(report.machine.temp_free_bytes),
        "" if cache is None or cache.read_seconds is None else milliseconds(cache.read_seconds),
        "" if cache is None or cache.write_seconds is None else milliseconds(cache.write_seconds),
        clock,
    ]


def _clock(offset: Offset) -> str:
    if offset.certain_seconds:
        return f"{offset.middle:+,.1f} s ± {offset.doubt:.1f}"
    return f"within {max(-offset.least, offset.most, 0.1):,.1f} s"


def _versions(heard: Heard) -> list[str]:
    rows = [["package", "here", "workers", ""]] if heard.workers else [["package", "here"]]
    for name, wanted in versions_of(heard.here).items():
        if not heard.workers:
            rows.append([name, wanted])
            continue
        counts = Counter(versions_of(worker)[name] for worker in heard.workers)
        shown = [version if len(counts) == 1 else f"{version} ({count})" for version, count in counts.most_common()]
        rows.append([name, wanted, ", ".join(shown), _mark(wanted, counts)])
    return _table(rows)


def _mark(wanted: str, found: Counter[str]) -> str:
    if all(version == wanted for version in found):
        return ""
    return "other build" if all(version != MISSING and same_release(version, wanted) for version in found) else "<-- differs"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
