"""The command line that benchmarks and trials share: run what was asked for, print it, keep it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol

from tests.benchmarks.conditions import load_average, observe
from tests.benchmarks.report import Report


class Run(Protocol):
    """One benchmark: measures in a folder of its own, and says how far it is."""

    def __call__(self, *, quick: bool, folder: Path, say: Callable[[str], None]) -> Report: ...


class RunByName(Protocol):
    """Runs a benchmark by its name."""

    def __call__(self, name: str, *, quick: bool) -> Report: ...


def run_observed(run: Run, *, name: str, quick: bool) -> Report:
    """Run one benchmark in a folder that is removed; return its report with time and conditions."""
    started = time.perf_counter()
    load_before = load_average()

    def say(text: str) -> None:
        sys.stderr.write(f"[{time.perf_counter() - started:7.1f} s] {name}: {text}\n")
        sys.stderr.flush()

    with tempfile.TemporaryDirectory(prefix=f"decant-{name}-") as folder:
        report = run(quick=quick, folder=Path(folder), say=say)
    return replace(report, seconds=time.perf_counter() - started, conditions=observe(load_before=load_before))


def run_command(
    words: Sequence[str] | None,
    *,
    program: str,
    what: str,
    description: str,
    names: Sequence[str],
    run: RunByName,
    section: Callable[[Report], str],
    page: Callable[[Sequence[Report]], str],
) -> int:
    """Run the benchmarks that the words name, all if they name none.

    Args:
        what: what one of them is called.
        section: the Markdown of one report.
        page: that of all of them.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--quick", action="store_true", help="so small that it only shows that all of it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page")
    arguments = parser.parse_args(words)
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f"no {what} {', '.join(unknown)}; there are {', '.join(names)}")
    reports: list[Report] = []
    for name in arguments.names or names:
        reports.append(run(name, quick=arguments.quick))
        sys.stdout.write(f"\n{section(reports[-1])}\n")
        sys.stdout.flush()
        # After each: a long run that is stopped keeps what it found.
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([asdict(report) for report in reports], indent=2) + "\n")
        if arguments.markdown is not None:
            arguments.markdown.write_text(page(reports))
    return 0
