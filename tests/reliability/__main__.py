"""`python -m tests.reliability [NAME ...]`: break things on purpose, and say what was lost."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

from tests.benchmarks.conditions import load_average, observe
from tests.benchmarks.report import Report, goal_rows, markdown_table, to_markdown

TRIALS = ("faults", "kills", "concurrency", "fuzz", "scale")

_PAGE = """\
# Reliability

What was done to caches on purpose, and what came of it. Everything on this page was printed by one command, and nothing was left out:

    python -m tests.reliability --markdown docs/reliability.md

`python -m tests.reliability faults kills` runs some, `--quick` runs them so small that they only show they work (as
`tests/integration/test_faults.py` does), `--json FILE` keeps every figure. A goal that was not met says so.

## What can go unnoticed

Damage to bytes cannot: every byte that a reader uses is behind a hash that stands in another file, up to the name, which is signed by
its own. What is left is files that are whole and right, but old or forged:

- **A name put back as it was** (a backup of `names/` alone, a store that serves an old copy) points at an older label set, which is whole.
  Readers get that one; `decant label` moves the name forward again. Runs that must not move can name the label set by its id.
- **An older manifest put back together with every tar that it names** is the label set as it was then. Where a part was lost and made
  anew, its old tar is gone, and the old manifest is refused; where only the record was lost, the old tar may still lie there, readers
  see the old rows, and `decant cache verify` finds that the part's record says otherwise.
- **Memos** (`sources/`, `teachers/`) save reading; damaged, stale or mixed up they count as nothing and are written anew. A memo of a
  source that was forged, checksums included, is believed. What it says of units that must be labelled is proven by the worker, which
  hashes all it reads; where it takes one unit for another, readers refuse the samples' keys. Only where it hides that a picture
  changed under the same key do old labels stay in use, seen by the digest of the rendered view where one is stored, for every 64th
  sample. Removing `sources/` makes the next run read everything.
- **A tool that changes a record or manifest and signs it anew** is a writer like any other.

"""


def run_trial(name: str, *, quick: bool) -> Report:
    """Run one trial in a folder of its own, which is removed, and return its report."""
    # Imported late: each brings its own half of the world.
    run: Callable[..., Report] = import_module(f"tests.reliability.{name}").run
    started = time.perf_counter()
    load_before = load_average()

    def say(text: str) -> None:
        sys.stderr.write(f"[{time.perf_counter() - started:7.1f} s] {name}: {text}\n")
        sys.stderr.flush()

    with tempfile.TemporaryDirectory(prefix=f"decant-{name}-") as folder:
        report = run(quick=quick, folder=Path(folder), say=say)
    return replace(report, seconds=time.perf_counter() - started, conditions=observe(load_before=load_before))


def section(report: Report) -> str:
    """Return the Markdown of one trial."""
    return to_markdown(report).replace("python -m tests.benchmarks", "python -m tests.reliability", 1)


def page(reports: Sequence[Report]) -> str:
    """Return all reports as a Markdown page, goals of all of them first."""
    rows = [(report.title, *row) for report in reports for row in goal_rows(report.goals)]
    lines = ["## Goals", "", *markdown_table(("trial", "goal", "promised", "measured", "verdict"), rows), ""]
    return _PAGE + "\n".join(lines) + "\n" + "\n".join(section(report) for report in reports)


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for; a goal that is not met is a finding, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TRIALS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="so small that it only shows that all of it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page")
    arguments = parser.parse_args(words)
    unknown = sorted(set(arguments.names) - set(TRIALS))
    if unknown:
        parser.error(f"no trial {', '.join(unknown)}; there are {', '.join(TRIALS)}")
    reports = []
    for name in arguments.names or TRIALS:
        reports.append(run_trial(name, quick=arguments.quick))
        sys.stdout.write(f"\n{section(reports[-1])}\n")
        sys.stdout.flush()
        # After each: a long run that is stopped keeps what it found.
        if arguments.json is not None:
            arguments.json.write_text(json.dumps([asdict(report) for report in reports], indent=2) + "\n")
        if arguments.markdown is not None:
            arguments.markdown.write_text(page(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
