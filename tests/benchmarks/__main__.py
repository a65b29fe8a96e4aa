"""`python -m tests.benchmarks [NAME ...]`: measure, say what was promised and what was found."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.benchmarks import bytes as bytes_benchmark
from tests.benchmarks import driver, features, labelling, memory, reading, sampling, text_bytes, text_labelling, training, truth
from tests.benchmarks.command import run_command, run_observed
from tests.benchmarks.report import Report, goal_rows, markdown_table, to_markdown

BENCHMARKS = {
    "bytes": bytes_benchmark.run,
    "reading": reading.run,
    "labelling": labelling.run,
    "training": training.run,
    "memory": memory.run,
    "truth": truth.run,
    "text_labelling": text_labelling.run,
    "text_bytes": text_bytes.run,
    "sampling": sampling.run,
    "features": features.run,
    "driver": driver.run,
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
    """Run one benchmark and return its report."""
    return run_observed(BENCHMARKS[name], name=name, quick=quick)


def page(reports: Sequence[Report]) -> str:
    """Return all reports as a Markdown page, goals of all of them first."""
    rows = [(report.title, *row) for report in reports for row in goal_rows(report.goals)]
    lines = ["## Goals", "", *markdown_table(("benchmark", "goal", "promised", "measured", "verdict"), rows), ""]
    return _PAGE + "\n".join(lines) + "\n" + "\n".join(to_markdown(report) for report in reports)


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for; a goal that is not met is a finding, not a failure."""
    return run_command(
        words,
        program="python -m tests.benchmarks",
        what="benchmark",
        description=str(__doc__),
        names=tuple(BENCHMARKS),
        run=run_benchmark,
        section=to_markdown,
        page=page,
    )


if __name__ == "__main__":
    sys.exit(main())
