"""Every benchmark runs in its smallest form and reports what it is for. Speeds are nobody's business here."""

from __future__ import annotations

import json
import math

import pytest

from tests.benchmarks.__main__ import BENCHMARKS, main, page, run_benchmark
from tests.benchmarks.report import Goal, Report, Table, goal_rows, to_markdown

EXPECTED_GOALS = {
    "bytes": 17,
    "reading": 4,
    "labelling": 2,
    "training": 1,
    "memory": 2,
    "truth": 6,
    "text_labelling": 1,
    "text_bytes": 13,
    "sampling": 6,
    "features": 6,
    "driver": 3,
}
EXPECTED_ROWS = {
    "bytes": {
        "decant exact, K=10",
        "decant compact, K=100",
        "TinyViT record, seek and read, K=100",
        "Parquet, zstd list columns, K=10",
    },
    "text_labelling": {"decant label", "by hand"},
    "text_bytes": {
        "decant exact, K=64",
        "decant sampled, 50 draws (RS-KD)",
        "decant threshold, levels 7",
        "Megatron-LM: torch.save, zstd",
        "RS-KD, 3 bytes an entry",
    },
    "sampling": {
        "sampled, 50 draws (RS-KD)",
        "threshold, levels 32",
        "top 300, rest as a bucket",
        "hard labels",
        "all classes (dense)",
    },
    "reading": {
        "decant exact, K=100",
        "decant compact, K=10",
        "WebDataset, .npy pair a sample, K=10",
        "TinyViT record, memory map, K=100",
    },
    "labelling": {
        "decant label, 1 worker",
        "decant label, 2 workers",
        "by hand, 1 process, DataLoader",
        "by hand, 2 processes, threads",
    },
    "training": {"cached labels", "hard labels", "live teacher"},
    "memory": {"decant label, 160 rows", "reading an epoch, 80 rows"},
    "truth": {"all classes, in float32", "top-10, read, against densified"},
    "features": {"decant float16", "decant int8", "decant int8, groups of 64", "float16, .npy", "float16, safetensors"},
    "driver": {"plan", "planning and building", "nothing", "half, of a killed run"},
}


def check(report: Report) -> None:
    rows = {row[0] for table in report.tables for row in table.rows}
    assert EXPECTED_ROWS[report.name] <= rows
    assert len(report.goals) == EXPECTED_GOALS[report.name]
    assert all(math.isfinite(goal.measured) for goal in report.goals)
    figures = [value for table in report.tables for row in table.rows for value in row[1:] if value is not None]
    assert all(math.isfinite(value) and value >= 0 for value in figures)
    assert report.conditions is not None
    text = to_markdown(report)
    assert "Quick run" in text
    assert report.conditions.cpu in text


def test_all_benchmarks_are_expected():
    assert set(BENCHMARKS) == set(EXPECTED_GOALS) == set(EXPECTED_ROWS)


def test_bytes():
    report = run_benchmark("bytes", quick=True)
    check(report)
    split = next(table for table in report.tables if table.title == "What the bytes are for")
    for row in split.rows:
        assert sum(row[1:-1]) == pytest.approx(row[-1])


def test_text_bytes():
    check(run_benchmark("text_bytes", quick=True))


@pytest.mark.integration
def test_sampling():
    check(run_benchmark("sampling", quick=True))


def test_reading():
    check(run_benchmark("reading", quick=True))


def test_features():
    check(run_benchmark("features", quick=True))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["labelling", "training", "memory", "driver"])
def test_commands(name):
    check(run_benchmark(name, quick=True))


@pytest.mark.integration
def test_truth_and_its_files(tmp_path, capsys):
    assert main(["truth", "--quick", "--json", str(tmp_path / "found.json"), "--markdown", str(tmp_path / "page.md")]) == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["name"] == "truth"
    # Unlike the speeds of other benchmarks, this one must hold on any machine and at any size.
    assert all(goal["measured"] <= goal["limit"] for goal in found["goals"])
    page_text = (tmp_path / "page.md").read_text()
    assert capsys.readouterr().out.strip() in page_text
    assert "PASS" in page_text


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["byte"])
    assert "no benchmark byte; there are bytes, reading" in capsys.readouterr().err


def test_a_goal_that_is_missed_says_so():
    goals = (
        Goal(what="small", measured=2.0, limit=1.0, unit="B"),
        Goal(what="fast", measured=2.0, limit=1.0, at_most=False),
        Goal(what="nothing", measured=math.nan, limit=1.0),
    )
    report = Report(
        name="bytes",
        title="T",
        method="M",
        tables=(Table(title="t", columns=("a", "b"), rows=(("x", 1),)),),
        goals=goals,
        quick=False,
    )
    assert [row[-1] for row in goal_rows(goals)] == ["FALLS SHORT", "PASS", "FALLS SHORT"]
    assert "| small   | <= 1.000 B | 2.000 B  | FALLS SHORT |" in to_markdown(report)
    assert "Quick run" not in page([report])
