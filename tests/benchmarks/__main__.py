"""`python -m tests.benchmarks [NAME ...]`: measure, say what was promised and what was found."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tests.benchmarks import bytes as bytes_benchmark
from tests.benchmarks import labelling, memory, reading, training, truth
from tests.benchmarks.conditions import load_average, observe
from tests.benchmarks.report import Report, goal_rows, markdown_table, to_markdown

BENCHMARKS = {
    "bytes": bytes_benchmark.run,
    "reading": reading.run,
    "labelling": labelling.run,
    "training": training.run,
    "memory": memory.run,
    "truth": truth.run,
}

_PAGE = """\
# Benchmarks

What Decant promises to be, and what was measured. Everything on this page was printed by one command, and nothing was left out:

    python -m tests.benchmarks --markdown docs/benchmarks.md

`make bench` runs the same without writing this page. `python -m tests.benchmarks bytes reading` runs some, `--quick` runs them so small
that they only show they work, `--json FILE` keeps every figure. Real labels and pictures are taken from `../shared/data` where it is
there; elsewhere labels are made, which the text then says. Peers are re-created in `tests/benchmarks/peers` from what is known of their
formats. A goal that was not met says so.

"""


def run_benchmark(name: str, *, quick: bool) -> Report:
    """Run one benchmark in a folder of its own, which is removed, and return its report."""
    started = time.perf_counter()
    load_before = load_average()

    def say(text: str) -> None:
        sys.stderr.write(f"[{time.perf_counter() - started:7.1f} s] {name}: {text}\n")
        sys.stderr.flush()

    with tempfile.TemporaryDirectory(prefix=f"decant-{name}-") as folder:
        report = BENCHMARKS[name](quick=quick, folder=Path(folder), say=say)
    return replace(report, seconds=time.perf_counter() - started, conditions=observe(load_before=load_before))


def page(reports: Sequence[Report]) -> str:
    """Return all reports as a Markdown page, goals of all of them first."""
    rows = [(report.title, *row) for report in reports for row in goal_rows(report.goals)]
    lines = ["## Goals", "", *markdown_table(("benchmark", "goal", "promised", "measured", "verdict"), rows), ""]
    return _PAGE + "\n".join(lines) + "\n" + "\n".join(to_markdown(report) for report in reports)


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for; a goal that is not met is a finding, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="so small that nothing is measured, to see that all of it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page")
    arguments = parser.parse_args(words)
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    reports = []
    for name in arguments.names or BENCHMARKS:
        reports.append(run_benchmark(name, quick=arguments.quick))
        sys.stdout.write(f"\n{to_markdown(reports[-1])}\n")
        sys.stdout.flush()
        # After each: a long run that is stopped keeps what it found.
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([asdict(report) for report in reports], indent=2) + "\n")
        if arguments.markdown is not None:
            arguments.markdown.write_text(page(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
