"""What a benchmark found: tables, goals met or not, notes; and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tests.benchmarks.conditions import Conditions

Cell: TypeAlias = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure that was promised, and what was measured.

    Attributes:
        at_most: whether the figure must stay below the limit; False: above it.
    """

    what: str
    measured: float
    limit: float
    at_most: bool = True
    unit: str = ""

    @property
    def passed(self) -> bool:
        """Whether what was measured is as promised; NaN never is."""
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@dataclass(frozen=True, kw_only=True)
class Table:
    """Figures side by side. The first column says what a row is of."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One benchmark's results.

    Attributes:
        method: what was measured and how, in paragraphs.
        conditions: of this benchmark: the load may differ between two.
    """

    name: str
    title: str
    method: str
    tables: tuple[Table, ...]
    goals: tuple[Goal, ...]
    quick: bool
    seconds: float = 0.0
    conditions: Conditions | None = None


def format_cell(value: Cell) -> str:
    """Return a figure with as many digits as it carries meaning."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value and abs(value) < 1e-2:
        return f"{value:.2e}"
    if abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Return the lines of a table; columns of figures are set to the right."""
    cells = [list(columns), *([format_cell(value) for value in row] for row in rows)]
    widths = [max(3, *(len(row[index]) for row in cells)) for index in range(len(columns))]
    left = [True, *(all(isinstance(row[index], str | None) for row in rows) for index in range(1, len(columns)))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if is_left else text.rjust(width) for text, width, is_left in zip(row, widths, left, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * width) if is_left else ("-" * (width - 1) + ":") for width, is_left in zip(widths, left, strict=True)]
    return [line(cells[0]), f"| {' | '.join(rule)} |", *(line(row) for row in cells[1:])]


def goal_rows(goals: Sequence[Goal]) -> list[tuple[Cell, ...]]:
    """Return goals as rows: what, goal, measured, verdict."""
    return [
        (
            goal.what,
            f"{'<=' if goal.at_most else '>='} {format_cell(goal.limit)} {goal.unit}".rstrip(),
            f"{format_cell(goal.measured)} {goal.unit}".rstrip(),
            "PASS" if goal.passed else "FALLS SHORT",
        )
        for goal in goals
    ]


def to_markdown(report: Report) -> str:
    """Return the section of one benchmark."""
    lines = [f"## {report.title}", "", f"`python -m tests.benchmarks {report.name}{' --quick' if report.quick else ''}`", ""]
    if report.quick:
        lines += ["**Quick run: too small to measure anything; it only shows that the benchmark works.**", ""]
    lines += [report.method.strip(), ""]
    if report.goals:
        lines += [*markdown_table(("goal", "promised", "measured", "verdict"), goal_rows(report.goals)), ""]
    for table in report.tables:
        lines += [f"**{table.title}**", "", *markdown_table(table.columns, table.rows), ""]
    if report.conditions is not None:
        lines += [f"Conditions: {report.conditions.describe()}; {report.seconds:,.0f} s in all.", ""]
    return "\n".join(lines)
