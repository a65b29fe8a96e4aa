"""`python -m tests.reliability [NAME ...]`: break things on purpose, and say what was lost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from tests.benchmarks.command import run_command, run_observed
from tests.benchmarks.report import Report, goal_rows, markdown_table, to_markdown

TRIALS = ("faults", "kills", "concurrency", "fuzz", "scale", "memory")

_PAGE = """\
# Reliability

What was done to caches on purpose, and what came of it. The tables were printed by

    python -m tests.reliability

`python -m tests.reliability faults kills` runs some, `--quick` runs them so small that they only show they work (as
`tests/integration/test_faults.py` does), `--json FILE` keeps every figure. A goal that was not met says so.

## What can go unnoticed

Damage to bytes cannot: every byte that a reader uses is behind a hash that stands in another file, up to the name, which is signed by
its own. What is left is files that are whole and right, but old or forged:

- **A name or tag put back as it was** (a backup of `names/` alone, a store that serves an old copy) points at an older label set, which
  is whole. Readers get that one where it serves their config, and nothing tells them; the trial counts these faults in a column of their
  own, *rolled back*. `decant label` moves a name forward again, people move tags. Who must not move can name the label set by its id.
- **An older manifest put back together with every tar that it names** is the label set as it was then. Where a part was lost and made
  anew, its old tar is gone, and the old manifest is refused; where only the record was lost, the old tar may still lie there, readers
  see the old rows, and `decant cache verify` finds that the part's record says otherwise.
- **Memos** (`sources/`, `teachers/`) save reading; damaged, stale or mixed up they count as nothing and are written anew. A memo of a
  source that was forged, checksums included, is believed. What it says of units that must be labelled is proven by the worker, which
  hashes all it reads; where it takes one unit for another, readers refuse the samples' keys. Only where it hides that a picture
  changed under the same key do old labels stay in use, seen by the digest of the rendered view where one is stored, for every 64th
  sample. Removing `sources/` makes the next run read everything.
- **What `decant label` does not look at.** A part that a whole label set names counts as there when a listing shows its record and one
  tar of it, so that a million parts are planned in seconds. What was removed is seen, and made anew; a record or tar whose bytes were
  damaged is found by readers and by `decant cache verify`, which say what to remove.
- **A tool that changes a record or manifest and signs it anew** is a writer like any other.

"""


def run_trial(name: str, *, quick: bool) -> Report:
    """Run one trial and return its report."""
    # Imported late: each brings its own half of the world.
    return run_observed(import_module(f"tests.reliability.{name}").run, name=name, quick=quick)


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
    return run_command(
        words,
        program="python -m tests.reliability",
        what="trial",
        description=str(__doc__),
        names=TRIALS,
        run=run_trial,
        section=section,
        page=page,
    )


if __name__ == "__main__":
    sys.exit(main())
