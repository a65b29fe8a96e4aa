"""Versions of workers against the submitter's."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.doctor.findings import Finding, Heard
from pipelines.doctor.machine import PACKAGES
from pipelines.doctor.report import ProcessReport

PYTHON, CODE, MISSING = "python", "decant's code", "missing"
_ALWAYS = (PYTHON, "decant", "apache-beam")
"""What must be the same even where other libraries are meant to label."""
_INSTALL_WHERE = "in the environment whose `python` the worker pool finds, and start the pool again"


def versions_of(report: ProcessReport) -> dict[str, str]:
    """Return what a process runs, in the order in which it is shown."""
    found = {PYTHON: report.python}
    for package in PACKAGES:
        found[package] = report.packages.get(package, MISSING)
        if package == "decant":
            found[CODE] = report.code or MISSING
    return found


def same_release(one: str, other: str) -> bool:
    """Return whether two versions differ in nothing but the build (`2.9.0+cpu`, `2.9.0+cu128`)."""
    return one.partition("+")[0] == other.partition("+")[0]


def judge_versions(heard: Heard) -> Iterator[Finding]:
    """Yield differences: any may change labels, or keep processes from understanding each other."""
    here = versions_of(heard.here)
    differs = False
    builds: dict[str, set[str]] = {}
    for worker in heard.workers:
        for name, found in versions_of(worker).items():
            wanted = here[name]
            if found == wanted or (name == CODE and (heard.local or not _same_decant(worker, heard.here))):
                continue
            if name != CODE and same_release(found, wanted):
                builds.setdefault(name, {wanted}).add(found)
                continue
            differs = True
            allowed = heard.allow_version_differences and name not in _ALWAYS
            yield _difference(name, found=found, wanted=wanted, place=heard.name(worker), allowed=allowed)
    if heard.workers and not differs:
        mixed = "".join(f"; builds of {name} differ: {', '.join(sorted(found))}" for name, found in builds.items())
        yield Finding(level="ok", topic="versions", message=f"every worker has this process's versions{mixed}")


def _same_decant(worker: ProcessReport, here: ProcessReport) -> bool:
    return worker.packages.get("decant") == here.packages.get("decant")


def _difference(name: str, *, found: str, wanted: str, place: str, allowed: bool) -> Finding:
    said = f"{name} is missing" if found == MISSING else f"{name} {found}"
    minor = ".".join(wanted.split(".")[:2])
    tolerable = allowed or name == CODE or (name == PYTHON and found.startswith(f"{minor}."))
    if name == CODE:
        said = f"other code of the same version of decant ({found})"
    if allowed:
        remedy = "generation.allow_version_differences lets these workers label"
    elif name == PYTHON:
        remedy = "" if tolerable else f"Use Python {minor} on both sides: functions do not travel between versions"
    elif name in ("decant", CODE):
        remedy = (
            f"Install this decant {_INSTALL_WHERE}; or, where Beam's entry point starts workers (docs/cluster.md), ship it with "
            "the job: --setup_file ./setup.py from its source tree"
        )
    elif wanted == MISSING:
        remedy = f"pip install '{name}=={found}' here"
    else:
        remedy = f"pip install '{name}=={wanted}' {_INSTALL_WHERE}; or submit from an environment like theirs"
    return Finding(
        level="warning" if tolerable else "error",
        topic="versions",
        message=f"{said}, and {wanted} where the command was started",
        remedy=remedy,
        places=(place,),
    )
